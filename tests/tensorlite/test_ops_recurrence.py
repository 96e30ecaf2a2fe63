"""The temporal skip keeps to its chunk; recurrent weights' gradients at several lengths; errors."""

from __future__ import annotations

import re

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import Tensor


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def test_skip_looks_one_frame_back_inside_its_chunk():
    y = Tensor(np.zeros((6, 1)))
    x = Tensor(np.arange(1.0, 7.0)[:, None], requires_grad=True)
    out = tl.temporal_skip(y, x, frames=3)
    assert out.numpy().ravel().tolist() == [0, 1, 2, 0, 4, 5]
    out.backward(10 ** np.arange(6.0)[:, None])
    assert x.grad.ravel().tolist() == [10, 100, 0, 1e4, 1e5, 0]


def test_skip_with_frames_left_out():
    y, x = np.zeros((6, 1)), np.arange(1.0, 7.0)[:, None]
    late = [1, 2, 4, 5]  # frames 2 and 3 of each chunk of 3
    whole = tl.temporal_skip(Tensor(y), Tensor(x), 3).numpy()
    np.testing.assert_array_equal(tl.temporal_skip(Tensor(y[late]), Tensor(x), 3).numpy(),
                                  whole[late])
    np.testing.assert_array_equal(tl.temporal_skip(Tensor(y), Tensor(x[[0, 1, 3, 4]]), 3).numpy(),
                                  whole)


def test_one_frame_has_no_predecessor():
    y, x = draw(3, 2), draw(3, 2, seed=1)
    np.testing.assert_array_equal(tl.temporal_skip(Tensor(y), Tensor(x), 1).numpy(), y)


@pytest.mark.parametrize(("y", "x", "frames"), [
    ((6, 2), (6, 3), 3), ((6, 2), (6, 2), 4), ((6, 2), (3, 2), 3), ((), (), 2), ((5, 2), (4, 2), 3),
])
def test_skip_of_shapes_that_do_not_fit(y, x, frames):
    with pytest.raises(ValueError) as caught:
        tl.temporal_skip(Tensor(np.ones(y)), Tensor(np.ones(x)), frames)
    assert str(caught.value) == (
        f"temporal_skip: expected y and x of one shape (B*{frames}, ...), one of them perhaps "
        f"(B*{frames - 1}, ...), got {y} and {x}")


@pytest.mark.parametrize("frames", [0, -1, 2.0, None])
def test_skip_over_no_number_of_frames(frames):
    with pytest.raises(ValueError, match=f"frames: expected an integer >= 1, got {frames!r}"):
        tl.temporal_skip(Tensor(np.ones((2, 1))), Tensor(np.ones((2, 1))), frames)


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_gradient_of_a_recurrent_skip_weight(steps: int):
    """y_t = x_t + x_{t-1} W, twice over: dW = Σ_t x_{t-1}ᵀ dy_t, not the same frame's x_t."""

    def network(x: Tensor, weight: Tensor) -> Tensor:
        for _ in range(2):
            x = tl.tanh(tl.temporal_skip(x, tl.linear(x, weight), steps))
        return x

    tl.gradcheck(network, [draw(2 * steps, 3), draw(3, 3, seed=1)])


def gru_arguments(batch: int, steps: int, features: int = 2, hidden: int = 3) -> list[np.ndarray]:
    shapes = ((batch, steps, features), (features, 3 * hidden), (hidden, 3 * hidden),
              (3 * hidden,), (3 * hidden,), (batch, hidden))
    return [draw(*s, seed=i) for i, s in enumerate(shapes)]


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_gradient_of_the_recurrent_weights(steps: int):
    lengths = [steps, max(0, steps - 2)]
    tl.gradcheck(lambda x, *rest: tl.gru(x, lengths, *rest), gru_arguments(2, steps))


def test_what_is_past_the_end_of_a_sequence_does_not_matter():
    arrays = gru_arguments(3, 4)
    lengths = [4, 2, 0]
    results = []
    for junk in (0.0, 1e3):
        x = arrays[0].copy()
        x[1, 2:] = x[2] = junk
        tensors = [Tensor(a, requires_grad=True) for a in (x, *arrays[1:])]
        out = tl.gru(tensors[0], lengths, *tensors[1:])
        cotangent = draw(3, 4, 3, seed=9)
        cotangent[1, 2:] = cotangent[2] = junk
        out.backward(cotangent)
        results.append([out.numpy(), *(t.grad for t in tensors)])
        assert not out.numpy()[1, 2:].any()
        assert not out.numpy()[2].any()
        assert not tensors[0].grad[1, 2:].any()
    for one, two in zip(*results, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-12, atol=1e-13)


def test_a_batch_is_as_good_as_one_sequence_at_a_time():
    x, *weights, h0 = gru_arguments(3, 4)
    lengths = [3, 4, 1]
    together = tl.gru(Tensor(x), lengths, *map(Tensor, weights), Tensor(h0)).numpy()
    for b, steps in enumerate(lengths):
        alone = tl.gru(Tensor(x[b:b + 1, :steps]), None, *map(Tensor, weights),
                       Tensor(h0[b:b + 1])).numpy()
        np.testing.assert_allclose(together[b, :steps], alone[0], rtol=1e-12, atol=1e-14)


def test_changing_the_lengths_before_backward_is_noticed():
    lengths = np.array([2, 3])
    tensors = [Tensor(a, requires_grad=True) for a in gru_arguments(2, 3)]
    out = tl.gru(tensors[0], lengths, *tensors[1:]).sum()
    lengths[0] = 3
    with pytest.raises(RuntimeError, match="^gru: an array of shape"):
        out.backward()


def test_gru_errors_name_argument_and_shapes():
    def refused(message: str, lengths=None, error: type[Exception] = ValueError, **changed):
        names = ("x", "w_ih", "w_hh", "b_ih", "b_hh", "h0")
        arrays = dict(zip(names, gru_arguments(2, 4), strict=True)) | changed
        with pytest.raises(error, match=re.escape(message)):
            tl.gru(lengths=lengths, **{n: Tensor(a) for n, a in arrays.items()})

    refused("gru: expected x (B, T, F) and w_hh (H, 3 H), got (2, 4) and (3, 9)", x=draw(2, 4))
    refused("w_ih: expected shape (2, 9), got (3, 9)", w_ih=draw(3, 9))
    refused("w_hh: expected shape (3, 9), got (3, 6)", w_hh=draw(3, 6))
    refused("b_ih: expected shape (9,), got (3,)", b_ih=draw(3))
    refused("b_hh: expected shape (9,), got (1, 9)", b_hh=draw(1, 9))
    refused("h0: expected shape (2, 3), got (3,)", h0=draw(3))
    refused("lengths: expected 2 integers, got int64 of shape (3,)", [1, 2, 3])
    refused("lengths: expected 2 integers, got float64 of shape (2,)", [1.0, 2.0])
    refused("lengths: expected values in [0, 4], got 1 to 5", [1, 5])
    refused("lengths: expected values in [0, 4], got -1 to 2", [-1, 2])
    refused("b_ih: expected the dtype float64 of x, got float32", error=TypeError,
            b_ih=draw(9).astype(np.float32))
