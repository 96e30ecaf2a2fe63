"""The recurrent layer that is composed of simple ops: its equations, its ends, its parity."""

from __future__ import annotations

import re

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import Tensor
from tensorlite.nn import LSTM

LENGTHS = np.array([5, 2, 4])


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def make(cin: int = 3, hidden: int = 4) -> LSTM:
    """An LSTM in float64 with weights large enough to bend its functions."""
    layer = LSTM(cin, hidden, rng=0).to(dtype=np.float64)
    for i, p in enumerate(layer.parameters()):
        p.data = draw(*p.shape, seed=10 + i)
    return layer


def sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


def reference(x: np.ndarray, length: int, h: np.ndarray, c: np.ndarray,
              layer: LSTM) -> np.ndarray:
    """The states (T, H) of one sequence (T, F), gate by gate and step by step."""
    n = layer.hidden
    part = {gate: slice(k * n, (k + 1) * n) for k, gate in enumerate("ifgo")}
    w_x, w_h = layer.w_ih.data, layer.w_hh.data
    bias = layer.b_ih.data + layer.b_hh.data
    out = np.zeros((len(x), n))
    for t in range(length):
        a = {gate: x[t] @ w_x[:, s] + h @ w_h[:, s] + bias[s] for gate, s in part.items()}
        c = sigmoid(a["f"]) * c + sigmoid(a["i"]) * np.tanh(a["g"])
        h = sigmoid(a["o"]) * np.tanh(c)
        out[t] = h
    return out


