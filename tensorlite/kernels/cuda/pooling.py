"""Maximum, average and global average pooling on a GPU.

The gradient of a maximum goes to the first cell that holds it. Which one that is, is not kept from
the forward pass: the backward pass looks for it again, window by window, and then each cell of the
input takes the gradients of the windows that it won.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tensorlite.device import Array, array_module
from tensorlite.kernels.contract import GradSums, Mask, Prologue
from tensorlite.kernels.cuda.compiler import Kernel, kernel
from tensorlite.kernels.cuda.launch import NAMES, launch, sums_dtype, type_name
from tensorlite.kernels.cuda.rows import (
    BLOCKS,
    THREADS,
    WIDEST,
    merge_sums,
    vectors,
    widest,
    width_for,
)
from tensorlite.kernels.geometry import Pair, output_size

PARTS = 1024  # blocks, at most, of those that leave sums behind
MAX_PIXELS = 1 << 30  # the kernels count them in 32 bits
MAX_WINDOW = 65534  # cells: they are numbered in 16 bits
LANES = 32  # of a block that is to have many rows of them

FUNCTIONS = ("max_pool2d_forward", "max_pool2d_winners", "max_pool2d_backward",
             "avg_pool2d_forward", "avg_pool2d_backward", "global_avg_pool_forward",
             "global_avg_pool_backward")


def _kernel(name: str, dtype: Any, width: int) -> Kernel:
    return kernel("pooling.cu", name, THREADS, hot=True, TYPE=type_name(dtype), WIDTH=width)


def _most(dtype: Any) -> int:
    """Channels of a thread, at most: one double fills enough of a load, and saves kernels."""
    return 1 if np.dtype(dtype) == np.float64 else WIDEST


def kernels() -> list[Kernel]:
    """Every kernel that this module launches, but for those of `rows`."""
    return [_kernel(name, dtype, width) for name in FUNCTIONS for dtype in NAMES
            for width in sorted({1, widest(dtype, _most(dtype))})]


def _width(channels: int, *arrays: Array) -> int:
    """Channels that a thread moves at once: a whole load where the arrays allow it, else one."""
    return width_for(channels, *arrays, most=_most(arrays[0].dtype))


def _walk(name: str, dtype: Any, width: int, pixels: int, channels: int, *arguments: Any,
          rest: tuple[Any, ...], parts: bool = False) -> int:
    """Launch a kernel that walks over pixels: (*arguments, pixels, channels, lanes, *rest).

    Returns how many blocks share the pixels of a channel; with `parts` each leaves sums behind.
    """
    if pixels >= MAX_PIXELS:
        raise ValueError(f"pooling: {pixels} pixels in a batch, the kernels count to {MAX_PIXELS}")
    lanes = min(THREADS, channels // width)
    most, rows = PARTS if parts else BLOCKS, THREADS // lanes
    grid = min(most, -(-pixels // rows)), -(-channels // (width * lanes))
    launch(_kernel(name, dtype, width), grid, *arguments, np.int32(pixels), np.int32(channels),
           np.int32(lanes), *rest)
    return grid[0]


def _windows(shape: tuple[int, ...], out: tuple[int, ...], *pairs: Pair) -> tuple[np.int32, ...]:
    """What kernels are told of an input's shape, an output's, and kernel, stride and padding."""
    return tuple(np.int32(n) for pair in (shape[1:3], out[1:3], *pairs) for n in pair)


def _output(x: Array, kernel: Pair, stride: Pair, padding: Pair) -> Array:
    size = output_size(x.shape, kernel, stride, padding)
    return array_module(x).empty((x.shape[0], *size, x.shape[3]), x.dtype)


def max_pool2d_forward(x: Array, kernel: Pair, stride: Pair, padding: Pair,
                       prologue: Prologue | None = None) -> Array:
    """Maximum over windows of x, or of its activation. x (N,H,W,C) -> (N,OH,OW,C).

    Padding never wins; NaN wins over numbers.
    """
    xp, channels = array_module(x), x.shape[3]
    x, y = xp.ascontiguousarray(x), _output(x, kernel, stride, padding)
    if not y.size:
        return y
    scale = shift = None
    if prologue is not None:
        scale, shift = vectors(x, prologue.scale, prologue.shift)
    relu = np.int32(prologue is not None and prologue.relu)
    _walk("max_pool2d_forward", x.dtype, _width(channels, x, y), y.size // channels, channels,
          x, scale, shift, relu, y, rest=_windows(x.shape, y.shape, kernel, stride, padding))
    return y


def max_pool2d_backward(grad: Array, x: Array, y: Array, kernel: Pair, stride: Pair, padding: Pair,
                        mask: Mask | None = None) -> tuple[Array, GradSums | None]:
    """Gradient of max pooling: each window's gradient goes to the first cell that holds its y.

    With a mask, x is the mask's z and y the maximum of its activation; the gradient is that of the
    activation's norm, zero where relu cut, and its sums are returned. Of cells that only the
    rounding of the activation makes equal, the one that was largest before it gets the gradient.
    """
    if kernel[0] * kernel[1] > MAX_WINDOW:
        raise ValueError(f"max_pool2d: a window of {kernel} has more than {MAX_WINDOW} cells")
    xp, channels = array_module(x), x.shape[3]
    x, y, grad = xp.ascontiguousarray(x), xp.ascontiguousarray(y), xp.ascontiguousarray(grad)
    dx, winners = xp.empty(x.shape, x.dtype), xp.empty(y.shape, np.uint16)
    scale = mean = partial = None
    relu, parts = False, 0
    if mask is not None:
        scale, mean = vectors(x, mask.activation.scale, mask.mean)
        relu = mask.activation.relu
        partial = xp.empty((PARTS, 2, channels), sums_dtype(x.dtype))
    windows = _windows(x.shape, y.shape, kernel, stride, padding)
    if dx.size:
        width = _width(channels, x, y, grad, dx, winners)
        parts = _walk("max_pool2d_winners", x.dtype, width, y.size // channels, channels,
                      grad, x, y, scale, mean, np.int32(relu), winners, partial,
                      rest=windows, parts=True)
        _walk("max_pool2d_backward", x.dtype, width, dx.size // channels, channels, grad, winners,
              dx, rest=windows)
    if partial is None:
        return dx, None
    sums = merge_sums(partial[:parts])
    return dx, GradSums(sums[0], sums[1])


def avg_pool2d_forward(x: Array, kernel: Pair, stride: Pair, padding: Pair) -> Array:
    """Mean over windows of kh*kw cells, padding counted as zeros. x (N,H,W,C) -> (N,OH,OW,C)."""
    x, y = array_module(x).ascontiguousarray(x), _output(x, kernel, stride, padding)
    if y.size:
        channels = x.shape[3]
        _walk("avg_pool2d_forward", x.dtype, _width(channels, x, y), y.size // channels, channels,
              x, y, rest=_windows(x.shape, y.shape, kernel, stride, padding))
    return y


def avg_pool2d_backward(grad: Array, input_shape: tuple[int, ...], kernel: Pair, stride: Pair,
                        padding: Pair) -> Array:
    """Gradient of average pooling: every cell of a window receives grad / (kh*kw)."""
    xp, channels = array_module(grad), input_shape[3]
    grad, dx = xp.ascontiguousarray(grad), xp.empty(input_shape, grad.dtype)
    if dx.size:
        _walk("avg_pool2d_backward", dx.dtype, _width(channels, grad, dx), dx.size // channels,
              channels, grad, dx, rest=_windows(dx.shape, grad.shape, kernel, stride, padding))
    return dx


def global_avg_pool_forward(x: Array) -> Array:
    """Mean over height and width. x (N,H,W,C) -> (N,C)."""
    xp, (count, height, columns, channels) = array_module(x), x.shape
    x, y = xp.ascontiguousarray(x), xp.empty((count, channels), x.dtype)
    if y.size:
        width = _width(channels, x, y)
        lanes = min(LANES, channels // width)
        launch(_kernel("global_avg_pool_forward", x.dtype, width),
               (count, -(-channels // (width * lanes))), x, y, np.int32(channels), np.int32(lanes),
               np.int32(height * columns))
    return y


def global_avg_pool_backward(grad: Array, input_shape: tuple[int, ...]) -> Array:
    """Gradient of global average pooling: grad / (H*W) at every pixel. grad (N,C)."""
    xp, (height, columns, channels) = array_module(grad), input_shape[1:]
    grad, dx = xp.ascontiguousarray(grad), xp.empty(input_shape, grad.dtype)
    if dx.size:
        _walk("global_avg_pool_backward", dx.dtype, _width(channels, grad, dx),
              dx.size // channels, channels, grad, dx, rest=(np.int32(height * columns),))
    return dx
