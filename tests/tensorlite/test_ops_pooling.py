"""Pooling: ties, padding, overlap, NaN; and what it refuses."""

from __future__ import annotations

import re

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import Tensor


def image(rows: list[list[float]]) -> Tensor:
    return Tensor(np.array(rows, np.float64)[None, :, :, None], requires_grad=True)


def test_the_first_of_equal_maxima_gets_the_gradient():
    x = image([[1, 1], [1, 1]])
    tl.max_pool2d(x, 2).sum().backward()
    assert x.grad[0, :, :, 0].tolist() == [[1, 0], [0, 0]]


def test_overlapping_windows_add_up():
    x = image([[0, 0, 0], [0, 5, 0], [0, 0, 0]])
    y = tl.max_pool2d(x, 2, stride=1)
    y.backward(np.array([1.0, 2, 4, 8]).reshape(1, 2, 2, 1))
    assert x.grad[0, :, :, 0].tolist() == [[0, 0, 0], [0, 15, 0], [0, 0, 0]]


def test_padding_never_wins():
    x = image([[-3, -2], [-4, -5]])
    y = tl.max_pool2d(x, 3, stride=2, padding=1)
    assert y.numpy().ravel().tolist() == [-2]
    y.sum().backward()
    assert x.grad[0, :, :, 0].tolist() == [[0, 1], [0, 0]]


def test_not_a_number_is_passed_on():
    y = tl.max_pool2d(image([[1, np.nan, 2, 3]]), (1, 2))
    np.testing.assert_array_equal(y.numpy().ravel(), [np.nan, 3])


def test_average_counts_padding_as_zeros():
    y = tl.avg_pool2d(image([[4, 8], [12, 16]]), 2, stride=2, padding=1)
    assert y.numpy().ravel().tolist() == [1, 2, 3, 4]


def test_a_kernel_of_more_than_256_cells():
    x = np.random.default_rng(0).permutation(np.arange(18.0 * 18)).reshape(1, 18, 18, 1)
    tensor = Tensor(x, requires_grad=True)
    tl.max_pool2d(tensor, 18).sum().backward()
    np.testing.assert_array_equal(tensor.grad, x == x.max())


@pytest.mark.parametrize("op", [tl.max_pool2d, tl.avg_pool2d])
def test_errors_name_argument_and_shapes(op):
    name = op.__name__

    def refused(message: str, shape=(1, 4, 4, 2), *args, **options) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            op(Tensor(np.ones(shape)), *args, **options)

    refused(f"{name}: expected x (N, H, W, C), got shape (4, 4, 2)", (4, 4, 2), 2)
    refused(f"{name}: expected x (N, H, W, C) with H, W > 0, got (1, 0, 4, 2)", (1, 0, 4, 2), 2,
            padding=1)
    refused("kernel: expected an integer >= 1 or a pair of them, got 0", kernel=0)
    refused("stride: expected an integer >= 1 or a pair of them, got (2,)", kernel=2, stride=(2,))
    refused("padding: got 2, expected at most half the kernel (3, 3)", kernel=3, padding=2)
    refused(f"{name}: a window of 5x5 does not fit an input of 4x4 with padding (0, 0)", kernel=5)
    with pytest.raises(TypeError, match="x: expected a floating-point tensor, got int64"):
        op(Tensor(np.ones((1, 4, 4, 2), int)), 2)


def test_global_average_errors():
    for shape in ((4, 4, 2), (1, 0, 4, 2)):
        with pytest.raises(ValueError, match=re.escape(
                f"global_avg_pool: expected x (N, H, W, C) with H, W > 0, got {shape}")):
            tl.global_avg_pool(Tensor(np.ones(shape)))
    with pytest.raises(TypeError, match="x: expected a floating-point tensor"):
        tl.global_avg_pool(Tensor(np.ones((1, 2, 2, 1), int)))
