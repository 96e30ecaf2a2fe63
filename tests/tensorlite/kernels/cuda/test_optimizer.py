"""One update of all parameters by the CUDA kernels, against the optimiser of the CPU."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlite import Tensor, kernels, nn, optim
from tensorlite.kernels import cuda
from tensorlite.kernels.cuda import optimizer as launchers
from tensorlite.kernels.cuda.launch import running_on
from tests.cuda_on_cpu.emulator import Emulator
from tests.tensorlite.campaign import examples

# Odd sizes, none, exactly a piece and one more, and one that is not contiguous.
SHAPES = {"w": (37, 5), "b": (3,), "scale": (), "none": (0, 2), "piece": (launchers.PIECE,),
          "more": (launchers.PIECE + 1,)}


def make(dtype=np.float32, shapes=SHAPES):
    rng = np.random.default_rng(0)
    params = {name: nn.Parameter(np.asarray(rng.standard_normal(shape), dtype))
              for name, shape in shapes.items()}
    params["turned"] = nn.Parameter(rng.standard_normal((6, 7)).astype(dtype).T)
    return params


def gradients(step, params, scale=1.0):
    rng = np.random.default_rng([7, step])
    for i, p in enumerate(params.values()):
        grad = np.asarray(rng.standard_normal(p.shape) * 10.0 ** (i % 5 - 2), p.dtype)
        p.grad = (grad * scale).astype(p.dtype)


@pytest.fixture
def on_gpu(monkeypatch, schedules):
    """on_gpu(schedule): within it arrays are taken for a GPU's, and kernels are emulated."""

    class OnGpu:
        def __init__(self, schedule="forward"):
            self.running = running_on(Emulator(schedule=schedule))

        def __enter__(self):
            monkeypatch.setattr(kernels, "of", lambda array: cuda)
            self.running.__enter__()

        def __exit__(self, *error):
            self.running.__exit__(*error)
            monkeypatch.undo()

    return OnGpu


@pytest.mark.parametrize("schedule", ["forward", "reverse", "shuffled"])
@pytest.mark.parametrize("options", [
    {}, {"lr": 0.1, "betas": (0.5, 0.7), "eps": 1e-3, "weight_decay": 0.3}, {"betas": (0.0, 0.0)}])
def test_adam_is_the_cpus(on_gpu, schedule, options):
    """Ten steps in float64: equal but for the order of a few roundings."""
    ours, theirs = make(np.float64), make(np.float64)
    expected = optim.Adam(theirs.items(), **options)
    with on_gpu(schedule):
        optimizer = optim.Adam(ours.items(), **options)
    for step in range(4):
        for params in (ours, theirs):
            gradients(step, params)
            params["b" if step % 2 else "more"].grad = None
        expected.lr = 0.1 / (step + 1)
        expected.step()
        with on_gpu(schedule):
            optimizer.lr = 0.1 / (step + 1)
            optimizer.step()
    for name, p in ours.items():
        np.testing.assert_allclose(p.data, theirs[name].data, rtol=1e-12, atol=1e-14)
        assert p.data.flags.c_contiguous
    a, b = optimizer.state_dict(), expected.state_dict()
    assert a.keys() == b.keys() and a["step"] == 4
    for key in a:
        np.testing.assert_allclose(a[key], b[key], rtol=1e-12, atol=1e-14, err_msg=key)


def test_float32_is_as_near_to_float64_as_the_cpu_is(on_gpu):
    exact, near, ours = make(np.float64), make(), make()
    for name, p in exact.items():
        p.data = near[name].data.astype(np.float64)
    optimizers = [optim.Adam(params.items(), lr=0.01, weight_decay=0.1)
                  for params in (exact, near)]
    with on_gpu():
        optimizer = optim.Adam(ours.items(), lr=0.01, weight_decay=0.1)
    for step in range(3):
        gradients(step, near)
        for name, p in near.items():
            ours[name].grad, exact[name].grad = p.grad.copy(), p.grad.astype(np.float64)
        for each in optimizers:
            each.step()
        with on_gpu():
            optimizer.step()
    for name, p in ours.items():
        bound = 8 * np.finfo(np.float32).eps * (np.abs(exact[name].data) + 0.03)
        assert (np.abs(p.data - exact[name].data) <= bound).all(), name


