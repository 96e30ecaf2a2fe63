"""Maximum, average and global average pooling on the CPU.

Bands of output lines that fit the cache are built tap by tap of the window, each tap being one
strided view of the input; the cells of a window that lie in the padding are left out by clipping
the ranges, so no padded copy exists.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tensorlite.kernels.cpu.elementwise import CHUNK, GRAIN, constant
from tensorlite.kernels.cpu.threads import bands, parallel_for, scratch

Pair = tuple[int, int]
Band = tuple[int, int, int, int]  # first image, last image + 1, first line, last line + 1
Where = tuple[slice, slice, slice]  # images, lines, columns


def _output_size(shape: tuple[int, ...], kernel: Pair, stride: Pair, padding: Pair) -> Pair:
    height, width = ((shape[1 + i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in range(2))
    return height, width


def _clip(first: int, last: int, size: int, tap: int, stride: int, pad: int) -> tuple[slice, slice]:
    """Outputs in first..last whose window cell `tap` is inside the input, and those cells."""
    low = max(first, -((tap - pad) // stride))
    high = max(low, min(last, (size - 1 + pad - tap) // stride + 1))
    begin = low * stride - pad + tap
    end = begin + (high - low - 1) * stride + 1 if high > low else begin
    return slice(low - first, high - first), slice(begin, end, stride)


def _taps(
    shape: tuple[int, ...],
    band: Band,
    width: int,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
) -> list[tuple[Where, Where]]:
    """For each window cell in order: the band's outputs it serves and the inputs it reads."""
    first_image, last_image, first, last = band
    images = slice(first_image, last_image)
    pairs: list[tuple[Where, Where]] = []
    for i in range(kernel[0]):
        out_rows, in_rows = _clip(first, last, shape[1], i, stride[0], padding[0])
        for j in range(kernel[1]):
            out_columns, in_columns = _clip(0, width, shape[2], j, stride[1], padding[1])
            pairs.append(((slice(None), out_rows, out_columns), (images, in_rows, in_columns)))
    return pairs


def _first_tap(size: int, kernel: int, stride: int, pad: int) -> np.ndarray:
    """First window cell of each output that is not padding, along one axis."""
    return np.minimum(np.maximum(pad - stride * np.arange(size), 0), kernel - 1)


