"""Elementwise CUDA kernels, sums over rows, casts and the temporal skip.

All of them are bounded by memory: each reads and writes an element once, 16 bytes a thread at a
time where the number of channels allows.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from tensorlite.device import Array, array_module
from tensorlite.kernels.cuda.compiler import Kernel, kernel
from tensorlite.kernels.cuda.launch import NAMES, launch, sums_dtype, type_name
from tensorlite.kernels.cuda.rows import (
    BYTES,
    THREADS,
    cut,
    flat_grid,
    merge_kernels,
    merge_sums,
    plain,
    row_kernel,
    row_kernels,
    vectors,
    width_for,
)
from tensorlite.kernels.frames import live_frames

SOURCE = "elementwise.cu"
PIECE = 2 * THREADS  # vectors of a frame that a block takes, at least


def kernels() -> list[Kernel]:
    """Every kernel that may be launched here."""
    casts = [_cast_kernel(source, target, width)
             for source, target in itertools.permutations(NAMES, 2)
             for width in (_cast_width(source, target), 1)]
    return [*row_kernels(SOURCE, "affine", "relu_forward", "relu_backward", "accumulate",
                         "column_sums", "temporal_skip_forward", "temporal_skip_backward"),
            *merge_kernels("merge_sums"), *casts]


def affine(x: Array, scale: Array, shift: Array, relu: bool = False) -> Array:
    """x * scale + shift per channel, then relu if asked. x (..., C); scale, shift (C,)."""
    x = plain(x, x.dtype)
    y = array_module(x).empty(x.shape, x.dtype)
    width = width_for(x.shape[-1], x)
    groups, count = x.shape[-1] // width, x.size // width
    launch(row_kernel(SOURCE, "affine", x.dtype, width), flat_grid(count, groups), x,
           *vectors(x, scale, shift), y, np.int64(count), np.int32(groups), np.int32(relu))
    return y


def relu_forward(x: Array) -> Array:
    """max(x, 0); NaN stays NaN."""
    x = plain(x, x.dtype)
    y = array_module(x).empty(x.shape, x.dtype)
    _flat("relu_forward", x, y)
    return y


def relu_backward(grad: Array, y: Array) -> Array:
    """Gradient of relu from its output y: grad where y > 0, else 0."""
    grad, y = plain(grad, grad.dtype), plain(y, grad.dtype)
    dx = array_module(grad).empty(grad.shape, grad.dtype)
    _flat("relu_backward", grad, y, dx)
    return dx


def accumulate(total: Array, piece: Array) -> None:
    """total += piece, in place; both of one shape."""
    if not total.flags.c_contiguous or total.dtype != piece.dtype:
        total += piece
        return
    _flat("accumulate", total, plain(piece, piece.dtype))


def _flat(name: str, *arrays: Array) -> None:
    """Launch a kernel of (arrays…, count) on contiguous arrays of one size and dtype."""
    size = arrays[0].size
    width = width_for(size, *arrays)
    launch(row_kernel(SOURCE, name, arrays[0].dtype, width), flat_grid(size // width), *arrays,
           np.int64(size // width))


def column_sums(rows: Array) -> Array:
    """Sum of a (rows, C) matrix over its rows; float32 for float16."""
    rows = plain(rows, rows.dtype)
    (count, channels), dtype = rows.shape, sums_dtype(rows.dtype)
    if not rows.size:
        return array_module(rows).zeros(channels, dtype)
    width = width_for(channels, rows)
    groups = channels // width
    runs = cut(count, groups)
    partials = array_module(rows).empty((runs.number, channels), dtype)
    launch(row_kernel(SOURCE, "column_sums", rows.dtype, width), runs.grid, rows, partials,
           np.int64(count), np.int32(groups), np.int32(runs.columns), np.int64(runs.span))
    return merge_sums(partials)


def cast(x: Array, dtype: Any) -> Array:
    """x rounded to another of the dtypes float16, float32 and float64; always a new array."""
    x, dtype = plain(x, x.dtype), np.dtype(dtype)
    y = array_module(x).empty(x.shape, dtype)
    if x.dtype == dtype:
        y[...] = x
        return y
    width = width_for(x.size, x, most=_cast_width(x.dtype, dtype))
    launch(_cast_kernel(x.dtype, dtype, width), flat_grid(x.size // width), x, y,
           np.int64(x.size // width))
    return y


def _cast_width(source: Any, target: Any) -> int:
    """Elements to convert at a time: 16 bytes of the wider type."""
    return BYTES // max(np.dtype(source).itemsize, np.dtype(target).itemsize)


def _cast_kernel(source: Any, target: Any, width: int) -> Kernel:
    return kernel("cast.cu", "cast", THREADS, hot=True, SOURCE=type_name(source),
                  TARGET=type_name(target), WIDTH=width)


def temporal_skip_forward(y: Array, x: Array, frames: int) -> Array:
    """out_t = y_t + x_{t-1} inside each chunk of `frames` frames, x_0 = 0.

    y and x are folded chunk batches (B*T, ...). y may hold frames 2..T only, its first having
    been dropped, or x frames 1..T-1; which follows from their lengths.
    """
    if frames == 1 or not y.size:
        return y.copy()
    y, x = plain(y, y.dtype), plain(x, y.dtype)
    out = array_module(y).empty(y.shape, y.dtype)
    _skip("temporal_skip_forward", y, x, out, shapes=(y.shape, x.shape), frames=frames)
    return out


def temporal_skip_backward(grad: Array, y_shape: tuple[int, ...], x_shape: tuple[int, ...],
                           frames: int) -> tuple[Array, Array]:
    """Gradients (dy, dx) of the temporal skip: dy = grad, dx_{t-1} = grad_t, zero at frame T."""
    xp = array_module(grad)
    if frames == 1 or not grad.size:
        return grad.copy(), xp.zeros(x_shape, grad.dtype)
    grad = plain(grad, grad.dtype)
    dy, dx = xp.empty(y_shape, grad.dtype), xp.empty(x_shape, grad.dtype)
    _skip("temporal_skip_backward", grad, dy, dx, shapes=(y_shape, x_shape), frames=frames)
    return dy, dx


def _skip(name: str, *arrays: Array, shapes: tuple[tuple[int, ...], tuple[int, ...]],
          frames: int) -> None:
    """Launch one of the two kernels above on arrays of the shape of y or x."""
    y_frames, x_frames = live_frames(frames, *shapes)
    size = math.prod(shapes[0][1:])
    width = width_for(size, *arrays)
    size //= width
    pieces = -(-size // PIECE)
    launch(row_kernel(SOURCE, name, arrays[0].dtype, width), (shapes[0][0] * pieces,), *arrays,
           *(np.int32(n) for n in (size, pieces, frames, y_frames, x_frames)))