@pytest.mark.usefixtures("schedules")
@examples(8)
@given(sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=5), seed=st.integers(0, 99),
       scale=st.sampled_from([1.0, 2.0**10]), dtype=st.sampled_from([np.float32, np.float64]),
       max_norm=st.sampled_from([None, 1e-3, 1e9]))
def test_a_guarded_step_scales_back_and_clips(sizes, seed, scale, dtype, max_norm):
    rng = np.random.default_rng(seed)
    start = [rng.standard_normal(size).astype(dtype) for size in sizes]
    grads = [rng.standard_normal(size).astype(dtype) for size in sizes]
    found = []
    for kind in (kernels.cpu, cuda):
        params = [nn.Parameter(value.copy()) for value in start]
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad * dtype(scale)
        with pytest.MonkeyPatch.context() as patch, running_on(Emulator()):
            patch.setattr(kernels, "of", lambda array, kind=kind: kind)
            scaler = optim.LossScaler(scale, growth_steps=1)
            optimizer = optim.Adam(params, lr=0.1, eps=1e-3)
            outcome = optimizer.guarded_step(max_norm, scaler)()
            assert scaler.scale == 2 * scale and optimizer.steps == 1
        found.append((outcome, [p.data for p in params]))
    (expected, values), (got, ours) = found
    assert got.scale == expected.scale == scale and not got.skipped
    norm = math.sqrt(sum(float(np.square(g, dtype=np.float64).sum()) for g in grads))
    assert got.norm == pytest.approx(norm, rel=1e-12, abs=1e-300)
    eps = np.finfo(dtype).eps
    for value, one in zip(values, ours, strict=True):
        assert np.abs(value - one).max(initial=0) <= 16 * eps * (np.abs(value).max(initial=0) + 1)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["b", "more"])
def test_an_overflow_skips_the_step_on_the_device(on_gpu, wrong, place):
    params = make()
    with on_gpu("shuffled"):
        optimizer, scaler = optim.Adam(params.items()), optim.LossScaler(8.0, growth_steps=2)
        gradients(0, params, 8)
        assert not optimizer.guarded_step(scaler=scaler)().skipped
        before = [p.data.copy() for p in params.values()]
        state = optimizer.state_dict()
        gradients(1, params, 8)
        params[place].grad[-1] = wrong
        outcome = optimizer.guarded_step(1.0, scaler)()
        assert outcome.skipped and outcome.scale == 8 and not math.isfinite(outcome.norm)
        assert optimizer.steps == 1 and scaler.scale == 4
        for p, value in zip(params.values(), before, strict=True):
            np.testing.assert_array_equal(p.data, value)
        for key, value in optimizer.state_dict().items():
            np.testing.assert_array_equal(value, state[key], err_msg=key)
        for good in (1, 2):  # the count began anew
            gradients(good, params, 4)
            assert not optimizer.guarded_step(scaler=scaler)().skipped
            assert scaler.scale == (4, 8)[good - 1]
        gradients(5, params)
        optimizer.step()
        assert optimizer.steps == 4


def test_the_host_may_look_later(on_gpu):
    """What a step's outcome says is of that step, also when others came after it."""
    params = make()
    with on_gpu():
        optimizer = optim.Adam(params.items())
        outcomes = []
        for step in range(3):
            gradients(step, params, 10.0**step)
            outcomes.append((optim.grad_norm(params.items()), optimizer.guarded_step()))
    for norm, outcome in outcomes:
        assert outcome().norm == pytest.approx(norm, rel=1e-12)


def test_training_goes_on_from_a_saved_state_bit_for_bit(on_gpu):
    def run(params, optimizer, scaler, steps):
        for step in steps:
            gradients(step, params, scaler.scale)
            if step == 2:
                params["w"].grad[0, 0] = np.inf
            optimizer.guarded_step(scaler=scaler)

    with on_gpu():
        whole, first, second = make(), make(), make()
        run(whole, optim.Adam(whole.items()), optim.LossScaler(4.0, 2), range(6))
        one, scaler = optim.Adam(first.items()), optim.LossScaler(4.0, 2)
        run(first, one, scaler, range(3))
        two, again = optim.Adam(second.items()), optim.LossScaler(16.0, 2)
        for name, p in second.items():
            p.data = first[name].data.copy()
        two.load_state_dict(one.state_dict())
        again.load_state_dict(scaler.state_dict())
        assert two.steps == 2
        run(second, two, again, range(3, 6))
    for name, p in whole.items():
        assert p.data.tobytes() == second[name].data.tobytes()