def max_pool2d_forward(
    x: np.ndarray, kernel: Pair, stride: Pair, padding: Pair
) -> tuple[np.ndarray, np.ndarray]:
    """Maximum over windows. x (N,H,W,C) -> (y, argmax), both (N,OH,OW,C).

    argmax is the cell's place in its window, row by row. Padding never wins; of equal values the
    first wins; NaN wins over numbers.
    """
    count, channels = x.shape[0], x.shape[3]
    height, width = _output_size(x.shape, kernel, stride, padding)
    y = np.empty((count, height, width, channels), x.dtype)
    argmax = np.empty(y.shape, np.min_scalar_type(kernel[0] * kernel[1] - 1))
    start_tap = (
        _first_tap(height, kernel[0], stride[0], padding[0])[:, None] * kernel[1]
        + _first_tap(width, kernel[1], stride[1], padding[1])[None, :]
    ).astype(argmax.dtype)[None, :, :, None]
    limit = max(1, CHUNK // 8 // max(1, width * channels))

    def body(start: int, stop: int, worker: int) -> None:
        for band in bands(start, stop, height, limit):
            best, where = (a[band[0] : band[1], band[2] : band[3]] for a in (y, argmax))
            best[...] = -np.inf
            where[...] = start_tap[:, band[2] : band[3]]
            candidate = scratch("pool", best.shape, best.dtype)
            better = scratch("pool better", best.shape, np.bool_)
            missing = scratch("pool missing", best.shape, np.bool_)
            place = scratch("pool place", best.shape, argmax.dtype)
            for tap, (outputs, inputs) in enumerate(
                _taps(x.shape, band, width, kernel, stride, padding)
            ):
                source = x[inputs]
                if source.shape != best.shape:
                    candidate[...] = -np.inf
                candidate[outputs] = source
                np.greater(candidate, best, out=better)
                np.logical_or(better, np.isnan(candidate, out=missing), out=better)
                np.maximum(best, candidate, out=best)
                # Taps come in rising order, so the largest winning tap is the last one that won.
                np.multiply(better, argmax.dtype.type(tap), out=place)
                np.maximum(where, place, out=where)

    parallel_for(count * height, body, grain=1 + GRAIN // max(1, width * channels))
    return y, argmax


def _scatter(
    shape: tuple[int, ...],
    grad_shape: tuple[int, ...],
    dtype: np.dtype,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    share: Callable[[Band, int, Where], np.ndarray],
) -> np.ndarray:
    """Sum into dx, tap by tap, what share(band, tap, outputs) says each output sends there.

    Whole images belong to one worker, because the windows of neighbouring lines may overlap.
    """
    dx = np.zeros(shape, dtype)
    _, height, width, channels = grad_shape
    limit = max(1, CHUNK // 8 // max(1, width * channels))

    def body(start: int, stop: int, worker: int) -> None:
        for band in bands(start * height, stop * height, height, limit):
            for tap, (outputs, inputs) in enumerate(
                _taps(shape, band, width, kernel, stride, padding)
            ):
                dx[inputs] += share(band, tap, outputs)

    parallel_for(shape[0], body)
    return dx


def max_pool2d_backward(
    grad: np.ndarray,
    argmax: np.ndarray,
    input_shape: tuple[int, ...],
    kernel: Pair,
    stride: Pair,
    padding: Pair,
) -> np.ndarray:
    """Gradient of max pooling: each output's gradient added where its maximum was."""

    def share(band: Band, tap: int, outputs: Where) -> np.ndarray:
        images, lines = slice(band[0], band[1]), slice(band[2], band[3])
        source, where = grad[images, lines], argmax[images, lines]
        chosen = np.equal(where, tap, out=scratch("pool better", where.shape, np.bool_))
        product = scratch("pool", source.shape, source.dtype)
        return np.multiply(source, chosen, out=product)[outputs]

    return _scatter(input_shape, grad.shape, grad.dtype, kernel, stride, padding, share)


def avg_pool2d_forward(x: np.ndarray, kernel: Pair, stride: Pair, padding: Pair) -> np.ndarray:
    """Mean over windows of kh*kw cells, padding counted as zeros. x (N,H,W,C) -> (N,OH,OW,C)."""
    count, channels = x.shape[0], x.shape[3]
    height, width = _output_size(x.shape, kernel, stride, padding)
    y = np.zeros((count, height, width, channels), x.dtype)
    share = x.dtype.type(1 / (kernel[0] * kernel[1]))
    limit = max(1, CHUNK // 4 // max(1, width * channels))

    def body(start: int, stop: int, worker: int) -> None:
        for band in bands(start, stop, height, limit):
            out = y[band[0] : band[1], band[2] : band[3]]
            for outputs, inputs in _taps(x.shape, band, width, kernel, stride, padding):
                out[outputs] += x[inputs]
            out *= share

    parallel_for(count * height, body, grain=1 + GRAIN // max(1, width * channels))
    return y


def avg_pool2d_backward(
    grad: np.ndarray, input_shape: tuple[int, ...], kernel: Pair, stride: Pair, padding: Pair
) -> np.ndarray:
    """Gradient of average pooling: every cell of a window receives grad / (kh*kw)."""
    share = grad.dtype.type(1 / (kernel[0] * kernel[1]))

    def part(band: Band, tap: int, outputs: Where) -> np.ndarray:
        source = grad[band[0] : band[1], band[2] : band[3]]
        scaled = scratch("pool", source.shape, source.dtype)
        return np.multiply(source, share, out=scaled)[outputs]

    return _scatter(input_shape, grad.shape, grad.dtype, kernel, stride, padding, part)


def global_avg_pool_forward(x: np.ndarray) -> np.ndarray:
    """Mean over height and width. x (N,H,W,C) -> (N,C)."""
    count, height, width, channels = x.shape
    y = np.empty((count, channels), x.dtype)

    def body(start: int, stop: int, worker: int) -> None:
        images = x[start:stop].reshape(stop - start, height * width, channels)
        np.matmul(constant(1.0, height * width, x.dtype), images, out=y[start:stop])
        y[start:stop] /= height * width

    parallel_for(count, body, grain=1 + GRAIN // max(1, height * width * channels))
    return y


def global_avg_pool_backward(grad: np.ndarray, input_shape: tuple[int, ...]) -> np.ndarray:
    """Gradient of global average pooling: grad / (H*W) at every pixel. grad (N,C)."""
    count, height, width, channels = input_shape
    dx = np.empty(input_shape, grad.dtype)
    share = (grad / grad.dtype.type(height * width))[:, None, None, :]

    def body(start: int, stop: int, worker: int) -> None:
        dx[start:stop] = share[start:stop]

    parallel_for(count, body, grain=1 + GRAIN // max(1, height * width * channels))
    return dx
