"""The GRU on the CPU against a loop over sequences and steps, finite differences and PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlite.kernels import cpu

NAMES = ("x", "w_ih", "w_hh", "b_ih", "b_hh", "h0")


def reference(lengths, x, w_ih, w_hh, b_ih, b_hh, h0):
    """PyTorch's equations, gate order r, z, n."""

    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    out = np.zeros((*x.shape[:2], len(w_hh)))
    for i, length in enumerate(lengths):
        h = h0[i]
        for t in range(length):
            xr, xz, xn = np.split(x[i, t] @ w_ih + b_ih, 3)
            hr, hz, hn = np.split(h @ w_hh + b_hh, 3)
            r, z = sigmoid(xr + hr), sigmoid(xz + hz)
            n = np.tanh(xn + r * hn)
            h = out[i, t] = (1 - z) * n + z * h
    return out


@st.composite
def sequences(draw):
    batch, steps = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    return dict(
        seed=draw(st.integers(0, 2**31)),
        lengths=np.array([draw(st.integers(0, steps)) for _ in range(batch)]),
        steps=steps,
        features=draw(st.integers(1, 4)),
        hidden=draw(st.integers(1, 4)),
        dtype=draw(st.sampled_from(["float32", "float64"])),
        layout=draw(st.sampled_from(["plain", "strided", "transposed"])),
    )


def arguments(case, make_array, dtype):
    batch, hidden = len(case["lengths"]), case["hidden"]
    shapes = ((batch, case["steps"], case["features"]), (case["features"], 3 * hidden),
              (hidden, 3 * hidden), (3 * hidden,), (3 * hidden,), (batch, hidden))
    return [make_array(case["seed"] + i, s, dtype, case["layout"]) for i, s in enumerate(shapes)]


@given(case=sequences(), with_h0=st.booleans())
def test_forward(case, with_h0, make_array, assert_close):
    args = arguments(case, make_array, case["dtype"])
    if not with_h0:
        args[5] = None
    out, _ = cpu.gru_forward(args[0], case["lengths"], *args[1:])
    wide = [np.zeros((len(args[0]), case["hidden"])) if a is None else a.astype(np.float64)
            for a in args]
    assert out.dtype == args[0].dtype
    # States are below one; each step adds the roundings of its pre-activations, of a few units.
    assert_close(out, reference(case["lengths"], *wide), 4.0 * case["steps"])
    for i, length in enumerate(case["lengths"]):
        assert not out[i, length:].any()


@given(case=sequences())
def test_backward_against_central_differences(case, make_array):
    args = arguments(case, make_array, "float64")
    lengths = case["lengths"]
    out, saved = cpu.gru_forward(args[0], lengths, *args[1:])
    grad = make_array(case["seed"] + 9, out.shape, "float64", case["layout"])
    grads = cpu.gru_backward(grad, args[0], lengths, args[1], args[2], args[5], saved)
    rng = np.random.default_rng(case["seed"])
    for i, name in enumerate(NAMES):
        direction = rng.standard_normal(args[i].shape)
        step = 1e-5
        ends = []
        for sign in (1, -1):
            moved = [a + sign * step * direction if j == i else a for j, a in enumerate(args)]
            ends.append((reference(lengths, *moved) * grad).sum())
        numerical = (ends[0] - ends[1]) / (2 * step)
        assert grads[i].shape == args[i].shape
        assert (grads[i] * direction).sum() == pytest.approx(numerical, rel=1e-6, abs=1e-7), name
    assert cpu.gru_backward(grad, args[0], lengths, args[1], args[2], None, saved)[5] is None
    rest = cpu.gru_backward(
        grad, args[0], lengths, args[1], args[2], args[5], saved, need_dx=False
    )
    assert rest[0] is None
    for a, b in zip(rest[1:], grads[1:], strict=True):
        assert np.array_equal(a, b)


