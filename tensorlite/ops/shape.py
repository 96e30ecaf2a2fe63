"""Ops that move elements about without changing them."""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import device as devices
from ..autograd import Function, Node
from ..device import Array, array_module
from ..tensor import Tensor


class Reshape(Function):
    """The same elements in another shape."""

    @staticmethod
    def forward(ctx: Node, x: Array, *, shape: tuple[int, ...]) -> Array:
        ctx.shape = x.shape
        return x.reshape(shape)

    @staticmethod
    def backward(ctx: Node, grad: Array) -> Array:
        return grad.reshape(ctx.shape)


class Transpose(Function):
    """Axes in another order; backward puts them in the order they came in."""

    @staticmethod
    def forward(ctx: Node, x: Array, *, axes: tuple[int, ...]) -> Array:
        ctx.inverse = tuple(np.argsort(axes))
        return x.transpose(axes)

    @staticmethod
    def backward(ctx: Node, grad: Array) -> Array:
        return grad.transpose(ctx.inverse)


class Index(Function):
    """x[key]; the gradient of an element taken several times is the sum over the times."""

    @staticmethod
    def forward(ctx: Node, x: Array, *, key: Any) -> Array:
        ctx.shape, ctx.key = x.shape, copy.deepcopy(key)  # its arrays may be written to later
        return x[key]

    @staticmethod
    def backward(ctx: Node, grad: Array) -> Array:
        xp = array_module(grad)
        dx = xp.zeros(ctx.shape, grad.dtype)
        keys = ctx.key if isinstance(ctx.key, tuple) else (ctx.key,)
        if all(k is None or k is Ellipsis or isinstance(k, int | slice) for k in keys):
            dx[ctx.key] = grad
        else:
            xp.add.at(dx, ctx.key, grad)
        return dx


class Concatenate(Function):
    """Tensors one after the other along an axis; backward cuts the gradient up again."""

    @staticmethod
    def forward(ctx: Node, *arrays: Array, axis: int) -> Array:
        ctx.axis, ctx.lengths = axis, [a.shape[axis] for a in arrays]
        return array_module(arrays[0]).concatenate(arrays, axis)

    @staticmethod
    def backward(ctx: Node, grad: Array) -> tuple[Array, ...]:
        cuts = [int(c) for c in np.cumsum(ctx.lengths[:-1])]
        return tuple(array_module(grad).split(grad, cuts, ctx.axis))


class Pad(Function):
    """A constant border around x; backward cuts it off."""

    @staticmethod
    def forward(ctx: Node, x: Array, *, widths: tuple[tuple[int, int], ...],
                value: float) -> Array:
        ctx.inside = tuple(slice(a, a + n) for (a, _), n in zip(widths, x.shape, strict=True))
        # (NumPy's pad refuses an array without axes.)
        return array_module(x).pad(x, widths, constant_values=value) if widths else x

    @staticmethod
    def backward(ctx: Node, grad: Array) -> Array:
        return grad[ctx.inside]


class ToDevice(Function):
    """The same values on another device; the gradient goes back to where x was."""

    @staticmethod
    def forward(ctx: Node, x: Array, *, device: str) -> Array:
        ctx.source = devices.device_of(x)
        return devices.to_device(x, device)

    @staticmethod
    def backward(ctx: Node, grad: Array) -> Array:
        return devices.to_device(grad, ctx.source)


def reshape(x: Tensor, shape: int | Sequence[int]) -> Tensor:
    """`x` in another shape of as many elements; one length may be -1."""
    shape = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
    try:
        return Reshape.apply(x, shape=shape)
    except (TypeError, ValueError):
        raise ValueError(f"reshape: a tensor of shape {x.shape} cannot become {shape}") from None


def transpose(x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """`x` with its axes in the order `axes`; by default reversed."""
    order = tuple(range(x.ndim))[::-1] if axes is None else tuple(
        (axes,) if isinstance(axes, int | np.integer) else axes)
    order = tuple(a + x.ndim if a < 0 else a for a in order)
    if sorted(order) != list(range(x.ndim)):
        raise ValueError(f"transpose: axes {axes} is no order of the {x.ndim} axes of a tensor of "
                         f"shape {x.shape}")
    return Transpose.apply(x, axes=order)


def index(x: Tensor, key: Any) -> Tensor:
    """``x[key]`` for all that NumPy takes as a key."""
    keys = key if isinstance(key, tuple) else (key,)
    keys = tuple(k.data if isinstance(k, Tensor) else k for k in keys)
    return Index.apply(x, key=keys if isinstance(key, tuple) else keys[0])


def concatenate(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """`tensors` joined along `axis`; their other lengths must agree."""
    tensors = tuple(tensors)
    first = _first("concatenate", tensors, axis)
    axis %= first.ndim
    for i, t in enumerate(tensors):
        if t.shape[:axis] + t.shape[axis + 1:] != first.shape[:axis] + first.shape[axis + 1:]:
            raise ValueError(f"concatenate: tensor {i} has shape {t.shape}, which differs from "
                             f"{first.shape} outside axis {axis}")
    return Concatenate.apply(*tensors, axis=axis)


def stack(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """`tensors` of one shape joined along a new axis."""
    tensors = tuple(tensors)
    if not tensors:
        raise ValueError("stack: needs at least one tensor, got none")
    rank = tensors[0].ndim + 1
    if not -rank <= axis < rank:
        raise ValueError(f"stack: axis {axis} is out of range for a result with {rank} axes")
    axis %= rank
    for i, t in enumerate(tensors):
        if t.shape != tensors[0].shape:
            raise ValueError(f"stack: tensor {i} has shape {t.shape}, expected "
                             f"{tensors[0].shape} as the first")
    return concatenate([reshape(t, (*t.shape[:axis], 1, *t.shape[axis:])) for t in tensors], axis)


def pad(x: Tensor, widths: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """`x` with a border of `value`: ``widths[i]`` elements (before, after) along axis i."""
    try:
        pairs = tuple((operator.index(before), operator.index(after)) for before, after in widths)
    except (TypeError, ValueError):
        pairs = ()
    if len(pairs) != x.ndim or any(n < 0 for pair in pairs for n in pair):
        raise ValueError(f"pad: expected a pair of widths >= 0 for each of {x.ndim} axes, "
                         f"got {widths}")
    if x.dtype.kind != "f" and not float(value).is_integer():
        raise ValueError(f"value: got {value}, which a tensor of {x.dtype} cannot hold")
    return Pad.apply(x, widths=pairs, value=value)


def to_device(x: Tensor, device: str) -> Tensor:
    """A differentiable copy of `x` on `device`."""
    return ToDevice.apply(x, device=device)


def _first(name: str, tensors: Sequence[Tensor], axis: int) -> Tensor:
    if not tensors:
        raise ValueError(f"{name}: needs at least one tensor, got none")
    ndim = tensors[0].ndim
    if not -ndim <= axis < ndim:
        raise ValueError(f"{name}: axis {axis} is out of range for shape {tensors[0].shape}")
    return tensors[0]
