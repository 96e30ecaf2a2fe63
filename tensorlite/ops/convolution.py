"""Two-dimensional convolution, channels last."""

from __future__ import annotations

import functools
from typing import Any

from .. import kernels
from ..autograd import Function, Node
from ..device import Array
from ..tensor import Tensor
from .arguments import Pair, one_dtype, pair, window_output
from .casting import as_dtype, for_products


class Conv2d(Function):
    """y[n, i, j, :] = Σ_{a, b} x[n, i s - p + a d, j s - p + b d, :] W[a, b] + bias.

    (Cross-correlation, as everywhere in this field.) The gradient to x is a convolution of grad
    with W turned round and its channels exchanged; the gradient to W correlates x with grad.
    """

    @staticmethod
    def forward(ctx: Node, x: Array, weight: Array, bias: Array | None, **geometry) -> Array:
        weight = as_dtype(weight, x.dtype)
        ctx.save(x, weight)
        ctx.geometry = geometry
        y, _ = kernels.of(x).conv2d_forward(x, weight, bias, **geometry)
        return y

    @staticmethod
    def backward(ctx: Node, grad: Array) -> tuple[Array | None, ...]:
        x, weight = ctx.saved
        kernel = kernels.of(grad)
        dx, _, dw = kernel.conv2d_backward(x, grad, weight, needs=ctx.needs[:2], **ctx.geometry)
        db = kernel.column_sums(grad.reshape(-1, grad.shape[3])) if ctx.needs[2] else None
        return dx, dw, db


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Pair = 1,
           padding: Pair = 0, dilation: Pair = 1, groups: int = 1) -> Tensor:
    """Two-dimensional convolution.

    x (N, H, W, C_in), weight (kh, kw, C_in / groups, C_out), bias (C_out,) → (N, H', W', C_out)
    with H' = (H + 2 padding - dilation (kh - 1) - 1) // stride + 1 and W' likewise; each of stride,
    padding and dilation is one number or (vertical, horizontal). With groups, output channels
    in the g-th of `groups` equal parts see only the g-th part of the input channels.
    """
    x = for_products(x)
    geometry, _ = convolution_geometry(x, weight, bias, stride, padding, dilation, groups)
    return Conv2d.apply(x, weight, bias, **geometry)


def convolution_geometry(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair,
                         padding: Pair, dilation: Pair,
                         groups: int) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Check the arguments of `conv2d`: the kernels' options, and the output's shape."""
    one_dtype(x, weight=weight, bias=bias)
    steps, border, spread = (tuple(both) if isinstance(both, list) else both
                             for both in (stride, padding, dilation))
    return _geometry(x.shape, weight.shape, None if bias is None else bias.shape, steps, border,
                     spread, groups)


@functools.lru_cache(maxsize=1024, typed=True)  # a network asks for the same few again and again
def _geometry(x: tuple[int, ...], weight: tuple[int, ...], bias: tuple[int, ...] | None,
              stride: Pair, padding: Pair, dilation: Pair,
              groups: int) -> tuple[dict[str, Any], tuple[int, ...]]:
    if len(x) != 4 or len(weight) != 4:
        raise ValueError(f"conv2d: expected x (N, H, W, C) and weight (kh, kw, C/groups, C_out), "
                         f"got shapes {x} and {weight}")
    if not isinstance(groups, int) or groups < 1 or weight[3] % groups:
        raise ValueError(f"groups: got {groups!r}, expected a positive divisor of the "
                         f"{weight[3]} output channels")
    if x[3] != weight[2] * groups:
        raise ValueError(f"weight: of shape {weight} with groups {groups} takes "
                         f"{weight[2] * groups} input channels, x has {x[3]}")
    if 0 in weight:
        raise ValueError(f"weight: no length may be 0, got shape {weight}")
    if bias is not None and bias != weight[3:]:
        raise ValueError(f"bias: expected shape {weight[3:]}, got {bias}")
    steps, border, spread = pair("stride", stride, 1), pair("padding", padding, 0), pair(
        "dilation", dilation, 1)
    size = window_output("conv2d", x[1:3], weight[:2], steps, border, spread)
    geometry = {"stride": steps, "padding": border, "dilation": spread, "groups": groups}
    return geometry, (x[0], *size, weight[3])
