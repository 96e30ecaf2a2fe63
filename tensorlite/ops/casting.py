"""From one floating-point dtype to another, and what products take in within `autocast`."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import kernels
from ..autograd import Function, Node
from ..device import Array
from ..precision import products_dtype
from ..tensor import Tensor


def as_dtype(x: Array, dtype: Any) -> Array:
    """x itself if it is of `dtype`, otherwise rounded to it."""
    return x if x.dtype == dtype else kernels.of(x).cast(x, dtype)


class Cast(Function):
    """x in another floating-point dtype; the gradient comes back in that of x."""

    @staticmethod
    def forward(ctx: Node, x: Array, *, dtype: np.dtype) -> Array:
        ctx.dtype = x.dtype
        return as_dtype(x, dtype)

    @staticmethod
    def backward(ctx: Node, grad: Array) -> Array:
        return as_dtype(grad, ctx.dtype)


def cast(x: Tensor, dtype: Any) -> Tensor:
    """`x` itself if it is of the floating-point `dtype`, otherwise a copy rounded to it."""
    dtype = np.dtype(dtype)
    if x.dtype.kind != "f" or dtype.kind != "f":
        raise TypeError(f"cast: from one floating-point dtype to another, got {x.dtype} to {dtype}")
    return x if x.dtype == dtype else Cast.apply(x, dtype=dtype)


def for_products(x: Tensor) -> Tensor:
    """`x` as products take it: within `autocast`, float32 is cast. ValueError on the CPU, whose
    products are of float32 and float64."""
    dtype = products_dtype()
    if dtype is None or x.dtype != np.float32:
        return x
    if kernels.of(x.data) is kernels.cpu:
        raise ValueError(f"autocast: products in {dtype} need a CUDA device, x is on {x.device}")
    return cast(x, dtype)
