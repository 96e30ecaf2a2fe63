"""Batch-norm building blocks on CUDA: moments, and the backward's sums and formula.

Single-pass sums of squares cancel in float32. Here threads centre a few rows at a time on their
mean, threads and blocks merge their moments after Chan, Golub and LeVeque (1979), and what blocks
leave behind is merged in order in float64.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from tensorlite.device import Array, array_module
from tensorlite.kernels.contract import GradSums, Moments
from tensorlite.kernels.cuda.compiler import Kernel, kernel
from tensorlite.kernels.cuda.launch import launch, sums_dtype, type_name
from tensorlite.kernels.cuda.rows import (
    MERGED,
    THREADS,
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
            *(_vector_kernel(name, dtype) for name in ("norm_vectors", "norm_grad_vectors")
              for dtype in ("float32", "float64")),
            *merge_kernels("merge_moments"), *merge_kernels("merge_sums")]


@functools.cache
def _vector_kernel(name: str, dtype: Any) -> Kernel:
    """A kernel on vectors of a value a channel."""
    return kernel("norm_vectors.cu", name, THREADS, TYPE=type_name(dtype))


def _launch_vectors(name: str, out: Array, *arguments: Array | np.generic | None) -> None:
    """Launch such a kernel, a thread a channel of out (vectors, C)."""
    channels = out.shape[1]
    launch(_vector_kernel(name, out.dtype), (-(-channels // THREADS),), *arguments, out,
           np.int32(channels))


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


def norm_vectors(moments: Moments | None, gamma: Array, beta: Array, running_mean: Array,
                 running_var: Array, momentum: float,
                 eps: float) -> tuple[Array, Array, Array, Array]:
    """What a batch norm does, as vectors: mean, 1 / sqrt(var + eps), scale and shift, by moments,
    towards which the running statistics then move in place, or else by those. All (C,)."""
    dtype = gamma.dtype
    count, mean, m2 = (0, None, None) if moments is None else moments
    running = [plain(r, dtype) for r in (running_mean, running_var)]
    out = array_module(gamma).empty((4, len(gamma)), dtype)
    given = (None if v is None else plain(v, dtype) for v in (mean, m2, gamma, beta))
    _launch_vectors("norm_vectors", out, *given, *running,
                    *(dtype.type(value) for value in (count, momentum, eps)))
    if moments is not None:
        for theirs, ours in zip((running_mean, running_var), running, strict=True):
            if ours is not theirs:
                theirs[...] = ours
    return out[0], out[1], out[2], out[3]


def norm_grad_vectors(sums: GradSums, mean: Array, inverse: Array, scale: Array,
                      count: int) -> tuple[Array, Array, Array]:
    """The gradient to gamma, and slope and offset of `norm_backward`, for a norm by the moments of
    `count` values a channel."""
    dtype = scale.dtype
    out = array_module(scale).empty((3, len(scale)), dtype)
    given = (plain(v, dtype) for v in (sums.grad, sums.grad_centred, mean, inverse, scale))
    _launch_vectors("norm_grad_vectors", out, *given, dtype.type(count))
    return out[0], out[1], out[2]


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
