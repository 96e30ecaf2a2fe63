"""The end of a residual block on the CPU: y = relu(sum of terms) in one pass, and back in one.

A term is an array or the deferred activation of one; in a recurrent block some terms are shifted by
a frame. Rows of pixels that fit the cache are taken through the whole formula at once. Backward,
the gradient below the relu serves every unshifted term as it is, and the sums that the terms' batch
norms need are taken while it is in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tensorlite.kernels.contract import GradSums, Term
from tensorlite.kernels.cpu.elementwise import keep_active, keep_positive, rectify, wide, widen
from tensorlite.kernels.cpu.memory import empty_like
from tensorlite.kernels.cpu.normalisation import merge_grad_sums, tile_grad_sums
from tensorlite.kernels.cpu.threads import parallel_for, scratch
from tensorlite.kernels.frames import clear_unused

# Elements of one array worked on at a time, and those below which one thread does it all.
CHUNK = 1 << 16
GRAIN = 1 << 16


# Of each term's number, the sums of a tile.
Sums = list[tuple[int, tuple[np.ndarray, np.ndarray]]]


class _Frames:
    """Pixel rows of an array (B T', H, W, C) of B chunks, reached by frame; with `flat`, all pixels
    count as those of one frame."""

    def __init__(self, array: np.ndarray, chunks: int, flat: bool) -> None:
        array = np.ascontiguousarray(array)
        self.rows = array.reshape(array.size // max(1, array.shape[3]), array.shape[3])
        self.times = 1 if flat else len(array) // chunks
        self.pixels = len(self.rows) if flat else array.shape[1] * array.shape[2]

    def at(self, frame: int, times: int, offset: int, first: int, last: int) -> np.ndarray | None:
        """Pixels first..last of what is added to output frame number `frame` of chunks of `times`
        frames, or None where it has none."""
        chunk, time = divmod(frame, times)
        time -= offset
        if not 0 <= time < self.times:
            return None
        start = (chunk * self.times + time) * self.pixels
        return self.rows[start + first : start + last]


def _pieces(start: int, stop: int, pixels: int, step: int) -> Iterator[tuple[int, int, int]]:
    """Cut pixels start..stop of a stack of frames into (frame, first pixel, last pixel + 1)."""
    while start < stop:
        frame, first = divmod(start, pixels)
        last = min(first + step, pixels, first + stop - start)
        yield frame, first, last
        start += last - first


def _flat(shape: tuple[int, ...], terms: Sequence[Term]) -> bool:
    """No term is shifted: all frames may be taken as the pixels of one."""
    return all(t.offset == 0 and t.value.shape == shape for t in terms)


def join_forward(terms: Sequence[Term], chunks: int) -> np.ndarray:
    """y = relu(sum of terms), of the shape of the first."""
    y = empty_like(terms[0].value)
    flat = _flat(y.shape, terms)
    target = _Frames(y, chunks, flat)
    sources = [(_Frames(t.value, chunks, flat), t.activation, t.offset) for t in terms]
    channels, times = y.shape[3], target.times
    vectors = [
        (widen(a.scale, y.dtype), widen(a.shift, y.dtype)) if a else None for _, a, _ in sources
    ]
    step = max(1, CHUNK // max(1, channels))

    def add(rows: np.ndarray, number: int, source: np.ndarray, started: bool) -> None:
        activation, vector = sources[number][1], vectors[number]
        for total, value in wide(rows, source):
            if activation is None or vector is None:
                if started:
                    total += value
                else:
                    total[...] = value
                continue
            scale, shift = (v[: total.shape[1]] for v in vector)
            part = scratch("join", total.shape, total.dtype) if started else total
            np.multiply(value, scale, out=part)
            part += shift
            if activation.relu:
                rectify(part, part)
            if started:
                total += part

    def body(start: int, stop: int, worker: int) -> None:
        for frame, low, high in _pieces(start, stop, target.pixels, step):
            rows = target.rows[frame * target.pixels + low : frame * target.pixels + high]
            started = False
            for number, (source, _, offset) in enumerate(sources):
                piece = source.at(frame, times, offset, low, high)
                if piece is not None:
                    add(rows, number, piece, started)
                    started = True
            for (total,) in wide(rows):
                rectify(total, total)

    parallel_for(len(target.rows), body, grain=1 + GRAIN // max(1, channels))
    return y


def join_backward(
    grad: np.ndarray,
    y: np.ndarray,
    terms: Sequence[Term],
    means: Sequence[np.ndarray | None],
    chunks: int,
) -> list[tuple[np.ndarray, GradSums | None]]:
    """The gradient of each term, and for a deferred one the sums about its mean.

    A deferred term's gradient is that of its norm: zero where the relu it may have cut. Unshifted
    terms without such a relu share one array.
    """
    plain = empty_like(y)
    owners = [
        t.offset != 0
        or t.value.shape != y.shape
        or (t.activation is not None and t.activation.relu)
        for t in terms
    ]
    results = [
        empty_like(t.value) if own else plain for t, own in zip(terms, owners, strict=True)
    ]
    flat = _flat(y.shape, terms)
    target, ys, grads = (_Frames(a, chunks, flat) for a in (plain, y, grad))
    sources = [_Frames(t.value, chunks, flat) for t in terms]
    targets = [_Frames(r, chunks, flat) for r in results]
    channels, times = y.shape[3], target.times
    vectors = [
        (widen(t.activation.scale, y.dtype), widen(t.activation.shift, y.dtype))
        if t.activation
        else ()
        for t in terms
    ]
    centres = [None if m is None else widen(m, y.dtype) for m in means]
    step = max(1, CHUNK // max(1, channels))
    def finish(number: int, own: np.ndarray, source: np.ndarray) -> Sums:
        activation, centre = terms[number].activation, centres[number]
        if activation is None or centre is None:
            return []
        if activation.relu:
            keep_active(own, source, *vectors[number])
        return [(number, tile_grad_sums(own, source, centre))]

    def body(start: int, stop: int, worker: int) -> Sums:
        left: Sums = []
        for frame, low, high in _pieces(start, stop, target.pixels, step):
            rows, value, incoming = (
                a.rows[frame * a.pixels + low : frame * a.pixels + high]
                for a in (target, ys, grads)
            )
            for out, above, g in wide(rows, value, incoming):
                keep_positive(g, above, out)
            for number, term in enumerate(terms):
                own = targets[number].at(frame, times, term.offset, low, high)
                source = sources[number].at(frame, times, term.offset, low, high)
                if own is None or source is None:
                    continue
                if owners[number]:
                    own[...] = rows
                left += finish(number, own, source)
        return left

    parts = parallel_for(len(target.rows), body, grain=1 + GRAIN // max(1, channels))
    for number, term in enumerate(terms):
        if owners[number]:
            clear_unused(results[number], chunks, len(y) // chunks, term.offset)
    tiles: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in terms]
    for part in parts:
        for number, tile in part:
            tiles[number].append(tile)
    return [
        (dx, None if mean is None else merge_grad_sums(own, channels, y.dtype))
        for dx, mean, own in zip(results, means, tiles, strict=True)
    ]
