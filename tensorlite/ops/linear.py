"""Matrix products."""

from __future__ import annotations

from math import prod

import numpy as np

from .. import kernels
from ..autograd import Function, Node
from ..device import Array
from ..tensor import Tensor
from .arguments import one_dtype
from .casting import as_dtype, for_products
from .elementwise import unbroadcast


def _product(a: Array, b: Array) -> Array:
    if a.ndim == b.ndim == 2:
        return kernels.of(a).matmul2d(a, b)
    return a @ b


class MatMul(Function):
    """a b; d/da = grad bᵀ, d/db = aᵀ grad. Leading axes are batches and broadcast."""

    @staticmethod
    def forward(ctx: Node, a: Array, b: Array) -> Array:
        ctx.save(a, b)
        return _product(a, b)

    @staticmethod
    def backward(ctx: Node, grad: Array) -> tuple[Array | None, ...]:
        a, b = ctx.saved
        # A vector on the left is a row, on the right a column: give each the axis it lacks.
        rows = a if a.ndim > 1 else a[None, :]
        columns = b if b.ndim > 1 else b[:, None]
        if b.ndim == 1:
            grad = grad[..., None]
        if a.ndim == 1:
            grad = grad[..., None, :]
        da = db = None
        if ctx.needs[0]:
            da = unbroadcast(_product(grad, columns.swapaxes(-1, -2)), rows.shape).reshape(a.shape)
        if ctx.needs[1]:
            db = unbroadcast(_product(rows.swapaxes(-1, -2), grad), columns.shape).reshape(b.shape)
        return da, db


def _rows(x: Array) -> Array:
    return x.reshape(prod(x.shape[:-1]), x.shape[-1])


class Linear(Function):
    """x W + b; d/dx = grad Wᵀ, d/dW = xᵀ grad, d/db = Σ grad over all leading axes."""

    @staticmethod
    def forward(ctx: Node, x: Array, weight: Array, bias: Array | None) -> Array:
        ctx.dtype, weight = weight.dtype, as_dtype(weight, x.dtype)
        ctx.save(x, weight)
        y = kernels.of(x).matmul2d(_rows(x), weight)
        if bias is not None:
            y += bias
        return y.reshape(*x.shape[:-1], weight.shape[1])

    @staticmethod
    def backward(ctx: Node, grad: Array) -> tuple[Array | None, ...]:
        x, weight = ctx.saved
        kernel, rows = kernels.of(grad), _rows(grad)
        dx = kernel.matmul2d(rows, weight.T).reshape(x.shape) if ctx.needs[0] else None
        dw = None
        if ctx.needs[1] and ctx.dtype == grad.dtype:
            dw = kernel.matmul2d(_rows(x).T, rows)
        elif ctx.needs[1]:  # of a parameter in full precision: that is what a convolution's is in
            a, b, w = (m[None, None] for m in (_rows(x), rows, weight))
            _, _, dw = kernel.conv2d_backward(a, b, w, needs=(False, True), stride=(1, 1),
                                              padding=(0, 0), dilation=(1, 1), groups=1)
            dw = dw[0, 0]
        db = rows.sum(axis=0, dtype=ctx.dtype) if ctx.needs[2] else None
        return dx, dw, db


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b by NumPy's rules: matrices in the last two axes, vectors as rows or columns."""
    a, b = (t if isinstance(t, Tensor) else Tensor(t) for t in (a, b))
    inner = (a.shape[-1], b.shape[-2 if b.ndim > 1 else 0]) if a.ndim and b.ndim else (0, 1)
    try:
        np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        fit = inner[0] == inner[1]
    except ValueError:
        fit = False
    if not fit:
        raise ValueError(f"matmul: shapes {a.shape} and {b.shape} do not fit together")
    return MatMul.apply(a, b)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W + b, applied to the last axis of `x`.

    x (..., C_in), weight (C_in, C_out), bias (C_out,) → (..., C_out).
    """
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[0]:
        raise ValueError(f"linear: expected x (..., C_in) and weight (C_in, C_out), "
                         f"got x {x.shape} and weight {weight.shape}")
    if bias is not None and bias.shape != weight.shape[1:]:
        raise ValueError(f"bias: expected shape {weight.shape[1:]}, got {bias.shape}")
    x = for_products(x)
    one_dtype(x, weight=weight, bias=bias)
    return Linear.apply(x, weight, bias)
