"""The GPU's GRU, run by the emulator, against the CPU kernels in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlite.kernels import cpu
from tensorlite.kernels.cuda import recurrence
from tensorlite.kernels.cuda.launch import running_on, sums_dtype
from tests.cuda_on_cpu.emulator import Emulator
from tests.tensorlite.campaign import examples

NAMES = ("dx", "dw_ih", "dw_hh", "db_ih", "db_hh", "dh0")


@pytest.fixture(autouse=True, scope="module")
def needs_the_emulator(schedules):
    pass


@st.composite
def sequences(draw):
    batch, steps = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    whole = draw(st.booleans())
    lengths = [steps if whole else draw(st.integers(0, steps)) for _ in range(batch)]
    return dict(
        seed=draw(st.integers(0, 2**31)),
        lengths=np.array(lengths),
        steps=steps,
        features=draw(st.integers(1, 4)),
        hidden=draw(st.sampled_from([1, 2, 3, 5, 16])),
        layout=draw(st.sampled_from(["plain", "strided", "transposed"])),
        schedule=draw(st.sampled_from(["forward", "reverse", "shuffled"])),
    )


def arguments(case, make_array):
    """x, w_ih, w_hh, b_ih, b_hh and h0."""
    batch, hidden = len(case["lengths"]), case["hidden"]
    shapes = ((batch, case["steps"], case["features"]), (case["features"], 3 * hidden),
              (hidden, 3 * hidden), (3 * hidden,), (3 * hidden,), (batch, hidden))
    return [make_array(case["seed"] + i, s, case["dtype"], case["layout"])
            for i, s in enumerate(shapes)]


class emulated:
    def __init__(self, case):
        self.patch, self.shared = pytest.MonkeyPatch(), case["shared"]
        self.running = running_on(Emulator(case["schedule"]))

    def __enter__(self):
        self.patch.setattr(recurrence, "ENOUGH", self.shared)
        self.running.__enter__()

    def __exit__(self, *error):
        self.running.__exit__(*error)
        self.patch.undo()


def wide(*arrays):
    return [None if a is None else a.astype(np.float64) for a in arrays]


def both_ways(kernels, grad, lengths, x, w_ih, w_hh, b_ih, b_hh, h0):
    out, saved = kernels.gru_forward(x, lengths, w_ih, w_hh, b_ih, b_hh, h0)
    return out, kernels.gru_backward(grad, x, lengths, w_ih, w_hh, h0, saved)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shared", [64 << 10, 0], ids=["several in a block", "one in a block"])
@examples(5)
@given(case=sequences(), with_h0=st.booleans())
def test_against_the_cpu(case, with_h0, dtype, shared, make_array):
    case |= {"dtype": dtype, "shared": shared}
    args = arguments(case, make_array)
    if not with_h0:
        args[5] = None
    shape = (*args[0].shape[:2], case["hidden"])
    grad = make_array(case["seed"] + 9, shape, case["dtype"], case["layout"])
    with emulated(case):
        out, grads = both_ways(recurrence, grad, case["lengths"], *args)
    expected, expected_grads = both_ways(cpu, *wide(grad), case["lengths"], *wide(*args))
    dtype = args[0].dtype
    # States are below one; each step adds the roundings of its pre-activations, of a few units.
    # What is kept in float16 between kernels is rounded to it: products, states, gate gradients.
    unit = 2 * np.finfo(np.float16).eps if dtype == np.float16 else 64 * np.finfo(dtype).eps
    assert out.dtype == dtype
    np.testing.assert_allclose(out.astype(np.float64), expected, rtol=0,
                               atol=4 * case["steps"] * unit)
    for i, length in enumerate(case["lengths"]):
        assert not out[i, length:].any()
    for name, ours, other in zip(NAMES, grads, expected_grads, strict=True):
        if other is None:
            assert ours is None and name == "dh0"
            continue
        assert ours.dtype == (dtype if name in ("dx", "dh0") else sums_dtype(dtype)), name
        bound = 4 * case["steps"] * unit * max(1.0, abs(other).max(initial=0))
        np.testing.assert_allclose(ours.astype(np.float64), other, rtol=0, atol=bound,
                                   err_msg=name)


@pytest.mark.parametrize("hidden", [130, 515])
def test_slices_of_products_and_more_units_than_threads(emulator, make_array, hidden):
    case = dict(seed=0, lengths=np.array([2, 1]), steps=2, features=3, hidden=hidden,
                dtype="float32", layout="plain")
    args = arguments(case, make_array)
    args[2] = args[2] / np.sqrt(hidden).astype(np.float32)
    grad = make_array(9, (2, 2, hidden), "float32", "plain")
    out, grads = both_ways(recurrence, grad, case["lengths"], *args)
    expected, expected_grads = both_ways(cpu, *wide(grad), case["lengths"], *wide(*args))
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for name, ours, other in zip(NAMES, grads, expected_grads, strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-5 * abs(other).max(), err_msg=name)


def test_what_lies_past_a_sequences_end_cannot_matter(emulator):
    rng = np.random.default_rng(0)
    x, grad = rng.standard_normal((2, 4, 3)), rng.standard_normal((2, 4, 5))
    weights = [rng.standard_normal(s) for s in ((3, 15), (5, 15), (15,), (15,), (2, 5))]
    results = []
    for filler in (0.0, 1e3):
        x[1, 2:] = grad[1, 2:] = filler
        out, grads = both_ways(recurrence, grad, np.array([4, 2]), x, *weights)
        results.append([out, *grads])
    for a, b in zip(*results, strict=True):
        assert np.array_equal(a, b)
    assert not results[0][1][1, 2:].any()


def test_backward_twice_and_the_same_bits_in_each_order(schedules):
    rng = np.random.default_rng(0)
    x, grad = rng.standard_normal((6, 4, 3)), rng.standard_normal((6, 4, 5))
    weights = [rng.standard_normal(s) for s in ((3, 15), (5, 15), (15,), (15,), (6, 5))]
    lengths, results = np.array([4, 2, 0, 1, 3, 4]), []
    for schedule in schedules:
        with running_on(Emulator(schedule)):
            out, saved = recurrence.gru_forward(x, lengths, *weights)
            for _ in range(2):
                grads = recurrence.gru_backward(grad, x, lengths, *weights[:2], weights[4], saved)
                results.append([a.tobytes() for a in (out, *grads)])
            rest = recurrence.gru_backward(grad, x, lengths, *weights[:2], weights[4], saved,
                                           need_dx=False)
            assert rest[0] is None and rest[1].tobytes() == results[0][2]
    assert all(result == results[0] for result in results)


def test_large_inputs_do_not_overflow(emulator):
    x, lengths = np.full((1, 2, 1), 1e4, np.float32), np.array([2])
    for sign in (1, -1):
        weights = [np.full(s, sign, np.float32) for s in ((1, 3), (1, 3), (3,), (3,))]
        out, grads = both_ways(recurrence, np.ones((1, 2, 1), np.float32), lengths, x, *weights,
                               None)
        assert np.isfinite(out).all() and all(np.isfinite(g).all() for g in grads[:5])


@pytest.mark.parametrize("batch, steps", [(0, 3), (2, 0)])
def test_nothing_to_do(emulator, batch, steps):
    x, lengths = np.zeros((batch, steps, 3)), np.zeros(batch, int)
    weights = [np.ones(s) for s in ((3, 6), (2, 6), (6,), (6,))]
    out, saved = recurrence.gru_forward(x, lengths, *weights, None)
    grads = recurrence.gru_backward(out, x, lengths, *weights[:2], None, saved)
    assert out.shape == (batch, steps, 2) and grads[0].shape == x.shape
    assert [g.shape for g in grads[1:5]] == [w.shape for w in weights]
    assert not any(g.any() for g in grads[:5])


def test_more_units_than_a_block_can_hold(monkeypatch):
    monkeypatch.setattr(recurrence, "MOST", 1000)
    x, weights = np.zeros((1, 1, 1)), [np.zeros(s) for s in ((1, 6), (2, 6), (6,), (6,))]
    with (running_on(Emulator()), pytest.raises(ValueError, match="2 units of float64")):
        recurrence.gru_forward(x, np.array([1]), *weights, None)
