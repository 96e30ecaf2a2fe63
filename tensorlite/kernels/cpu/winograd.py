"""3x3 convolutions of stride 1 by Winograd's minimal filtering F(4x4, 3x3), forward and backward.

A tile of 4x4 outputs sees 6x6 inputs d. With the matrices below (Lavin and Gray, 2016; points 0,
+-1, +-2 and infinity)

    y = A' [(G g G') * (B' d B)] A

where * is elementwise: 36 multiplications in place of 144, each of them, over channels and tiles, a
matrix product. The transforms too are products with the 36 positions of a tile: NumPy has no
kernel that does a 6-point transform in one pass, and the BLAS does the 36x36 one at half the cost
of the passes. For a band of tile rows everything stays in the cache.

The gradient to the input is the same with flipped, transposed filters. That to the filters is
dg = G' [sum over tiles of (B' d B) * (A dy A')] G, and shares with the other the gradient's pixels.

In float32 a result is within 1.2e-5 of the largest of its array, and 3e-6 in the mean (measured
against float64 on normal values with 32 to 512 channels; direct sums: 6e-7 and 3e-7); in float64
within 1e-14.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from tensorlite.kernels.cpu import memory
from tensorlite.kernels.cpu.bands import (
    Band,
    Finish,
    Pair,
    Source,
    add_in_order,
    band_rows,
    finish_later,
)
from tensorlite.kernels.cpu.threads import bands, get_num_threads, parallel_for, scratch

_G = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)
_BT = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_AT = np.array(
    [
        [1, 1, 1, 1, 1, 0],
        [0, 1, -1, 2, -2, 0],
        [0, 1, 1, 4, 4, 0],
        [0, 1, -1, 8, -8, 1],
    ]
)

# Bytes of a band's transformed inputs and outputs, and its least number of tiles: below that, the
# products spend their time packing the filters. Measured on Zen 3 with 32 to 256 channels, where
# 2 to 8 MB differ by 5 %.
WORKSPACE = 1 << 22
MIN_TILES = 64
# Tiles a worker should have, else the workers share output channels, so many each.
FEW_TILES, MIN_OUTPUTS = 16, 64
GRAIN_FLOPS = 1 << 21  # multiply-adds below which a second thread costs more than it brings
KEPT_FILTER = 20  # ns to read and pack a transformed filter, in `wins`
FILTERS = 1 << 13  # filters transformed at a time: input and output stay in the inner cache


class _Transforms(NamedTuple):
    """The transforms of a dtype: of filters (one axis), and of whole tiles (both axes)."""

    filters: np.ndarray  # G
    filters_back: np.ndarray  # (G x G)', of the gradient to the filters
    inputs: np.ndarray  # B' x B'
    outputs: np.ndarray  # A' x A'
    outputs_back: np.ndarray  # A x A, of the outputs' gradient


@functools.cache
def _transforms(dtype: np.dtype) -> _Transforms:
    both = (np.kron(_G, _G).T, np.kron(_BT, _BT), np.kron(_AT, _AT), np.kron(_AT, _AT).T)
    return _Transforms(*(np.ascontiguousarray(m, dtype) for m in (_G, *both)))


def wins(images: int, size: Pair, channels: int, outputs: int, kept: bool = False) -> bool:
    """Whether the transforms are repaid, for outputs of `size`; with kept, those of the filters are
    there already.

    The estimate is in ns of a Zen 3 core: 0.026 a multiply-add of a product, for a tile's transform
    42 an input channel and 22 an output, and for a filter 60 (its transform, and packing it for
    products of few rows). It was right by 10 % for 32 to 512 channels and 7 to 64 pixels a side.
    """
    rows, columns = _grid(size)
    product = channels * outputs
    tile = 36 * product * 0.026 + 42 * channels + 22 * outputs
    direct = 9 * images * size[0] * size[1] * product * 0.026
    filters = (KEPT_FILTER if kept else 60) * product
    return rows * columns * images * tile + filters < 0.95 * direct


def _grid(size: Pair) -> Pair:
    """Rows and columns of tiles that cover an image."""
    return -(-size[0] // 4), -(-size[1] // 4)


def _limit(columns: int, channels: int, dtype: np.dtype) -> int:
    """Tile rows a band may have."""
    tiles = max(MIN_TILES, WORKSPACE // (36 * max(1, channels) * dtype.itemsize))
    return max(1, tiles // max(1, columns))


def _grain(columns: int, channels: int, outputs: int) -> int:
    return 1 + GRAIN_FLOPS // max(1, 36 * columns * channels * outputs)


def _filters(weight: np.ndarray, flipped: bool) -> np.ndarray:
    """G g G' of every filter: (36, C, D); with flipped, of the filters turned by half a turn."""
    shape = weight.shape[2:]
    g = np.ascontiguousarray(weight).reshape(9, -1)
    out = memory.empty((36, g.shape[1]), g.dtype)
    matrix = _transforms(g.dtype).filters[:, :: -1 if flipped else 1].copy()

    def body(start: int, stop: int, worker: int) -> None:
        for at in range(start, stop, FILTERS):
            part = slice(at, min(at + FILTERS, stop))
            count = part.stop - part.start
            taps = scratch("filters", (3, 3 * count), g.dtype)
            taps.reshape(9, count)[...] = g[:, part]
            half = scratch("half filters", (6, 3 * count), g.dtype)
            np.matmul(matrix, taps, out=half)
            whole = scratch("whole filters", (6, 6, count), g.dtype)
            np.matmul(matrix, half.reshape(6, 3, count), out=whole)
            out[:, part] = whole.reshape(36, count)

    parallel_for(g.shape[1], body, grain=1 << 12)
    return out.reshape(36, *shape)


