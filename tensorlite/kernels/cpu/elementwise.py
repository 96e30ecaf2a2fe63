"""Elementwise CPU kernels, matrix products and the temporal skip, split over the thread pool.

Arrays are walked in chunks that fit a core's cache, so that a formula of several NumPy calls
reads memory once. NumPy runs its inner loop along the last axis; with 16 channels its overhead
would dominate, so a (rows, C) chunk is viewed as (rows/k, k*C) and per-channel vectors are
repeated k times (`wide`). Sums over rows are products with a vector of ones, which the BLAS does
at the speed of the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from tensorlite.kernels.cpu.memory import empty, empty_like, zeros
from tensorlite.kernels.cpu.threads import parallel_for, scratch
from tensorlite.kernels.frames import live_frames

# Elements of one array worked on at a time. Measured on Zen 3: 1 << 18 beats 1 << 16, which fits
# the inner cache better but calls NumPy, and hands the GIL to and fro, four times as often.
CHUNK = 1 << 18
GRAIN = 1 << 16  # elements below which a second thread costs more than it brings
# Elements of the inner loop that per-channel vectors are repeated to. On a Zen 3 core 256..512 are
# equally quick; rows of 4096 bytes and more are sometimes six times slower (address aliasing).
WIDE = 512


def repeats(channels: int) -> int:
    """How many pixels' channels make one wide row."""
    return max(1, WIDE // max(1, channels))


def widen(vector: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A per-channel vector repeated to the length of a wide row."""
    row = np.empty((repeats(len(vector)), len(vector)), dtype)
    row[...] = vector
    return row.reshape(-1)


def wide(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Views of contiguous (rows, C) arrays as wide rows, then the rows left over as one row.

    A widened vector cut to the view's length, `vector[: view.shape[1]]`, fits both.
    """
    rows, channels = arrays[0].shape
    k = repeats(channels)
    full = rows // k * k
    if full:
        yield tuple(a[:full].reshape(-1, k * channels) for a in arrays)
    if full < rows:
        yield tuple(a[full:].reshape(1, -1) for a in arrays)


def rows_of(x: np.ndarray) -> np.ndarray:
    """x as a contiguous (rows, C) matrix; copies only what is not contiguous."""
    x = np.ascontiguousarray(x)
    return x.reshape(x.size // max(1, x.shape[-1]), x.shape[-1])


_constants: dict[tuple[float, np.dtype], np.ndarray] = {}


def constant(value: float, count: int, dtype: np.dtype) -> np.ndarray:
    """A vector of one value, to be read only: kept, and as long as any that was asked for."""
    vector = _constants.get((value, dtype))
    if vector is None or len(vector) < count:
        vector = _constants[value, dtype] = np.full(max(CHUNK, count), value, dtype)
    return vector[:count]


def column_sums(rows: np.ndarray) -> np.ndarray:
    """Sum of a (rows, C) matrix over its rows."""
    return constant(1.0, len(rows), rows.dtype) @ rows


def rectify(x: np.ndarray, out: np.ndarray) -> None:
    """out = max(x, 0). NumPy's maximum is three times quicker with an array than with a scalar."""
    np.maximum(x, constant(0.0, x.shape[-1], x.dtype), out=out)


def for_chunks(rows: int, row_size: int, body: Callable[[int, int], None]) -> None:
    """Call body(start, stop) on runs of rows that fit the cache, over the thread pool."""
    step = max(1, CHUNK // max(1, row_size))

    def run(start: int, stop: int, worker: int) -> None:
        for at in range(start, stop, step):
            body(at, min(at + step, stop))

    parallel_for(rows, run, grain=max(1, GRAIN // max(1, row_size)))


def keep_positive(grad: np.ndarray, value: np.ndarray, out: np.ndarray) -> None:
    """out = grad where value > 0, else 0.

    By masking bits, because an infinite gradient times zero would be NaN, and np.where or a masked
    copy take ten times as long. The last axis of grad and out is contiguous.
    """
    above = np.greater(value, 0, out=scratch("above", value.shape, np.bool_)).view(np.int8)
    np.negative(above, out=above)
    bits = np.dtype(f"i{grad.itemsize}")
    mask = scratch("mask", value.shape, bits)
    mask[...] = above
    np.bitwise_and(grad.view(bits), mask, out=out.view(bits))


def keep_active(grad: np.ndarray, z: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> None:
    """Set grad to zero, in place, where relu cuts z * scale + shift.

    grad and z are contiguous (rows, C); scale and shift are widened.
    """
    for out, value in wide(grad, z):
        t = scratch("activation", value.shape, value.dtype)
        np.multiply(value, scale[: t.shape[1]], out=t)
        t += shift[: t.shape[1]]
        keep_positive(out, t, out)


def affine(x: np.ndarray, scale: np.ndarray, shift: np.ndarray, relu: bool = False) -> np.ndarray:
    """x * scale + shift per channel, then relu if asked. x (..., C); scale, shift (C,)."""
    rows = rows_of(x)
    y = empty_like(rows)
    scale, shift = widen(scale, x.dtype), widen(shift, x.dtype)

    def body(start: int, stop: int) -> None:
        for source, out in wide(rows[start:stop], y[start:stop]):
            np.multiply(source, scale[: out.shape[1]], out=out)
            out += shift[: out.shape[1]]
            if relu:
                rectify(out, out)

    for_chunks(len(rows), rows.shape[1], body)
    return y.reshape(x.shape)


def cast(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """x rounded to another floating-point dtype: a new array."""
    return x.astype(dtype)


def relu_forward(x: np.ndarray) -> np.ndarray:
    """max(x, 0); NaN stays NaN."""
    flat = np.ascontiguousarray(x).reshape(-1)
    y = empty_like(flat)
    for_chunks(flat.size, 1, lambda a, b: rectify(flat[a:b], y[a:b]))
    return y.reshape(x.shape)


def relu_backward(grad: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Gradient of relu from its output y: grad where y > 0, else 0."""
    flat, value = np.ascontiguousarray(grad).reshape(-1), np.ascontiguousarray(y).reshape(-1)
    dx = empty_like(flat)

    def body(start: int, stop: int) -> None:
        keep_positive(flat[start:stop], value[start:stop], dx[start:stop])

    for_chunks(flat.size, 1, body)
    return dx.reshape(grad.shape)


def blas_operand(a: np.ndarray) -> np.ndarray:
    """a itself when the BLAS can read it, plain or transposed, else a contiguous copy."""
    for view in (a, a.T):
        if view.strides[1] == a.itemsize and view.strides[0] >= view.shape[1] * a.itemsize:
            return a
    return np.ascontiguousarray(a)


def matmul2d(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """a @ b for 2-D operands (transposed views welcome), the longer side of the result split."""
    a, b = blas_operand(a), blas_operand(b)
    rows, inner, columns = a.shape[0], a.shape[1], b.shape[1]
    if out is None:
        out = empty((rows, columns), np.result_type(a, b))
    if rows >= columns:
        grain = 1 + (1 << 18) // max(1, inner * columns)
        parallel_for(rows, lambda i, j, _: np.matmul(a[i:j], b, out=out[i:j]), grain)
    else:
        grain = 1 + (1 << 18) // max(1, inner * rows)
        parallel_for(columns, lambda i, j, _: np.matmul(a, b[:, i:j], out=out[:, i:j]), grain)
    return out


def accumulate(total: np.ndarray, piece: np.ndarray) -> None:
    """total += piece, in place; both of one shape."""
    if not (total.flags.c_contiguous and piece.flags.c_contiguous):
        total += piece
        return
    flat, more = total.reshape(-1), piece.reshape(-1)

    def body(start: int, stop: int) -> None:
        flat[start:stop] += more[start:stop]

    for_chunks(flat.size, 1, body)


def _copy(a: np.ndarray) -> np.ndarray:
    copy = empty_like(a)
    copy[...] = a
    return copy


def temporal_skip_forward(y: np.ndarray, x: np.ndarray, frames: int) -> np.ndarray:
    """out_t = y_t + x_{t-1} inside each chunk of `frames` frames, x_0 = 0.

    y and x are folded chunk batches (B*T, ...). y may hold frames 2..T only, its first having
    been dropped, or x frames 1..T-1; which follows from their lengths.
    """
    out = _copy(y)
    if frames == 1 or not out.size:
        return out
    y_frames, x_frames = live_frames(frames, y.shape, x.shape)
    late = out.reshape(-1, y_frames, *y.shape[1:])[:, y_frames - (frames - 1) :]
    early = x.reshape(-1, x_frames, *x.shape[1:])[:, : frames - 1]

    def body(start: int, stop: int) -> None:
        late[start:stop] += early[start:stop]

    for_chunks(len(late), late[0].size, body)
    return out


def temporal_skip_backward(
    grad: np.ndarray, y_shape: tuple[int, ...], x_shape: tuple[int, ...], frames: int
) -> tuple[np.ndarray, np.ndarray]:
    """Gradients (dy, dx) of the temporal skip: dy = grad, dx_{t-1} = grad_t, zero at frame T."""
    dy, dx = _copy(grad), zeros(x_shape, grad.dtype)
    if frames == 1 or not grad.size:
        return dy, dx
    y_frames, x_frames = live_frames(frames, y_shape, x_shape)
    late = dy.reshape(-1, y_frames, *y_shape[1:])[:, y_frames - (frames - 1) :]
    early = dx.reshape(-1, x_frames, *x_shape[1:])[:, : frames - 1]

    def body(start: int, stop: int) -> None:
        early[start:stop] = late[start:stop]

    for_chunks(len(late), late[0].size, body)
    return dy, dx