def test_what_lies_past_a_sequences_end_cannot_matter():
    rng = np.random.default_rng(0)
    x, grad = rng.standard_normal((2, 4, 3)), rng.standard_normal((2, 4, 5))
    weights = [rng.standard_normal(s) for s in ((3, 15), (5, 15), (15,), (15,), (2, 5))]
    lengths = np.array([4, 2])
    results = []
    for filler in (0.0, 1e3):
        x[1, 2:] = grad[1, 2:] = filler
        out, saved = cpu.gru_forward(x, lengths, *weights)
        grads = cpu.gru_backward(grad, x, lengths, *weights[:2], weights[4], saved)
        results.append([out, *grads])
    for a, b in zip(*results, strict=True):
        assert np.array_equal(a, b)
    assert not results[0][1][1, 2:].any()


def test_backward_twice_and_results_that_stay():
    """Neither what was saved nor what was returned is written to by later calls."""
    rng = np.random.default_rng(0)
    x, grad = rng.standard_normal((2, 4, 3)), rng.standard_normal((2, 4, 5))
    weights = [rng.standard_normal(s) for s in ((3, 15), (5, 15), (15,), (15,), (2, 5))]
    lengths = np.array([4, 2])
    out, saved = cpu.gru_forward(x, lengths, *weights)
    kept = [a.copy() for a in (out, *saved)]
    first = cpu.gru_backward(grad, x, lengths, *weights[:2], weights[4], saved)
    before = [a.copy() for a in first]
    cpu.gru_forward(x + 1, lengths, *weights)
    second = cpu.gru_backward(grad, x, lengths, *weights[:2], weights[4], saved)
    for a, b in zip([out, *saved, *first, *second], [*kept, *before, *before], strict=True):
        assert np.array_equal(a, b)


def test_large_inputs_do_not_overflow():
    x, lengths = np.full((1, 2, 1), 1e4, np.float32), np.array([2])
    for sign in (1, -1):
        weights = [np.full(s, sign, np.float32) for s in ((1, 3), (1, 3), (3,), (3,))]
        with np.errstate(all="raise", under="ignore"):
            out, saved = cpu.gru_forward(x, lengths, *weights, None)
            grads = cpu.gru_backward(out, x, lengths, *weights[:2], None, saved)
        assert np.isfinite(out).all() and all(np.isfinite(g).all() for g in grads[:5])


@pytest.mark.parametrize("batch, steps", [(0, 3), (2, 0)])
def test_nothing_to_do(batch, steps):
    x, lengths = np.zeros((batch, steps, 3)), np.zeros(batch, int)
    weights = [np.ones(s) for s in ((3, 6), (2, 6), (6,), (6,))]
    out, saved = cpu.gru_forward(x, lengths, *weights, None)
    grads = cpu.gru_backward(out, x, lengths, *weights[:2], None, saved)
    assert out.shape == (batch, steps, 2) and grads[0].shape == x.shape
    assert not any(g.any() for g in grads[:5])


@given(case=sequences())
def test_against_pytorch(case, make_array):
    torch = pytest.importorskip("torch")
    lengths = np.maximum(case["lengths"], 1)  # PyTorch packs no empty sequence
    args = arguments(case, make_array, "float64")
    gru = torch.nn.GRU(case["features"], case["hidden"], batch_first=True).double()
    theirs = (gru.weight_ih_l0, gru.weight_hh_l0, gru.bias_ih_l0, gru.bias_hh_l0)
    with torch.no_grad():
        for parameter, value in zip(theirs, args[1:5], strict=True):
            parameter.copy_(torch.tensor(value.T.copy()))
    tx = torch.tensor(args[0].copy(), requires_grad=True)
    th = torch.tensor(args[5][None].copy(), requires_grad=True)
    packed = torch.nn.utils.rnn.pack_padded_sequence(tx, lengths, True, False)
    result, _ = torch.nn.utils.rnn.pad_packed_sequence(
        gru(packed, th)[0], True, total_length=case["steps"]
    )
    out, saved = cpu.gru_forward(args[0], lengths, *args[1:])
    grad = make_array(case["seed"] + 9, out.shape, "float64", "plain")
    result.backward(torch.tensor(grad.copy()))
    grads = cpu.gru_backward(grad, args[0], lengths, args[1], args[2], args[5], saved)
    np.testing.assert_allclose(out, result.detach().numpy(), atol=1e-12)
    expected = [tx.grad.numpy(), *(p.grad.numpy().T for p in theirs), th.grad.numpy()[0]]
    for ours, other, name in zip(grads, expected, NAMES, strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-10, err_msg=name)
