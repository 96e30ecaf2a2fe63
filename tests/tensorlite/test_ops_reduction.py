"""Reductions: equal maxima, empty axes, errors."""

from __future__ import annotations

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import Tensor


def test_equal_maxima_share_the_gradient():
    x = Tensor(np.array([[3.0, 1.0, 3.0], [2.0, 2.0, 2.0]]), requires_grad=True)
    tl.max(x, axis=1).backward(np.array([1.0, 6.0]))
    np.testing.assert_allclose(x.grad, [[0.5, 0, 0.5], [2, 2, 2]])


def test_sum_of_nothing_is_zero():
    x = Tensor(np.zeros((0, 3)), requires_grad=True)
    y = tl.sum(x, axis=0)
    assert y.numpy().tolist() == [0, 0, 0]
    y.backward(np.ones(3))
    assert x.grad.shape == (0, 3)


@pytest.mark.parametrize("op", [tl.mean, tl.max])
def test_nothing_to_reduce(op):
    for axis in (None, 0, (0, 1)):
        with pytest.raises(ValueError, match=rf"{op.__name__}: a tensor of shape \(0, 3\) has no"):
            op(Tensor(np.zeros((0, 3))), axis)
    assert op(Tensor(np.zeros((0, 3))), axis=1).shape == (0,)


@pytest.mark.parametrize("op", [tl.sum, tl.mean, tl.max])
def test_axes_that_are_not_there(op):
    x = Tensor(np.ones((2, 3)))
    for axis in (2, -3, (0, 2)):
        with pytest.raises(ValueError, match=rf"{op.__name__}: axis -?\d is out of range for a "
                                             r"tensor of shape \(2, 3\)"):
            op(x, axis)
    with pytest.raises(ValueError, match=rf"{op.__name__}: axis \(0, -2\) names an axis twice"):
        op(x, (0, -2))
    for axis in (1.0, "0", (0, None)):
        with pytest.raises(TypeError, match=rf"{op.__name__}: axis .* is neither an int nor a "):
            op(x, axis)


def test_gradient_of_a_mean_of_more_than_float16_can_count():
    x = Tensor(np.ones(70_000, np.float16), requires_grad=True)
    x.mean().backward()
    np.testing.assert_allclose(x.grad, 1 / 70_000, rtol=1e-2)


@pytest.mark.parametrize("op", [tl.sum, tl.mean, tl.max])
def test_axes_of_numpy(op):
    x = Tensor(np.arange(6.0).reshape(2, 3))
    for axis in (np.int64(-1), (np.int32(0), np.int64(1)), [0, 1]):
        plain = tuple(map(int, axis)) if isinstance(axis, tuple | list) else int(axis)
        np.testing.assert_array_equal(op(x, axis).numpy(), op(x, plain).numpy())
