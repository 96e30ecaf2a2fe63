"""Batch-norm building blocks on CUDA: moments, and the backward's sums and formula.

Single-pass sums of squares cancel in float32. Here threads centre a few rows at a time on their
mean, threads and blocks merge their moments after Chan, Golub and LeVeque (1979), and what blocks
leave behind is merged in order in float64.
"""

from __future__ import annotations

import numpy as np

from tensorlite.device import Array, array_module
from tensorlite.kernels.contract import GradSums, Moments
from tensorlite.kernels.cuda.compiler import Kernel
from tensorlite.kernels.cuda.launch import launch, sums_dtype
from tensorlite.kernels.cuda.rows import (
    MERGED,
    cut,
    flat_grid,
    merge_kernel,
    merge_kernels,
    merge_sums,
    plain,
    row_kernel,
    row_kernels,
    vectors,
    width_for,
)

SOURCE = "normalisation.cu"


def kernels() -> list[Kernel]:
    """Every kernel that may be launched here."""
    return [*row_kernels(SOURCE, "moments", "grad_sums", "norm_backward"),
            *merge_kernels("merge_moments"), *merge_kernels("merge_sums")]


def moments(x: Array) -> Moments:
    """Per-channel count, mean and sum of squared deviations of x (..., C) over leading axes.

    The mean and the sum are float32 for float16.
    """
    xp, x = array_module(x), plain(x, x.dtype)
    channels, dtype = x.shape[-1], sums_dtype(x.dtype)
    if not x.size:
        return Moments(0, *xp.zeros((2, channels), dtype))
    width = width_for(channels, x)
    rows, groups = x.size // channels, channels // width
    runs = cut(rows, groups)
    partials = xp.empty((runs.number, 2, channels), np.float64)
    launch(row_kernel(SOURCE, "moments", x.dtype, width), runs.grid, x, partials, np.int64(rows),
           np.int32(groups), np.int32(runs.columns), np.int64(runs.span))
    out = xp.empty((2, channels), dtype)
    launch(merge_kernel("merge_moments", dtype), (-(-channels // MERGED),), partials, out,
           np.int32(runs.number), np.int32(channels), np.int64(rows), np.int64(runs.span))
    return Moments(rows, out[0], out[1])


def norm_backward_sums(grad: Array, x: Array, mean: Array) -> GradSums:
    """Per-channel sums of grad and of grad * (x - mean). grad, x (..., C); mean (C,)."""
    xp, x, grad = array_module(x), plain(x, x.dtype), plain(grad, x.dtype)
    channels, dtype = x.shape[-1], sums_dtype(x.dtype)
    if not x.size:
        return GradSums(*xp.zeros((2, channels), dtype))
    width = width_for(channels, grad, x)
    rows, groups = x.size // channels, channels // width
    runs = cut(rows, groups)
    partials = xp.empty((runs.number, 2, channels), dtype)
    launch(row_kernel(SOURCE, "grad_sums", x.dtype, width), runs.grid, grad, x, *vectors(x, mean),
           partials, np.int64(rows), np.int32(groups), np.int32(runs.columns), np.int64(runs.span))
    return GradSums(*merge_sums(partials))


def norm_backward(grad: Array, x: Array, scale: Array, slope: Array, offset: Array) -> Array:
    """dx = scale*grad + slope*x + offset per channel: a batch norm's backward, given its sums."""
    x, grad = plain(x, x.dtype), plain(grad, x.dtype)
    dx = array_module(x).empty(x.shape, x.dtype)
    width = width_for(x.shape[-1], grad, x)
    groups, count = x.shape[-1] // width, x.size // width
    launch(row_kernel(SOURCE, "norm_backward", x.dtype, width), flat_grid(count, groups), grad, x,
           *vectors(x, scale, slope, offset), dx, np.int64(count), np.int32(groups))
    return dx