def test_its_equations():
    layer, x = make(), draw(3, 5, 3)
    h0, c0 = draw(3, 4, seed=1), draw(3, 4, seed=2)
    expected = [reference(*one, layer) for one in zip(x, LENGTHS, h0, c0, strict=True)]
    out = layer(Tensor(x), LENGTHS, Tensor(h0), Tensor(c0))
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-12, atol=1e-14)
    zeros = np.zeros(4)
    expected = [reference(one, 5, zeros, zeros, layer) for one in x]
    np.testing.assert_allclose(layer(Tensor(x)).numpy(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_gradients_with_ragged_lengths(steps: int):
    layer = LSTM(2, 3)
    shapes = [p.shape for p in layer.parameters()]

    def run(x: Tensor, h0: Tensor, c0: Tensor, *weights: Tensor) -> Tensor:
        for name, weight in zip(("w_ih", "w_hh", "b_ih", "b_hh"), weights, strict=True):
            vars(layer)[name] = weight  # a plain tensor, which an assignment would refuse
        return layer(x, np.array([steps, max(0, steps - 2)]), h0, c0)

    arrays = [draw(*s, seed=i) for i, s in enumerate([(2, steps, 2), (2, 3), (2, 3), *shapes])]
    tl.gradcheck(run, arrays)


def test_what_is_past_the_end_of_a_sequence_does_not_matter():
    layer, results = make(), []
    for junk in (0.0, 1e3):
        x, cotangent = draw(3, 5, 3), draw(3, 5, 4, seed=9)
        for b, length in enumerate(LENGTHS):
            x[b, length:] = cotangent[b, length:] = junk
        inputs = Tensor(x, requires_grad=True)
        layer.zero_grad()
        out = layer(inputs, LENGTHS)
        out.backward(cotangent)
        results.append([out.numpy(), inputs.grad, *(p.grad for p in layer.parameters())])
        for b, length in enumerate(LENGTHS):
            assert out.numpy()[b, :length].all() and not out.numpy()[b, length:].any()
            assert inputs.grad[b, :length].all() and not inputs.grad[b, length:].any()
    for one, two in zip(*results, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("lengths", [LENGTHS, None])
@pytest.mark.parametrize("initial", [False, True])
def test_parity_with_torch(lengths, initial: bool):
    """States and every gradient to 1e-10 of the largest value, in float64."""
    torch = pytest.importorskip("torch")
    layer, other = make(), torch.nn.LSTM(3, 4, batch_first=True, dtype=torch.float64)
    theirs = (other.weight_ih_l0, other.weight_hh_l0, other.bias_ih_l0, other.bias_hh_l0)
    with torch.no_grad():
        for p, q in zip(layer.parameters(), theirs, strict=True):
            q.copy_(torch.tensor(p.data.T))
    arrays = [draw(3, 5, 3)] + [draw(3, 4, seed=s) for s in (1, 2)] * initial
    mine = [Tensor(a, requires_grad=True) for a in arrays]
    x, *start = (torch.tensor(a, requires_grad=True) for a in arrays)
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        x, torch.tensor([5] * 3 if lengths is None else lengths), batch_first=True,
        enforce_sorted=False)
    states, _ = other(packed, tuple(s[None] for s in start) or None)
    expected, _ = torch.nn.utils.rnn.pad_packed_sequence(states, batch_first=True, total_length=5)
    out = layer(mine[0], lengths, *mine[1:])
    out.backward(draw(3, 5, 4, seed=9))
    expected.backward(torch.tensor(draw(3, 5, 4, seed=9)))
    pairs = [(out.numpy(), expected.detach())]
    pairs += [(m.grad, t.grad) for m, t in zip(mine, (x, *start), strict=True)]
    pairs += [(p.grad.T, q.grad) for p, q in zip(layer.parameters(), theirs, strict=True)]
    for value, target in pairs:
        target = target.numpy()
        np.testing.assert_allclose(value, target, rtol=0, atol=1e-10 * np.abs(target).max())


def test_how_it_starts():
    layer = LSTM(3, 100, rng=0)
    assert [(n, p.shape) for n, p in layer.named_parameters()] == [
        ("w_ih", (3, 400)), ("w_hh", (100, 400)), ("b_ih", (400,)), ("b_hh", (400,))]
    assert repr(layer) == "LSTM(3, 100)"
    forget = slice(100, 200)
    np.testing.assert_array_equal(layer.b_ih.data[forget] + layer.b_hh.data[forget], 1)
    for p in layer.parameters():
        others = np.delete(p.data, np.r_[forget], axis=-1)
        assert 0.09 < np.abs(others).max() <= 0.1 + 1e-6
    assert np.array_equal(layer.w_ih.data, LSTM(3, 100, rng=0).w_ih.data)
    assert not np.array_equal(layer.w_ih.data, LSTM(3, 100, rng=1).w_ih.data)


def test_a_cell_that_forgets_nothing_adds_up():
    """Gates held open: c counts what comes in, however long the sequence, and h is its tanh."""
    layer = LSTM(1, 1).to(dtype=np.float64)
    layer.w_ih.data = np.array([[0.0, 0, 1, 0]])
    layer.w_hh.data = np.zeros((1, 4))
    layer.b_ih.data = np.array([100.0, 100, 0, 100])
    layer.b_hh.data = np.zeros(4)
    x = draw(2, 30, 1) / 10
    expected = np.tanh(np.cumsum(np.tanh(x), axis=1))
    np.testing.assert_allclose(layer(Tensor(x)).numpy(), expected, rtol=1e-12)


def test_errors_name_argument_and_shapes():
    def refused(message: str, x=(2, 4, 3), lengths=None, h0=None, c0=None):
        start = [None if s is None else Tensor(draw(*s)) for s in (h0, c0)]
        with pytest.raises(ValueError, match=re.escape(message)):
            make()(Tensor(draw(*x)), lengths, *start)

    refused("x: expected shape (B, T >= 1, 3), got (2, 3)", x=(2, 3))
    refused("x: expected shape (B, T >= 1, 3), got (2, 4, 5)", x=(2, 4, 5))
    refused("x: expected shape (B, T >= 1, 3), got (2, 0, 3)", x=(2, 0, 3))
    refused("h0: expected shape (2, 4), got (2, 3)", h0=(2, 3))
    refused("c0: expected shape (2, 4), got (1, 4)", h0=(2, 4), c0=(1, 4))
    refused("lengths: expected 2 integers, got int64 of shape (3,)", lengths=[1, 2, 3])
    refused("lengths: expected 2 integers, got float64 of shape (2,)", lengths=[1.0, 2.0])
    refused("lengths: expected values in [0, 4], got 1 to 5", lengths=[1, 5])
    refused("lengths: expected values in [0, 4], got -1 to 2", lengths=[-1, 2])
    with pytest.raises(ValueError, match="LSTM: hidden is an int >= 1, got 0"):
        LSTM(3, 0)
