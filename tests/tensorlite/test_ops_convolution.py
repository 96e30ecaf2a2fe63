"""Convolution: larger than the table's examples, against SciPy; and what it refuses."""

from __future__ import annotations

import re

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import Tensor

from .op_cases import conv2d_reference


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("x", "weight", "options"), [
    ((2, 23, 19, 8), (3, 3, 8, 12), {"padding": 1}),
    ((2, 24, 18, 3), (7, 7, 3, 16), {"stride": 2, "padding": 3}),
    ((3, 14, 14, 16), (1, 1, 16, 8), {"stride": 2}),
    ((2, 15, 15, 8), (3, 3, 1, 8), {"padding": 1, "groups": 8}),
    ((1, 17, 13, 6), (2, 5, 3, 10), {"dilation": (3, 2), "groups": 2, "padding": (2, 4)}),
], ids=["3x3", "stem", "projection", "depthwise", "dilated"])
def test_layers_of_real_networks(dtype, x, weight, options):
    arrays = [draw(*x), draw(*weight, seed=1), draw(weight[3], seed=2)]
    arrays = [a.astype(dtype) for a in arrays]
    expected = conv2d_reference(*(a.astype(np.float64) for a in arrays), **options)
    y = tl.conv2d(*(Tensor(a) for a in arrays), **options)
    assert y.dtype == dtype
    # Rounding of a dot product of kh·kw·C terms, one after the other at worst.
    bound = np.prod(weight[:3]) * np.finfo(dtype).eps * np.abs(expected).max()
    np.testing.assert_allclose(y.numpy(), expected, rtol=0, atol=bound)
    if dtype == np.float64:
        tl.gradcheck(lambda *t: tl.conv2d(*t, **options), arrays, samples=10)


def test_integers_of_numpy_as_options():
    x, weight = Tensor(draw(1, 5, 5, 1)), Tensor(draw(3, 3, 1, 1))
    y = tl.conv2d(x, weight, stride=np.int64(2), padding=[np.int32(1), 0])
    assert y.shape == (1, 3, 2, 1)


def refused(message: str, x=(1, 5, 5, 4), weight=(3, 3, 4, 6), bias=None, **options) -> None:
    tensors = [None if s is None else Tensor(np.ones(s)) for s in (x, weight, bias)]
    with pytest.raises(ValueError, match=re.escape(message)):
        tl.conv2d(*tensors, **options)


def test_errors_name_argument_and_shapes():
    refused("conv2d: expected x (N, H, W, C) and weight (kh, kw, C/groups, C_out), got shapes "
            "(5, 5, 4) and (3, 3, 4, 6)", x=(5, 5, 4))
    refused("weight: of shape (3, 3, 4, 6) with groups 1 takes 4 input channels, x has 3",
            x=(1, 5, 5, 3))
    refused("weight: of shape (3, 3, 4, 6) with groups 2 takes 8 input channels, x has 4",
            groups=2)
    refused("groups: got 4, expected a positive divisor of the 6 output channels", groups=4)
    refused("groups: got 0, expected a positive divisor", groups=0)
    refused("groups: got 1.0, expected a positive divisor", groups=1.0)
    refused("weight: no length may be 0, got shape (0, 3, 4, 6)", weight=(0, 3, 4, 6))
    refused("bias: expected shape (6,), got (4,)", bias=(4,))
    refused("stride: expected an integer >= 1 or a pair of them, got 0", stride=0)
    refused("stride: expected an integer >= 1 or a pair of them, got 1.5", stride=1.5)
    refused("padding: expected an integer >= 0 or a pair of them, got (1, 2, 3)",
            padding=(1, 2, 3))
    refused("dilation: expected an integer >= 1 or a pair of them, got (1, 0)", dilation=(1, 0))
    refused("padding: expected an integer >= 0 or a pair of them, got 'same'", padding="same")
    refused("conv2d: a window of 7x7 does not fit an input of 5x5 with padding (0, 0)", dilation=3)


def test_dtypes_must_agree():
    x, weight = Tensor(np.ones((1, 3, 3, 1))), Tensor(np.ones((3, 3, 1, 1), np.float32))
    with pytest.raises(TypeError, match="weight: expected the dtype float64 of x, got float32"):
        tl.conv2d(x, weight)
    with pytest.raises(TypeError, match="x: expected a floating-point tensor, got int64"):
        tl.conv2d(Tensor(np.ones((1, 3, 3, 1), int)), weight)
