"""Maximum, average and global average pooling on the CPU.

Windows are separable: a maximum over lines, then one over columns, takes 3 + 3 cells of a 3x3
window in place of 9. The gradient goes back the same way, from a window to the first of its lines
that holds the maximum and from there to the first such cell, so that no index of it is stored.
Cells of a window that lie in the padding are left out by clipping ranges; no padded copy exists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tensorlite.kernels.contract import GradSums, Mask, Prologue
from tensorlite.kernels.cpu.elementwise import (
    CHUNK,
    GRAIN,
    constant,
    keep_positive,
    rectify,
    wide,
    widen,
)
from tensorlite.kernels.cpu.memory import empty, zeros
from tensorlite.kernels.cpu.normalisation import (
    merge_grad_sums,
    norm_backward_sums,
    tile_grad_sums,
)
from tensorlite.kernels.cpu.threads import Band, bands, parallel_for, scratch
from tensorlite.kernels.geometry import Pair, output_size

Where = tuple[slice, slice, slice]  # images, lines, columns
Views = list[tuple[slice, np.ndarray]]  # for each window cell: the outputs it serves, its values


def _clip(first: int, last: int, size: int, tap: int, stride: int, pad: int) -> tuple[slice, slice]:
    """Outputs in first..last whose window cell `tap` is inside the input, and those cells."""
    low = max(first, -((tap - pad) // stride))
    high = max(low, min(last, (size - 1 + pad - tap) // stride + 1))
    begin = low * stride - pad + tap
    end = begin + (high - low - 1) * stride + 1 if high > low else begin
    return slice(low - first, high - first), slice(begin, end, stride)


def _largest(views: Views, axis: int, out: np.ndarray) -> None:
    """out = the maximum over window cells along `axis`."""
    size, lead = out.shape[axis], (slice(None),) * axis
    views = sorted(views, key=lambda view: view[0].start - view[0].stop)  # the longest first
    whole = [cell for served, cell in views[:2] if served.stop - served.start == size]
    if len(whole) == 2:
        np.maximum(whole[0], whole[1], out=out)
    else:
        out[...] = whole[0] if whole else -np.inf
    for served, cell in views[len(whole) :]:
        part = out[(*lead, served)]
        np.maximum(part, cell, out=part)


def _sign(scale: np.ndarray, dtype: np.dtype) -> np.ndarray | None:
    """The signs of scale, None where all are positive."""
    return None if (scale > 0).all() else np.sign(scale).astype(dtype)


def max_pool2d_forward(
    x: np.ndarray, kernel: Pair, stride: Pair, padding: Pair, prologue: Prologue | None = None
) -> np.ndarray:
    """Maximum over windows of x, or of its activation. x (N,H,W,C) -> (N,OH,OW,C).

    Padding never wins; NaN wins over numbers.
    """
    (count, lines, columns, channels), dtype = x.shape, x.dtype
    height, width = output_size(x.shape, kernel, stride, padding)
    y = empty((count, height, width, channels), dtype)
    sign = None
    if prologue is not None:
        # x * scale + shift, rounded as it is, rises with x * sign(scale), and relu rises: applied
        # to the maximum they give the maximum of what they would have given.
        sign = _sign(prologue.scale, dtype)
        scale, shift = widen(abs(prologue.scale), dtype), widen(prologue.shift, dtype)
    limit = max(1, CHUNK // max(1, stride[0] * columns * channels))

    def body(start: int, stop: int, worker: int) -> None:
        for first_image, last_image, first, last in bands(start, stop, height, limit):
            images, out = x[first_image:last_image], y[first_image:last_image, first:last]
            low = max(0, first * stride[0] - padding[0])
            source = images[:, low : (last - 1) * stride[0] - padding[0] + kernel[0]]
            if sign is not None:
                product = scratch("pool signed", source.shape, dtype)
                source = np.multiply(source, sign, out=product)
            rows: Views = []
            for tap in range(kernel[0]):
                served, cells = _clip(first, last, lines, tap, stride[0], padding[0])
                cells = slice(cells.start - low, cells.stop - low, cells.step)
                rows.append((served, source[:, cells]))
            over_lines = scratch("pool lines", (*out.shape[:2], columns, channels), dtype)
            _largest(rows, 1, over_lines)
            sides: Views = []
            for tap in range(kernel[1]):
                served, cells = _clip(0, width, columns, tap, stride[1], padding[1])
                sides.append((served, over_lines[:, :, cells]))
            _largest(sides, 2, out)
            if prologue is not None:
                for (view,) in wide(out.reshape(-1, channels)):
                    view *= scale[: view.shape[1]]
                    view += shift[: view.shape[1]]
                    if prologue.relu:
                        rectify(view, view)

    parallel_for(count * height, body, grain=1 + GRAIN // max(1, width * channels))
    return y


class _Axis(NamedTuple):
    """How windows lie along an axis of `size` cells.

    Cells a multiple of the stride apart make a phase. Phase by phase, padding included, what the
    windows see as their cell `tap` lies side by side, which strided views do not.
    """

    size: int
    windows: int
    kernel: int
    stride: int
    padding: int

    @property
    def lengths(self) -> list[int]:
        """How many cells of each phase the windows see."""
        phases = range(min(self.kernel, self.stride))
        return [self.windows + (self.kernel - 1 - phase) // self.stride for phase in phases]

    def inside(self, phase: int) -> tuple[slice, slice]:
        """The cells of a phase that are not padding, and their places in the input."""
        return _clip(0, self.lengths[phase], self.size, phase, self.stride, self.padding)

    def served(self, tap: int) -> slice:
        """The windows whose cell `tap` is not padding."""
        return _clip(0, self.windows, self.size, tap, self.stride, self.padding)[0]

    def seen(self, tap: int, phases: list[np.ndarray], dimension: int) -> np.ndarray:
        """What the windows see as their cell `tap`."""
        phase, first = tap % self.stride, tap // self.stride
        return phases[phase][(slice(None),) * dimension + (slice(first, first + self.windows),)]

    def largest(self, phases: list[np.ndarray], dimension: int, out: np.ndarray) -> None:
        """out = the maximum of each window; padding is -inf."""
        every = slice(0, self.windows)
        cells = [(every, self.seen(tap, phases, dimension)) for tap in range(self.kernel)]
        _largest(cells, dimension, out)

    def covers(self) -> bool:
        """Whether a window sees each cell of the input."""
        end = (self.windows - 1) * self.stride - self.padding + self.kernel
        return self.kernel >= self.stride and end >= self.size

    def share(
        self,
        rest: np.ndarray,
        best: np.ndarray,
        phases: list[np.ndarray],
        shares: list[np.ndarray],
        dimension: int,
    ) -> None:
        """Hand each window's `rest` to the first of its cells that equals `best`; NaN equals NaN.

        What overlapping windows hand over adds up in `shares`; rest is used up. The selection
        multiplies the bits of numbers by 0 or 1, because infinity times 0.0 would be NaN.
        """
        lead, bits = (slice(None),) * dimension, np.dtype(f"i{rest.itemsize}")
        equal = scratch("pool equal", rest.shape, np.bool_)
        missing = np.isnan(best, out=equal).any()
        for tap in range(self.kernel):
            first = tap < self.stride  # of its phase
            share, part = self.seen(tap, shares, dimension), rest
            if tap < self.kernel - 1:  # the last cell gets what no other took
                part = share if first else scratch("pool part", rest.shape, rest.dtype)
                cell, served = self.seen(tap, phases, dimension), self.served(tap)
                np.equal(cell, best, out=equal)
                if missing:
                    equal |= np.isnan(cell)
                equal[(*lead, slice(served.start))] = False
                equal[(*lead, slice(served.stop, None))] = False
                np.multiply(rest.view(bits), equal, out=part.view(bits))
                np.bitwise_xor(rest.view(bits), part.view(bits), out=rest.view(bits))
            if first:
                share[...] = part
                shares[tap][(*lead, slice(self.windows, None))] = 0
            else:
                share += part


def max_pool2d_backward(
    grad: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    mask: Mask | None = None,
) -> tuple[np.ndarray, GradSums | None]:
    """Gradient of max pooling: each window's gradient goes to the first cell that holds its y.

    With a mask, x is the mask's z and y the maximum of its activation; the gradient is that of the
    activation's norm, zero where relu cut, and its sums are returned. Of cells that only the
    rounding of the activation makes equal, the one that was largest before it gets the gradient.
    """
    channels, dtype = x.shape[3], x.dtype
    rows, columns = (
        _Axis(x.shape[1 + i], y.shape[1 + i], kernel[i], stride[i], padding[i]) for i in range(2)
    )
    dx = empty(x.shape, dtype)
    sign = None
    if mask is not None:
        sign = _sign(mask.activation.scale, dtype)
        centre = widen(mask.mean if sign is None else sign * mask.mean, dtype)

    def arrays(name: str, *shapes: tuple[int, ...]) -> list[np.ndarray]:
        return [
            scratch(f"pool {name} {i}", (*shape, channels), dtype) for i, shape in enumerate(shapes)
        ]

    def images(first: int, last: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Write dx of some images; their sums if there is a mask."""
        n, window = last - first, (last - first, rows.windows, columns.windows)
        cells = [
            arrays(f"cells {i}", *((n, height, width) for width in columns.lengths))
            for i, height in enumerate(rows.lengths)
        ]
        widest = arrays("widest", *((n, height, columns.windows) for height in rows.lengths))
        for i, row in enumerate(cells):
            for j, cell in enumerate(row):
                (lines, from_lines), (sides, from_sides) = rows.inside(i), columns.inside(j)
                source, inner = x[first:last, from_lines, from_sides], cell[:, lines, sides]
                if sign is None:
                    inner[...] = source
                else:
                    np.multiply(source, sign, out=inner)
                cell[:, : lines.start] = cell[:, lines.stop :] = -np.inf
                cell[:, :, : sides.start] = cell[:, :, sides.stop :] = -np.inf
            columns.largest(row, 2, widest[i])
        (rest,), best, sums = arrays("rest", window), y[first:last], None
        rest[...] = grad[first:last]
        if mask is not None:
            (best,) = arrays("best", window)
            rows.largest(widest, 1, best)
            if mask.activation.relu:
                keep_positive(rest, y[first:last], rest)
            sums = tile_grad_sums(rest.reshape(-1, channels), best.reshape(-1, channels), centre)
        to_lines = arrays("to lines", *(line.shape[:3] for line in widest))
        rows.share(rest, best, widest, to_lines, 1)
        if not (rows.covers() and columns.covers()):
            dx[first:last] = 0
        for i, row in enumerate(cells):
            to_cells = arrays("to cells", *(cell.shape[:3] for cell in row))
            columns.share(to_lines[i], widest[i], row, to_cells, 2)
            for j, share in enumerate(to_cells):
                (lines, to), (sides, into) = rows.inside(i), columns.inside(j)
                dx[first:last, to, into] = share[:, lines, sides]
        return sums

    step = max(1, CHUNK // max(1, rows.size * columns.size * channels))

    def body(start: int, stop: int, worker: int) -> list[tuple[np.ndarray, np.ndarray] | None]:
        return [images(at, min(at + step, stop)) for at in range(start, stop, step)]

    parts = parallel_for(len(x), body)
    if mask is None:
        return dx, None
    if sign is not None and not sign.all():  # a scale of zero has lost which value won
        return dx, norm_backward_sums(dx, x, mask.mean)
    tiles = [tile for part in parts for tile in part if tile is not None]
    sums = merge_grad_sums(tiles, channels, dtype)
    return dx, sums if sign is None else GradSums(sums.grad, sums.grad_centred * sign)


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
    dx = zeros(shape, dtype)
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


def avg_pool2d_forward(x: np.ndarray, kernel: Pair, stride: Pair, padding: Pair) -> np.ndarray:
    """Mean over windows of kh*kw cells, padding counted as zeros. x (N,H,W,C) -> (N,OH,OW,C)."""
    count, channels = x.shape[0], x.shape[3]
    height, width = output_size(x.shape, kernel, stride, padding)
    y = zeros((count, height, width, channels), x.dtype)
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
    y = empty((count, channels), x.dtype)

    def body(start: int, stop: int, worker: int) -> None:
        images = x[start:stop].reshape(stop - start, height * width, channels)
        np.matmul(constant(1.0, height * width, x.dtype), images, out=y[start:stop])
        y[start:stop] /= height * width

    parallel_for(count, body, grain=1 + GRAIN // max(1, height * width * channels))
    return y


def global_avg_pool_backward(grad: np.ndarray, input_shape: tuple[int, ...]) -> np.ndarray:
    """Gradient of global average pooling: grad / (H*W) at every pixel. grad (N,C)."""
    count, height, width, channels = input_shape
    dx = empty(input_shape, grad.dtype)
    share = (grad / grad.dtype.type(height * width))[:, None, None, :]

    def body(start: int, stop: int, worker: int) -> None:
        dx[start:stop] = share[start:stop]

    parallel_for(count, body, grain=1 + GRAIN // max(1, height * width * channels))
    return dx