def _tiles(pixels: np.ndarray, size: int, offset: Pair, grid: Pair) -> np.ndarray:
    """The tiles of size x size pixels, 4 apart from offset: (size * size, images * grid * C)."""
    images, _, _, channels = pixels.shape
    a, b, c, d = pixels.strides
    shape = (size, size, images, *grid, channels)
    tiles = scratch("tiles", shape, pixels.dtype)
    start = offset[0] * b + offset[1] * c
    tiles[...] = np.ndarray(shape, pixels.dtype, pixels, start, (b, c, a, 4 * b, 4 * c, d))
    return tiles.reshape(size * size, -1)


def _transformed(matrix: np.ndarray, tiles: np.ndarray, channels: int, name: str) -> np.ndarray:
    """The tiles' transform: (positions, tiles, channels)."""
    out = scratch(name, (len(matrix), tiles.shape[1]), tiles.dtype)
    np.matmul(matrix, tiles, out=out)
    return out.reshape(len(matrix), -1, channels)


def _write(tiles: np.ndarray, grid: Pair, lines: np.ndarray) -> None:
    """Put (16, tiles, D), a grid of tiles an image, into the (images, lines, width, D) they cover;
    what lies beyond those is left out."""
    images, height, width, outputs = lines.shape
    rows, columns = grid
    parts = tiles.reshape(4, 4, images, rows, columns, outputs).transpose(2, 3, 0, 4, 1, 5)
    if (height, width) == (4 * rows, 4 * columns):
        lines.reshape(parts.shape)[...] = parts
    else:
        whole = scratch("pixels", (images, 4 * rows, 4 * columns, outputs), lines.dtype)
        whole.reshape(parts.shape)[...] = parts
        lines[...] = whole[:, :height, :width]


class _Output(NamedTuple):
    """What the transformed input is multiplied by, where the result goes, and what finishes it."""

    filters: np.ndarray  # (36, C, D)
    out: np.ndarray
    finish: Finish | None

    def make(self, transformed: np.ndarray, band: Band, columns: int) -> list:
        first, last = 4 * band[2], min(4 * band[3], self.out.shape[1])
        if last <= first:
            return []
        shape = (36, transformed.shape[1], self.filters.shape[2])
        products = scratch("products", shape, transformed.dtype)
        np.matmul(transformed, self.filters, out=products)
        matrix = _transforms(products.dtype).outputs
        tiles = scratch("tiles", (16, shape[1], shape[2]), products.dtype)
        np.matmul(matrix, products.reshape(36, -1), out=tiles.reshape(16, -1))
        _write(tiles, (band[3] - band[2], columns), self.out[band[0] : band[1], first:last])
        if self.finish is None:
            return []
        band = (*band[:2], first, last)
        return self.finish(band_rows(self.out, band), band)


def _span(band: Band, columns: int, offset: Pair) -> tuple[Pair, Pair]:
    """First position and number of the lines and columns that a band's tiles see."""
    return (4 * band[2] + offset[0], 4 * (band[3] - band[2]) + 2), (offset[1], 4 * columns + 2)


