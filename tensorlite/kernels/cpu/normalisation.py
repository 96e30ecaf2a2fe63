"""Batch-norm building blocks on the CPU: moments, and the backward's sums and formula.

Single-pass sums of squares cancel in float32. Here every tile of rows that fits the cache is
centred on its own mean, and the tiles' moments are merged in float64 after Chan, Golub and
LeVeque (1979).
"""

from __future__ import annotations

import numpy as np

from tensorlite.kernels.contract import GradSums, Moments
from tensorlite.kernels.cpu.elementwise import (
    CHUNK,
    GRAIN,
    column_sums,
    for_chunks,
    rows_of,
    wide,
    widen,
)
from tensorlite.kernels.cpu.memory import empty_like
from tensorlite.kernels.cpu.threads import parallel_for, scratch

Tile = tuple[int, np.ndarray, np.ndarray]  # count, mean, m2


def tile_moments(rows: np.ndarray) -> Tile:
    """Moments of one contiguous (rows, C) tile: its mean first, then squares about that mean.

    The deviations' own sum corrects both for the rounding of the mean (Chan et al., eq. 1.7).
    """
    count = len(rows)
    mean = column_sums(rows) / rows.dtype.type(count)
    centre = widen(mean, rows.dtype)
    centred = scratch("moments", rows.shape, rows.dtype)
    for view, out in wide(rows, centred):
        np.subtract(view, centre[: out.shape[1]], out=out)
    error = column_sums(centred) / np.float64(count)
    np.multiply(centred, centred, out=centred)
    return count, mean + error, column_sums(centred) - count * error * error


def merge_moments(tiles: list[Tile], channels: int, dtype: np.dtype) -> Moments:
    """Moments of the union of tiles, in float64 (Chan et al. for many parts at once)."""
    if not tiles:
        return Moments(0, np.zeros(channels, dtype), np.zeros(channels, dtype))
    counts = np.array([tile[0] for tile in tiles], np.float64)[:, None]
    means = np.array([tile[1] for tile in tiles], np.float64)
    m2s = np.array([tile[2] for tile in tiles], np.float64)
    total = counts.sum()
    mean = (counts * means).sum(axis=0) / total
    m2 = m2s.sum(axis=0) + (counts * np.square(means - mean)).sum(axis=0)
    return Moments(int(total), mean.astype(dtype), m2.astype(dtype))


def moments(x: np.ndarray) -> Moments:
    """Per-channel count, mean and sum of squared deviations of x (..., C) over leading axes."""
    rows = rows_of(x)
    channels = rows.shape[1]
    step = max(1, CHUNK // max(1, channels))

    def body(start: int, stop: int, worker: int) -> list[Tile]:
        return [tile_moments(rows[at : min(at + step, stop)]) for at in range(start, stop, step)]

    parts = parallel_for(len(rows), body, grain=max(1, GRAIN // max(1, channels)))
    return merge_moments([tile for part in parts for tile in part], channels, x.dtype)


def tile_grad_sums(
    grad: np.ndarray, z: np.ndarray, mean: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of grad and grad*(z - mean) of one contiguous (rows, C) tile; mean is widened."""
    product = scratch("grad sums", grad.shape, grad.dtype)
    for g, value, out in wide(grad, z, product):
        np.subtract(value, mean[: out.shape[1]], out=out)
        np.multiply(out, g, out=out)
    return column_sums(grad), column_sums(product)


def merge_grad_sums(
    tiles: list[tuple[np.ndarray, np.ndarray]], channels: int, dtype: np.dtype
) -> GradSums:
    """Total of tile sums, added in float64."""
    total = np.zeros((2, channels))
    for tile in tiles:
        total += tile
    return GradSums(total[0].astype(dtype), total[1].astype(dtype))


def norm_vectors(
    moments: Moments | None,
    gamma: np.ndarray,
    beta: np.ndarray,
    running_mean: np.ndarray,
    running_var: np.ndarray,
    momentum: float,
    eps: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What a batch norm does, as vectors: mean, 1 / sqrt(var + eps), scale and shift, by moments,
    towards which the running statistics then move in place, or else by those. All (C,)."""
    if moments is not None:
        count, mean, m2 = moments
        var = m2 / count
        # In place: the running statistics belong to the caller.
        running_mean += momentum * (mean - running_mean)
        running_var += momentum * (m2 / (count - 1) - running_var)
    else:
        # Copies: a later update must not reach back into this op.
        mean, var = running_mean.astype(gamma.dtype), running_var.astype(gamma.dtype)
    inverse = 1 / np.sqrt(var + eps)
    scale = gamma * inverse
    return mean, inverse, scale, beta - mean * scale


def norm_grad_vectors(
    sums: GradSums, mean: np.ndarray, inverse: np.ndarray, scale: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradient to gamma, and slope and offset of `norm_backward`, for a norm by the moments of
    `count` values a channel."""
    dgamma = sums.grad_centred * inverse
    slope = -scale * inverse * dgamma / count
    return dgamma, slope, -scale * sums.grad / count - slope * mean


def norm_backward_sums(grad: np.ndarray, x: np.ndarray, mean: np.ndarray) -> GradSums:
    """Per-channel sums of grad and of grad * (x - mean). grad, x (..., C); mean (C,)."""
    grads, rows = rows_of(grad), rows_of(x)
    channels = rows.shape[1]
    centre = widen(mean, x.dtype)
    step = max(1, CHUNK // max(1, channels))

    def body(start: int, stop: int, worker: int) -> list[tuple[np.ndarray, np.ndarray]]:
        spans = [(at, min(at + step, stop)) for at in range(start, stop, step)]
        return [tile_grad_sums(grads[a:b], rows[a:b], centre) for a, b in spans]

    parts = parallel_for(len(rows), body, grain=max(1, GRAIN // max(1, channels)))
    return merge_grad_sums([tile for part in parts for tile in part], channels, x.dtype)


def norm_backward(
    grad: np.ndarray, x: np.ndarray, scale: np.ndarray, slope: np.ndarray, offset: np.ndarray
) -> np.ndarray:
    """dx = scale*grad + slope*x + offset per channel: a batch norm's backward, given its sums."""
    grads, rows = rows_of(grad), rows_of(x)
    dx = empty_like(rows)
    vectors = [widen(v, x.dtype) for v in (scale, slope, offset)]

    def body(start: int, stop: int) -> None:
        for g, value, out in wide(grads[start:stop], rows[start:stop], dx[start:stop]):
            wide_norm_grad(g, value, out, *(v[: out.shape[1]] for v in vectors))

    for_chunks(len(rows), rows.shape[1], body)
    return dx.reshape(x.shape)


def wide_norm_grad(
    grad: np.ndarray,
    z: np.ndarray,
    out: np.ndarray,
    scale: np.ndarray,
    slope: np.ndarray,
    offset: np.ndarray,
) -> None:
    """out = scale*grad + slope*z + offset, the vectors already as long as the last axis."""
    product = scratch("norm grad", out.shape, out.dtype)
    np.multiply(grad, scale, out=out)
    np.multiply(z, slope, out=product)
    out += product
    out += offset
