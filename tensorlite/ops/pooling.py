"""Pooling over windows and over whole images, channels last."""

from __future__ import annotations

from .. import kernels
from ..autograd import Function, Node
from ..device import Array
from ..tensor import Tensor
from .arguments import Pair, one_dtype, pair, window_output
from .fused import Activation, Norm, source_of


class MaxPool2d(Function):
    """The largest value in each window; its gradient goes to where that value was."""

    name = "max_pool2d"

    @staticmethod
    def forward(ctx: Node, x: Array, *, source: Norm | None, **window) -> Array:
        prologue = None if source is None else source.activation
        y = kernels.of(x).max_pool2d_forward(x, prologue=prologue, **window)
        ctx.save(x, y)
        ctx.source, ctx.window = source, window
        return y

    @staticmethod
    def backward(ctx: Node, grad: Array) -> Array:
        x, y = ctx.saved
        mask = None if ctx.source is None else ctx.source.mask
        dx, sums = kernels.of(grad).max_pool2d_backward(grad, x, y, mask=mask, **ctx.window)
        if ctx.source is not None:
            ctx.source.left.append(sums)
        return dx


class AvgPool2d(Function):
    """The mean of each window, padding counted as zeros; its gradient is shared evenly."""

    name = "avg_pool2d"

    @staticmethod
    def forward(ctx: Node, x: Array, **window) -> Array:
        ctx.shape, ctx.window = x.shape, window
        return kernels.of(x).avg_pool2d_forward(x, **window)

    @staticmethod
    def backward(ctx: Node, grad: Array) -> Array:
        return kernels.of(grad).avg_pool2d_backward(grad, ctx.shape, **ctx.window)


class GlobalAvgPool(Function):
    """The mean over height and width; d/dx = 1 / (H W)."""

    name = "global_avg_pool"

    @staticmethod
    def forward(ctx: Node, x: Array) -> Array:
        ctx.shape = x.shape
        return kernels.of(x).global_avg_pool_forward(x)

    @staticmethod
    def backward(ctx: Node, grad: Array) -> Array:
        return kernels.of(grad).global_avg_pool_backward(grad, ctx.shape)


def max_pool2d(x: Activation, kernel: Pair, stride: Pair | None = None,
               padding: Pair = 0) -> Tensor:
    """The maximum over windows of `kernel`, moved by `stride` (default: the kernel).

    x (N, H, W, C) → (N, H', W', C); x may be the result of `conv_norm`. Padded cells never win;
    padding is at most half the kernel.
    """
    tensor, source = source_of(x)
    return MaxPool2d.apply(tensor, source=source,
                           **_window("max_pool2d", tensor, kernel, stride, padding))


def avg_pool2d(x: Tensor, kernel: Pair, stride: Pair | None = None, padding: Pair = 0) -> Tensor:
    """The mean over windows of `kernel`, moved by `stride` (default: the kernel).

    x (N, H, W, C) → (N, H', W', C). Padded cells count as zeros.
    """
    return AvgPool2d.apply(x, **_window("avg_pool2d", x, kernel, stride, padding))


def global_avg_pool(x: Tensor) -> Tensor:
    """The mean over height and width: x (N, H, W, C) → (N, C)."""
    if x.ndim != 4 or 0 in x.shape[1:3]:
        raise ValueError(f"global_avg_pool: expected x (N, H, W, C) with H, W > 0, got {x.shape}")
    one_dtype(x)
    return GlobalAvgPool.apply(x)


def _window(name: str, x: Tensor, kernel: Pair, stride: Pair | None,
            padding: Pair) -> dict[str, tuple[int, int]]:
    if x.ndim != 4:
        raise ValueError(f"{name}: expected x (N, H, W, C), got shape {x.shape}")
    one_dtype(x)
    size = pair("kernel", kernel, 1)
    steps = size if stride is None else pair("stride", stride, 1)
    border = pair("padding", padding, 0)
    if 0 in x.shape[1:3]:
        raise ValueError(f"{name}: expected x (N, H, W, C) with H, W > 0, got {x.shape}")
    if any(2 * p > k for p, k in zip(border, size, strict=True)):
        raise ValueError(f"padding: got {padding}, expected at most half the kernel {size}")
    window_output(name, x.shape[1:3], size, steps, border)
    return {"kernel": size, "stride": steps, "padding": border}