def test_the_table_is_sent_again_only_when_something_moved():
    table, arrays = launchers.Table(), [np.zeros(launchers.PIECE + 1, np.float32) for _ in range(5)]
    entry = launchers.Entry(*arrays[:4])
    table.set([entry])
    device, pieces = table.table, table.pieces
    assert table.blocks == 2 and pieces.tolist() == [[0, 0], [0, launchers.PIECE]]
    table.set([entry])
    assert table.table is device
    table.set([entry._replace(grad=arrays[4])])
    assert table.table is not device and table.pieces is pieces
    assert table.table[0, 1] == launchers.address(arrays[4])
    table.set([entry, entry])
    assert table.blocks == 4


def test_what_is_remembered_is_aligned_on_a_gpu(on_gpu):
    params = make()
    with on_gpu():
        optimizer = optim.Adam(params.items())
        starts = [(row.__array_interface__["data"][0] - first.__array_interface__["data"][0]) % 16
                  for array, start, stop in optimizer._memory.values()
                  for first in (array,) for row in array[:, start:stop]]
    assert set(starts) == {0}


def test_a_scaled_loss_gives_scaled_gradients():
    x = Tensor(np.arange(3, dtype=np.float32), requires_grad=True)
    scaler = optim.LossScaler(2.0**10)
    scaler.backward((x * x).sum())
    np.testing.assert_array_equal(x.grad, 2 * np.arange(3) * 2.0**10)


def test_without_gradients_nothing_is_wrong(on_gpu):
    params = make()
    with on_gpu():
        optimizer = optim.Adam(params.items())
        assert optimizer.guarded_step()() == optim.Outcome(0.0, False, 1.0)
        optimizer.step()


def test_a_gradient_of_another_shape_is_refused_before_anything_changes(on_gpu):
    params = make()
    with on_gpu():
        optimizer = optim.Adam(params.items())
        gradients(0, params)
        params["w"].grad = params["w"].grad.T
        with pytest.raises(ValueError, match="w: the gradient has shape"):
            optimizer.guarded_step()
        assert optimizer.steps == 0
        with pytest.raises(ValueError, match="max_norm: expected a positive number, got 0"):
            optimizer.guarded_step(max_norm=0)


def test_any_optimiser_takes_guarded_steps():
    """On the CPU, where the decision is the host's."""
    params = make(np.float64)
    optimizer, scaler = optim.SGD(params.items(), lr=0.5), optim.LossScaler(4.0)
    gradients(0, params, 4)
    before = {name: p.data.copy() for name, p in params.items()}
    norm = optim.grad_norm(params.items()) / 4
    assert optimizer.guarded_step(norm / 2, scaler)() == optim.Outcome(
        pytest.approx(norm), False, 4.0)
    for name, p in params.items():
        np.testing.assert_allclose(p.data, before[name] - 0.5 * p.grad, rtol=1e-12)
        assert not p.size or (p.grad != 0).any()
    params["b"].grad[0] = np.nan
    assert optimizer.guarded_step(scaler=scaler)().skipped
    assert scaler.scale == 2 and optimizer.steps == 1


@pytest.mark.parametrize(("state", "message"), [
    ({"scale": np.array(2.0)}, "missing .good_steps"),
    ({"scale": np.array(-2.0), "good_steps": np.array(0)}, "scale -2.0"),
    ({"scale": np.array(np.inf), "good_steps": np.array(0)}, "scale inf"),
    ({"scale": np.array(2.0), "good_steps": np.array(-1)}, "good_steps -1"),
    ({"scale": np.array(2.0), "good_steps": np.array(0), "x": np.array(0)}, "unexpected .x"),
    ({"scale": np.array([2.0]), "good_steps": np.array(0)}, "scale has shape"),
])
def test_a_scaler_refuses_a_wrong_state(state, message):
    scaler = optim.LossScaler(8.0)
    with pytest.raises(ValueError, match=message):
        scaler.load_state_dict(state)
    assert scaler.scale == 8


def test_a_scaler_refuses_what_is_no_scale():
    for arguments, name in (((0.0,), "scale"), ((np.nan,), "scale"), ((2.0, 0), "growth_steps")):
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            optim.LossScaler(*arguments)
    scaler = optim.LossScaler(2.0**24, growth_steps=1)
    scaler.move(skipped=False)
    assert scaler.scale == 2.0**24  # the largest
