"""Sums, means and maxima over axes."""

from __future__ import annotations

import operator
from math import prod

import numpy as np

from ..autograd import Function, Node
from ..device import Array, array_module
from ..tensor import Tensor

Axes = int | tuple[int, ...] | None


def _axes(name: str, x: Tensor, axis: Axes) -> tuple[int, ...]:
    try:
        axes = tuple(range(x.ndim)) if axis is None else tuple(
            operator.index(a) for a in ((axis,) if isinstance(axis, int | np.integer) else axis))
    except TypeError:
        raise TypeError(f"{name}: axis {axis!r} is neither an int nor a tuple of ints") from None
    for a in axes:
        if not -x.ndim <= a < x.ndim:
            raise ValueError(f"{name}: axis {a} is out of range for a tensor of shape {x.shape}")
    axes = tuple(a % x.ndim for a in axes)
    if len(set(axes)) != len(axes):
        raise ValueError(f"{name}: axis {axis} names an axis twice")
    return axes


def _expand(array: Array, axes: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """Undo the loss of `axes`: the reduced `array` repeated to the full `shape` (a view)."""
    kept = tuple(1 if i in axes else n for i, n in enumerate(shape))
    return array_module(array).broadcast_to(array.reshape(kept), shape)


class Sum(Function):
    """Σ x over axes; d/dx = 1."""

    @staticmethod
    def forward(ctx: Node, x: Array, *, axes: tuple[int, ...], keepdims: bool) -> Array:
        ctx.shape, ctx.axes = x.shape, axes
        return x.sum(axis=axes, keepdims=keepdims)

    @staticmethod
    def backward(ctx: Node, grad: Array) -> Array:
        return _expand(grad, ctx.axes, ctx.shape)


class Mean(Function):
    """(Σ x) / n over axes; d/dx = 1 / n."""

    @staticmethod
    def forward(ctx: Node, x: Array, *, axes: tuple[int, ...], keepdims: bool) -> Array:
        ctx.shape, ctx.axes = x.shape, axes
        return x.mean(axis=axes, keepdims=keepdims)

    @staticmethod
    def backward(ctx: Node, grad: Array) -> Array:
        count = prod(ctx.shape[a] for a in ctx.axes)
        # (A count of 65520 or more is infinite in float16.)
        share = grad * (1 / count) if grad.dtype == np.float16 else grad / count
        return _expand(share, ctx.axes, ctx.shape)


class Max(Function):
    """max x over axes; d/dx = 1 at the maximum, shared evenly among equal maxima."""

    @staticmethod
    def forward(ctx: Node, x: Array, *, axes: tuple[int, ...], keepdims: bool) -> Array:
        top = x.max(axis=axes, keepdims=True)
        here = x == top
        ctx.axes = axes
        if ctx.recording:
            ctx.save(here / here.sum(axis=axes, keepdims=True).astype(x.dtype))
        return top if keepdims else top.squeeze(axes)

    @staticmethod
    def backward(ctx: Node, grad: Array) -> Array:
        (share,) = ctx.saved
        return _expand(grad, ctx.axes, share.shape) * share


def sum(x: Tensor, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The sum over `axis` (an axis, a tuple of axes, or None for all)."""
    return Sum.apply(x, axes=_axes("sum", x, axis), keepdims=keepdims)


def mean(x: Tensor, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The mean over `axis`; ValueError if there is nothing to average."""
    axes = _axes("mean", x, axis)
    _not_empty("mean", x, axes)
    return Mean.apply(x, axes=axes, keepdims=keepdims)


def max(x: Tensor, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The maximum over `axis`; ValueError if there is nothing to compare."""
    axes = _axes("max", x, axis)
    _not_empty("max", x, axes)
    return Max.apply(x, axes=axes, keepdims=keepdims)


def _not_empty(name: str, x: Tensor, axes: tuple[int, ...]) -> None:
    if any(x.shape[a] == 0 for a in axes):
        raise ValueError(f"{name}: a tensor of shape {x.shape} has nothing along axis {axes}")