def forward(
    source: Source,
    weight: np.ndarray,
    out: np.ndarray,
    padding: Pair,
    finish: Finish | None,
    kept: dict[str, np.ndarray] | None = None,
) -> list:
    """out (N,OH,OW,D) = source (N,H,W,C) * weight (3,3,C,D); what `finish` left of each band.

    The transformed filters are put into `kept`, or taken from it.
    """
    kept = {} if kept is None else kept
    if "filters" not in kept:
        kept["filters"] = _filters(weight, flipped=False)
    rows, columns = _grid(out.shape[1:3])
    channels, outputs = weight.shape[2:]
    limit = _limit(columns, channels + outputs, out.dtype)
    offset = (-padding[0], -padding[1])

    def fill(output: _Output, start: int, stop: int) -> list:
        left: list = []
        for band in bands(start, stop, rows, limit):
            pixels = source.padded(band[:2], *_span(band, columns, offset))
            tiles = _tiles(pixels, 6, (0, 0), (band[3] - band[2], columns))
            matrix = _transforms(tiles.dtype).inputs
            left += output.make(_transformed(matrix, tiles, channels, "transformed"), band, columns)
        return left

    def own_rows(start: int, stop: int, worker: int) -> list:
        return fill(_Output(kept["filters"], out, finish), start, stop)

    def own_channels(start: int, stop: int, worker: int) -> list:
        own = _Output(kept["filters"][..., start:stop], out[..., start:stop], None)
        return fill(own, 0, len(out) * rows)

    few = len(out) * rows * columns < FEW_TILES * get_num_threads()
    if few and outputs >= 2 * MIN_OUTPUTS:
        parallel_for(outputs, own_channels, MIN_OUTPUTS)
        return finish_later(out, finish)
    parts = parallel_for(len(out) * rows, own_rows, _grain(columns, channels, outputs))
    return [item for part in parts for item in part]


def backward(
    source: Source | None,
    above: Source,
    weight: np.ndarray,
    dx: np.ndarray | None,
    padding: Pair,
    finish: Finish | None,
) -> tuple[list, np.ndarray | None]:
    """The gradients from `above` (N,OH,OW,D): to the input, into dx (N,H,W,C) unless that is None,
    and to the weights, unless source, the input, is None. Returns what finish left, and dw.
    """
    channels, outputs = weight.shape[2:]
    # One grid of tiles serves both: what it covers beyond an image is zero, or is not written.
    height, width = (
        above.shape[axis] if dx is None else max(above.shape[axis], dx.shape[axis])
        for axis in (1, 2)
    )
    rows, columns = _grid((height, width))
    dtype = above.array.dtype
    transforms = _transforms(dtype)
    input_gradient = None
    if dx is not None:
        filters = _filters(weight, flipped=True).transpose(0, 2, 1)
        input_gradient = _Output(filters, dx, finish)
    limit = _limit(columns, channels + outputs, dtype)
    inside = (2 - padding[0], 2 - padding[1])  # where a tile's own pixels lie in those it sees

    def body(start: int, stop: int, worker: int) -> tuple[list, np.ndarray | None]:
        left: list = []
        total = scratch("filter gradients", (36, channels, outputs), dtype)
        product = total
        for band in bands(start, stop, rows, limit):
            grid = (band[3] - band[2], columns)
            gradients = above.padded(
                band[:2], *_span(band, columns, (-inside[0], -inside[1])), "gradients"
            )
            if input_gradient is not None:
                tiles = _tiles(gradients, 6, (0, 0), grid)
                seen = _transformed(transforms.inputs, tiles, outputs, "transformed")
                left += input_gradient.make(seen, band, columns)
            if source is not None:
                tiles = _tiles(gradients, 4, inside, grid)
                d = _transformed(transforms.outputs_back, tiles, outputs, "products")
                offset = (-padding[0], -padding[1])
                pixels = source.padded(band[:2], *_span(band, columns, offset))
                tiles = _tiles(pixels, 6, (0, 0), grid)
                seen = _transformed(transforms.inputs, tiles, channels, "transformed")
                np.matmul(seen.transpose(0, 2, 1), d, out=product)
                if product is not total:
                    total += product
                product = scratch("filter product", total.shape, dtype)
        if source is None:
            return left, None
        gradient = memory.empty((9, channels * outputs), dtype)
        np.matmul(transforms.filters_back, total.reshape(36, -1), out=gradient)
        return left, gradient

    parts = parallel_for(len(above.array) * rows, body, _grain(columns, channels, outputs))
    left = [item for part in parts for item in part[0]]
    if source is None:
        return left, None
    dw = add_in_order([part[1] for part in parts if part[1] is not None], weight.shape, dtype)
    return left, dw
