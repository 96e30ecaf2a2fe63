"""What the convolution kernels share: reading a band of an input, and finishing one of an output.

Kernels walk images in bands of lines that fit the cache. A band's input may be formed while it is
read (`Source`: a deferred activation, or a gradient seen through a batch norm), and its output
finished while it is in the cache (bias, statistics, epilogue, mask), which is what fused operations
use.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tensorlite.kernels.contract import Epilogue, Mask, NormGrad, Prologue
from tensorlite.kernels.cpu import memory
from tensorlite.kernels.cpu.elementwise import accumulate, keep_active, rectify, wide, widen
from tensorlite.kernels.cpu.normalisation import (
    Tile,
    tile_grad_sums,
    tile_moments,
    wide_norm_grad,
)
from tensorlite.kernels.cpu.threads import Band, bands, parallel_for, scratch

GRAIN_VALUES = 1 << 17  # values copied or finished, below which one thread does

Pair = tuple[int, int]
Finish = Callable[[np.ndarray, Band], list]  # changes a band's (pixels, D), may leave something


class Source:
    """An array (N,H,W,C) that is read in runs of lines, possibly transformed on the way."""

    def __init__(
        self,
        array: np.ndarray,
        prologue: Prologue | None = None,
        norm_grad: NormGrad | None = None,
    ) -> None:
        self.array = array
        self.z = None if norm_grad is None else norm_grad.z
        self.relu = prologue is not None and prologue.relu
        vectors: tuple[np.ndarray, ...] = ()
        if prologue is not None:
            vectors = (prologue.scale, prologue.shift)
        elif norm_grad is not None:
            vectors = (norm_grad.scale,)
            if norm_grad.slope is not None and norm_grad.offset is not None:
                vectors += (norm_grad.slope, norm_grad.offset)
        # Repeated along a line, so that NumPy's inner loop runs over pixels and channels.
        shape = array.shape[2:]
        self.vectors = [np.broadcast_to(np.asarray(v, array.dtype), shape).copy() for v in vectors]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def plain(self) -> bool:
        return not self.vectors

    def read(self, out: np.ndarray, where: tuple[slice, ...]) -> None:
        """Fill out (images, lines, columns, C) with the pixels at where."""
        source = self.array[where]
        vectors = [v[: out.shape[2]] for v in self.vectors]
        if self.plain:
            out[...] = source
        elif self.z is not None:
            wide_norm_grad(source, self.z[where], out, *vectors)
        else:
            np.multiply(source, vectors[0], out=out)
            for shift in vectors[1:]:
                out += shift
            if self.relu:
                rectify(out, out)

    def rows(self, band: Band, name: str) -> np.ndarray:
        """A band's pixels (pixels, C): a view where possible, else in the scratch of that name."""
        view = band_view(self.array, band)
        shape = (view.size // max(1, view.shape[3]), view.shape[3])
        if self.plain and view.flags.c_contiguous:
            return view.reshape(shape)
        pixels = scratch(name, view.shape, view.dtype)
        self.read(pixels, (slice(*band[:2]), slice(*band[2:])))
        return pixels.reshape(shape)

    def padded(self, images: Pair, lines: Pair, columns: Pair, name: str = "pixels") -> np.ndarray:
        """Pixels of images first..last, (first, count) of lines and of columns, in the scratch of
        that name: zeros beyond the borders. (images, lines, columns, C)"""
        _, height, width, channels = self.shape
        above, top, bottom = _inside(*lines, height)
        before, left, right = _inside(*columns, width)
        shape = (images[1] - images[0], lines[1], columns[1], channels)
        pixels = scratch(name, shape, self.array.dtype)
        below, after = above + bottom - top, before + right - left
        pixels[:, :above] = 0
        pixels[:, below:] = 0
        pixels[:, above:below, :before] = 0
        pixels[:, above:below, after:] = 0
        if bottom > top and right > left:
            where = (slice(*images), slice(top, bottom), slice(left, right))
            self.read(pixels[:, above:below, before:after], where)
        return pixels


def _inside(first: int, count: int, size: int) -> tuple[int, int, int]:
    """Of source positions first..first+count: how many lie before, the first and last inside."""
    low = min(max(first, 0), size)
    high = max(low, min(first + count, size))
    return min(low - first, count), low, high


def band_view(a: np.ndarray, band: Band) -> np.ndarray:
    return a[band[0] : band[1], band[2] : band[3]]


def band_rows(a: np.ndarray, band: Band) -> np.ndarray:
    """A band of a as contiguous (pixels, C): a view of a contiguous array, else a copy."""
    return np.ascontiguousarray(band_view(a, band)).reshape(-1, a.shape[3])


def finish_forward(
    bias: np.ndarray | None,
    statistics: bool,
    epilogue: Epilogue | None,
    dtype: np.dtype,
) -> Finish | None:
    """Adds the bias, leaves the moments if wanted, applies the epilogue; None for nothing."""
    if bias is None and epilogue is None and not statistics:
        return None
    wide_bias = None if bias is None else widen(bias, dtype)
    scale = shift = residual = None
    relu = False
    if epilogue is not None:
        scale = None if epilogue.scale is None else widen(epilogue.scale, dtype)
        shift, residual, relu = widen(epilogue.shift, dtype), epilogue.residual, epilogue.relu

    def finish(rows: np.ndarray, band: Band) -> list[Tile]:
        if wide_bias is not None:
            for (view,) in wide(rows):
                view += wide_bias[: view.shape[1]]
        tiles = [tile_moments(rows)] if statistics else []
        if shift is not None:
            for (view,) in wide(rows):
                if scale is not None:
                    view *= scale[: view.shape[1]]
                view += shift[: view.shape[1]]
            if residual is not None:
                rows += band_rows(residual, band)
            if relu:
                for (view,) in wide(rows):
                    rectify(view, view)
        return tiles

    return finish


def finish_masked(z: np.ndarray, mask: Mask, dtype: np.dtype) -> Finish:
    """Zeroes a gradient where the mask's relu cut and leaves its sums; z is the output's part of
    mask.z."""
    scale, shift, mean = (
        widen(v, dtype) for v in (mask.activation.scale, mask.activation.shift, mask.mean)
    )

    def finish(rows: np.ndarray, band: Band) -> list[tuple[np.ndarray, np.ndarray]]:
        values = band_rows(z, band)
        if mask.activation.relu:
            keep_active(rows, values, scale, shift)
        return [tile_grad_sums(rows, values, mean)]

    return finish


def finish_later(out: np.ndarray, finish: Finish | None) -> list:
    """Finish the whole of an output of few pixels, whose parts were not workers' own bands; what
    finish left."""
    if finish is None:
        return []
    count, height, width, channels = out.shape

    def body(start: int, stop: int, worker: int) -> list:
        left: list = []
        for band in bands(start, stop, height, count * height):
            left += finish(band_rows(out, band), band)
        return left

    parts = parallel_for(count * height, body, grain=1 + GRAIN_VALUES // (width * channels))
    return [item for part in parts for item in part]


def add_in_order(parts: list[np.ndarray], shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The sum of the workers' parts, each of that shape, in the first of them; zeros if none."""
    if not parts:
        return memory.zeros(shape, dtype)
    first, *others = parts
    for other in others:
        accumulate(first, other)
    return first.reshape(shape)
