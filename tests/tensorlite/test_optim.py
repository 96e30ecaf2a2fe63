"""Optimisers against scalar arithmetic and PyTorch, their state, clipping, schedules."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlite import kernels, nn, optim

SHAPES = {"weight": (4, 3), "bias": (3,), "scale": (), "none": (0, 2)}
ADAM = [
    {},
    {"lr": 0.1, "betas": (0.5, 0.7), "eps": 1e-3},
    {"lr": 0.02, "weight_decay": 0.3},
    {"betas": (0.0, 0.0)},
]
SGD = [
    {"lr": 0.1},
    {"lr": 0.1, "weight_decay": 0.3},
    {"lr": 0.1, "momentum": 0.9},
    {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
]
ALL = [(optim.Adam, options) for options in ADAM] + [(optim.SGD, options) for options in SGD]


def make(dtype=np.float64, shapes=SHAPES):
    rng = np.random.default_rng(0)
    return {
        name: nn.Parameter(np.asarray(rng.standard_normal(shape), dtype))
        for name, shape in shapes.items()
    }


def gradients(step, params):
    """The gradients of a step, drawn with very different scales."""
    rng = np.random.default_rng([7, step])
    for i, p in enumerate(params.values()):
        p.grad = np.asarray(rng.standard_normal(p.shape) * 10.0 ** (i - 2), p.dtype)


def scalar_adam(p, grads, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
    m = v = 0.0
    for t, g in enumerate(grads, start=1):
        g = g + weight_decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        p = p - lr * (m / (1 - betas[0] ** t)) / (math.sqrt(v / (1 - betas[1] ** t)) + eps)
    return p


def scalar_sgd(p, grads, lr, momentum=0.0, nesterov=False, weight_decay=0.0):
    b = 0.0
    for g in grads:
        g = g + weight_decay * p
        b = momentum * b + g
        p = p - lr * (g + momentum * b if nesterov else b)
    return p


@pytest.mark.parametrize(("kind", "options"), ALL)
def test_ten_steps_equal_scalar_arithmetic(kind, options):
    params = make()
    start = {name: p.data.copy() for name, p in params.items()}
    optimizer = kind(params.values(), **options)
    history = {name: [] for name in params}
    for step in range(10):
        gradients(step, params)
        for name, p in params.items():
            history[name].append(p.grad.copy())
        optimizer.step()
        for name, p in params.items():
            np.testing.assert_array_equal(p.grad, history[name][-1])  # only read
    reference = scalar_adam if kind is optim.Adam else scalar_sgd
    for name, p in params.items():
        for i in np.ndindex(p.shape):
            expected = reference(
                float(start[name][i]), [float(g[i]) for g in history[name]], **options
            )
            assert p.data[i] == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("kind", "options"), ALL)
def test_ten_steps_equal_torch(kind, options):
    torch = pytest.importorskip("torch")
    params = make()
    twins = {name: torch.nn.Parameter(torch.tensor(p.data)) for name, p in params.items()}
    optimizer = kind(params.items(), **options)
    reference = getattr(torch.optim, kind.__name__)(twins.values(), **options)
    for step in range(10):
        gradients(step, params)
        for name, p in params.items():
            twins[name].grad = torch.tensor(p.grad)
        optimizer.step()
        reference.step()
    for name, p in params.items():
        np.testing.assert_allclose(
            p.data, twins[name].detach().numpy(), rtol=1e-12, atol=1e-12
        )


@contextlib.contextmanager
def cut(block, threads):
    """Blocks of so many elements, however few spread over threads."""
    before = kernels.cpu.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optim, "_BLOCK", block)
        patch.setattr(optim, "_GRAIN", 1)
        kernels.cpu.set_num_threads(threads)
        try:
            yield
        finally:
            kernels.cpu.set_num_threads(before)


@pytest.mark.parametrize(("kind", "options"), ALL)
def test_neither_blocks_nor_threads_change_a_bit(kind, options):
    shapes = {"a": (5, 5), "b": (7, 3), "c": (2,), "d": (1,), "e": (40,), "f": (), "g": (3,)}

    def values(threads, block, one_by_one=False):
        params = make(np.float32, shapes) | make(np.float64, {"double": (3, 3)})
        groups = [[name] for name in params] if one_by_one else [list(params)]
        optimizers = [kind([(name, params[name]) for name in names], **options)
                      for names in groups]
        with cut(block, threads):
            for step in range(3):
                gradients(step, params)
                params["acdg"[step]].grad = None  # a gap among the small ones
                for optimizer in optimizers:
                    optimizer.step()
        return [p.data.tobytes() for p in params.values()]

    expected = values(1, 1000, one_by_one=True)
    for threads, block in ((1, 1000), (2, 1000), (3, 64), (2, 16), (3, 7), (2, 1)):
        assert values(threads, block) == expected


@given(sizes=st.lists(st.integers(0, 40), max_size=12), block=st.integers(1, 60),
       threads=st.integers(1, 3))
def test_the_norm_does_not_depend_on_the_threads(sizes, block, threads):
    rng = np.random.default_rng(len(sizes))
    params = [nn.Parameter(np.zeros(size)) for size in sizes]
    for p in params:
        p.grad = rng.standard_normal(p.shape)
    norms, clipped = [], []
    for count in (1, threads):
        with cut(block, count):
            norms.append(optim.grad_norm(params))
            before = [p.grad.copy() for p in params]
            optim.clip_grad_norm(params, 0.5)
            clipped.append([p.grad.tobytes() for p in params])
            for p, grad in zip(params, before, strict=True):
                p.grad = grad
    assert norms[0] == norms[1] and clipped[0] == clipped[1]
    exact = math.sqrt(math.fsum(float(x) ** 2 for p in params for x in p.grad))
    assert norms[0] == pytest.approx(exact, rel=1e-12)


def test_what_is_remembered_lies_in_one_array_the_small_ones_side_by_side():
    params = make(np.float32, {"a": (40, 40), "b": (3,), "c": (50, 50), "d": (2, 2)})
    optimizer = optim.Adam(params.items())
    places = optimizer._memory
    assert len({id(place.array) for place in places.values()}) == 1
    assert [places[name][1:] for name in "bdac"] == [(0, 3), (3, 7), (7, 1607), (1607, 4107)]
    gradients(0, params)
    calls = []
    update = optimizer.update
    optimizer.update = lambda value, *rest, **room: (
        calls.append(value.size), update(value, *rest, **room)
    )
    with cut(1000, 1):
        optimizer.step()
    assert calls == [7, 1000, 600, 1000, 1000, 500]


def test_the_arrays_of_parameters_stay_the_users():
    params = make(np.float32)
    held = {name: p.data for name, p in params.items()}
    gradients(0, params)
    optim.Adam(params.items()).step()
    for name, p in params.items():
        assert np.shares_memory(p.data, held[name]) or not p.data.size
        np.testing.assert_array_equal(p.data, held[name])


def test_gradients_that_are_not_contiguous_are_clipped_in_place():
    p = nn.Parameter(np.zeros((2, 3)))
    p.grad = np.full((3, 2), 2.0).T
    held = p.grad
    optim.clip_grad_norm([p], 1.0)
    assert p.grad is held and optim.grad_norm([p]) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("kind", "options"), ALL)
def test_resuming_from_the_state_equals_never_stopping(kind, options, dtype):
    def run(params, optimizer, steps):
        for step in steps:
            gradients(step, params)
            optimizer.lr = 0.01 / (1 + step)
            optimizer.step()

    straight = make(dtype)
    run(straight, kind(straight.items(), **options), range(6))

    first = make(dtype)
    optimizer = kind(first.items(), **options)
    run(first, optimizer, range(3))
    state = optimizer.state_dict()
    saved = {name: array.copy() for name, array in state.items()}
    run(first, optimizer, range(3, 5))  # the state is a copy
    for name, array in state.items():
        np.testing.assert_array_equal(array, saved[name])

    second = make(dtype)
    run(second, kind(second.items(), **options), range(3))
    resumed = kind(second.items(), **options)
    resumed.load_state_dict(state)
    assert resumed.lr == 0.01 / 3 and resumed.steps == 3
    run(second, resumed, range(3, 6))
    for name in straight:
        assert second[name].data.tobytes() == straight[name].data.tobytes()


def test_the_state_survives_safetensors(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    params = make(np.float32)
    optimizer = optim.Adam(params.items())
    gradients(0, params)
    optimizer.step()
    state = optimizer.state_dict()
    numpy.save_file(state, tmp_path / "state.safetensors")
    loaded = numpy.load_file(tmp_path / "state.safetensors")
    assert loaded.keys() == state.keys() and "second_moment/weight" in loaded
    optim.Adam(params.items()).load_state_dict(loaded)


def test_parameters_without_a_gradient_are_skipped():
    params = make()
    optimizer = optim.Adam(params.items(), weight_decay=0.5)
    gradients(0, params)
    params["bias"].grad = None
    before = params["bias"].data.copy()
    optimizer.step()
    np.testing.assert_array_equal(params["bias"].data, before)
    assert not optimizer.state_dict()["first_moment/bias"].any()
    assert optimizer.steps == 1
    optimizer.zero_grad()
    assert all(p.grad is None for p in params.values())


def test_only_what_is_trained_is_remembered():
    params = make()
    params["weight"].requires_grad = False
    optimizer = optim.Adam(params.items())
    assert "first_moment/weight" not in optimizer.state_dict()
    params["weight"].requires_grad = True
    gradients(0, params)
    optimizer.step()
    state = optimizer.state_dict()
    assert state["first_moment/weight"].any()

    frozen = make()
    frozen["weight"].requires_grad = False
    resumed = optim.Adam(frozen.items())
    resumed.load_state_dict(state)
    for name, array in resumed.state_dict().items():
        np.testing.assert_array_equal(array, state[name])


def test_a_parameter_that_is_a_view_is_updated():
    p = nn.Parameter(np.arange(6.0).reshape(2, 3).T)
    p.grad = np.ones((2, 3)).T
    optim.SGD([p], lr=1.0).step()
    np.testing.assert_array_equal(p.data, np.arange(6.0).reshape(2, 3).T - 1)


def test_a_gradient_of_another_shape_changes_nothing():
    params = make()
    optimizer = optim.Adam(params.items())
    gradients(0, params)
    before = {name: p.data.copy() for name, p in params.items()}
    params["bias"].grad = np.ones(4)
    with pytest.raises(ValueError, match=r"bias: the gradient has shape \(4,\), expected \(3,\)"):
        optimizer.step()
    assert optimizer.steps == 0
    for name, p in params.items():
        np.testing.assert_array_equal(p.data, before[name])


def test_a_wrong_state_is_refused_by_name():
    params = make()
    optimizer = optim.Adam(params.items(), lr=0.5)
    good = optimizer.state_dict()

    def refused(message, state):
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(state)
        assert optimizer.lr == 0.5 and optimizer.steps == 0

    changed = good | {"step": np.array(3), "lr": np.array(0.1)}
    refused(r"Adam: first_moment/bias has shape \(2,\), expected \(3,\)",
            changed | {"first_moment/bias": np.zeros(2)})
    refused(r"1 unexpected \(momentum/bias\)", changed | {"momentum/bias": np.zeros(3)})
    refused(r"1 missing \(second_moment/bias\)",
            {name: a for name, a in changed.items() if name != "second_moment/bias"})
    refused(r"1 missing \(step\)", {name: a for name, a in changed.items() if name != "step"})
    refused(r"step has shape \(1,\)", changed | {"step": np.array([3])})
    refused("step is -1, expected >= 0", changed | {"step": np.array(-1)})
    refused("lr: expected a finite number", changed | {"lr": np.array(np.nan)})


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (optim.Adam, {"lr": 0}, "lr: expected a positive number, got 0"),
        (optim.Adam, {"lr": -1.0}, "lr: expected a finite number >= 0, got -1.0"),
        (optim.Adam, {"lr": math.inf}, "lr: expected a finite number"),
        (optim.Adam, {"betas": (0.9, 1.0)}, r"betas: expected two numbers in \[0, 1\)"),
        (optim.Adam, {"betas": (0.9,)}, "betas: expected two numbers"),
        (optim.Adam, {"eps": 0}, "eps: expected a positive number, got 0"),
        (optim.Adam, {"weight_decay": -1}, "weight_decay: expected a finite number >= 0, got -1"),
        (optim.SGD, {"lr": 1, "momentum": 1}, r"momentum: expected a number in \[0, 1\), got 1"),
        (optim.SGD, {"lr": 1, "nesterov": True}, "nesterov: needs a positive momentum"),
    ],
)
def test_wrong_options_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(make().items(), **options)


def test_wrong_parameters_are_refused():
    p = nn.Parameter(np.ones(2))
    with pytest.raises(ValueError, match="no parameters"):
        optim.Adam([])
    with pytest.raises(TypeError, match="expected an iterable of parameters .* got Parameter"):
        optim.Adam(p)
    with pytest.raises(TypeError, match="got Linear"):
        optim.Adam(nn.Linear(1, 1))
    with pytest.raises(TypeError, match="item 1 is neither"):
        optim.Adam([p, np.ones(2)])
    with pytest.raises(ValueError, match="'0' and '1' are one parameter"):
        optim.Adam([p, p])
    with pytest.raises(ValueError, match="the name 'a' comes twice"):
        optim.Adam([("a", p), ("a", nn.Parameter(np.ones(2)))])


# Clipping


@given(
    st.lists(st.lists(st.floats(-1e3, 1e3), max_size=6), max_size=4),
    st.floats(1e-2, 1e4),
)
def test_clipping_bounds_the_norm_and_keeps_the_direction(values, max_norm):
    params = [nn.Parameter(np.zeros(len(v))) for v in values]
    for p, v in zip(params, values, strict=True):
        p.grad = np.array(v)
    everything = np.concatenate([np.zeros(0), *(p.grad for p in params)])
    norm = optim.clip_grad_norm(params, max_norm)
    assert norm == pytest.approx(math.sqrt(math.fsum(x * x for x in everything)), rel=1e-12)
    factor = min(1.0, max_norm / norm) if norm else 1.0
    clipped = np.concatenate([np.zeros(0), *(p.grad for p in params)])
    np.testing.assert_allclose(clipped, everything * factor, rtol=1e-12)
    if norm <= max_norm:
        np.testing.assert_array_equal(clipped, everything)


def test_the_norm_is_summed_in_float64_and_skips_what_has_no_gradient():
    large, none = nn.Parameter(np.zeros(200_000, np.float32)), nn.Parameter(np.zeros(2))
    large.grad = np.full(200_000, 1e25, np.float32)  # its square is beyond float32
    exact = float(np.float32(1e25)) * math.sqrt(200_000)
    assert optim.grad_norm([large, none]) == pytest.approx(exact, rel=1e-13)
    assert optim.grad_norm([]) == 0


@pytest.mark.parametrize("bad", [math.inf, math.nan, 1e300])
def test_a_norm_that_is_not_finite_is_returned_and_nothing_is_scaled(bad):
    p = nn.Parameter(np.zeros(3))
    p.grad = np.array([1.0, bad, 2.0])
    norm = optim.clip_grad_norm([p], 1.0)
    assert math.isnan(norm) if math.isnan(bad) else norm == math.inf
    np.testing.assert_array_equal(p.grad, [1.0, bad, 2.0])


def test_clipping_refuses_a_norm_that_is_not_positive():
    for bad in (0, -1, math.nan):
        with pytest.raises(ValueError, match="max_norm: expected a positive number"):
            optim.clip_grad_norm([], bad)


# Schedules


def test_constant_and_step():
    assert [optim.Constant(0.3)(s) for s in (0, 10**6)] == [0.3, 0.3]
    schedule = optim.Step(1.0, (2, 5), factor=0.5)
    assert [schedule(s) for s in range(7)] == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_cosine():
    schedule = optim.Cosine(2.0, steps=14, warmup=4, final=0.5)
    assert [schedule(s) for s in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert schedule(4) == 2.0
    assert schedule(9) == pytest.approx(1.25, rel=1e-15)
    assert schedule(14) == schedule(1000) == 0.5


@given(
    st.floats(1e-6, 1.0),
    st.integers(1, 50),
    st.integers(0, 49),
    st.floats(0, 1),
    st.integers(0, 99),
)
def test_cosine_stays_between_its_ends_and_falls_after_the_warm_up(lr, steps, warmup, share, step):
    warmup = min(warmup, steps - 1)
    schedule = optim.Cosine(lr, steps, warmup, final=share * lr)
    assert 0 <= schedule(step) <= lr * (1 + 1e-15)
    if step >= warmup:
        assert schedule(step + 1) <= schedule(step)
        assert schedule(step) >= share * lr
    assert schedule(step) == optim.Cosine(lr, steps, warmup, final=share * lr)(step)


@pytest.mark.parametrize(
    ("make_schedule", "message"),
    [
        (lambda: optim.Constant(-1), "lr: expected a finite number >= 0, got -1"),
        (lambda: optim.Step(1, (3, 3)), "milestones: expected rising"),
        (lambda: optim.Step(1, (0,)), "milestones: expected rising"),
        (lambda: optim.Step(1, (1,), -1), "factor: expected"),
        (lambda: optim.Cosine(1, 0), "warmup: expected 0 <= warmup < steps, got 0 of 0"),
        (lambda: optim.Cosine(1, 5, 5), "warmup: expected"),
        (lambda: optim.Cosine(1, 5, final=2), "final: expected 0 <= final <= lr, got 2 and 1"),
        (lambda: optim.Constant(1)(-1), "step: expected an int >= 0, got -1"),
        (lambda: optim.Cosine(1, 5)(-1), "step: expected an int >= 0, got -1"),
    ],
)
def test_schedules_are_validated(make_schedule, message):
    with pytest.raises(ValueError, match=message):
        make_schedule()


def test_a_loss_of_many_elements_is_not_scaled():
    loss = nn.Parameter([1.0, 2.0]) * 2
    with pytest.raises(ValueError, match=r"loss: expected a scalar, got shape \(2,\)"):
        optim.LossScaler().backward(loss)
