"""How arrays of (…, channels) are handed to the kernels of `src/rows.cuh`: their width, layouts of
threads, and the merging of what blocks leave behind.

Sums are cut by the shape of an array alone, never by the device, so that they are the same bits on
every device and in every run.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from tensorlite.device import Array, array_module
from tensorlite.kernels.cuda.compiler import Kernel, kernel
from tensorlite.kernels.cuda.launch import NAMES, address, launch, sums_dtype, type_name

THREADS = 256
BYTES = 16  # that a thread moves at a time at most, where sizes and alignment allow
WIDEST = 8  # elements that it moves at a time at most
# Blocks of a kernel in the flat layout, at most: about two loads of a large GPU, so that what a
# thread reads once, its channels' vectors, serves many pixels.
BLOCKS = 2048
RUNS = 512  # blocks of a kernel that sums rows, at most: about one load of a large GPU
COLUMNS = 32  # threads of such a block side by side, at most: a warp reads one piece of memory
LEAST = 8  # rows that a thread of it sums, at least, where that leaves one block
MERGED = 8  # channels that a block of src/merge.cu takes


@functools.cache
def row_kernel(source: str, name: str, dtype: Any, width: int) -> Kernel:
    """A kernel on rows of a dtype that moves `width` channels at a time."""
    return kernel(source, name, THREADS, hot=np.dtype(dtype) != np.float64, TYPE=type_name(dtype),
                  WIDTH=width)


def row_kernels(source: str, *names: str, most: int = WIDEST) -> list[Kernel]:
    """All that `row_kernel` may be asked for."""
    return [row_kernel(source, name, dtype, width)
            for name in names for dtype in NAMES for width in (widest(dtype, most), 1)]


def widest(dtype: Any, most: int = WIDEST) -> int:
    """Elements that a thread moves at a time where nothing forbids it, but `most` at most."""
    return min(most, BYTES // np.dtype(dtype).itemsize)


def width_for(size: int, *arrays: Array, most: int = WIDEST) -> int:
    """How many elements to move at a time of arrays of one dtype whose rows have `size`."""
    dtype = arrays[0].dtype
    width = widest(dtype, most)
    aligned = all(address(a) % (width * dtype.itemsize) == 0 for a in arrays)
    return width if aligned and size % width == 0 else 1


def plain(a: Array, dtype: Any) -> Array:
    """a, contiguous and of a dtype."""
    if a.dtype == dtype and a.flags.c_contiguous:
        return a
    return array_module(a).ascontiguousarray(a, dtype=dtype)


def vectors(x: Array, *given: Array) -> tuple[Array, ...]:
    """Per-channel vectors as the kernels take them beside x."""
    return tuple(plain(v, sums_dtype(x.dtype)) for v in given)


def flat_grid(count: int, groups: int = 1) -> tuple[int]:
    """The grid of the flat layout for `count` vectors, `groups` a row."""
    needed = -(-count // THREADS)
    step = max(1, groups // math.gcd(groups, THREADS))  # this many blocks take whole rows
    return (min(needed, step * max(1, BLOCKS // step)),)


class Runs(NamedTuple):
    """A cut of rows into `number` runs of `span` for blocks `columns` wide, `tiles` abreast."""

    number: int
    span: int
    columns: int
    tiles: int

    @property
    def grid(self) -> tuple[int, int]:
        return self.number, self.tiles


def cut(rows: int, groups: int) -> Runs:
    """Runs for an array of `rows` rows of `groups` vectors."""
    columns = min(COLUMNS, 1 << (groups - 1).bit_length())
    tiles, lanes = -(-groups // columns), THREADS // columns
    span = max(-(-rows // max(1, RUNS // tiles)), min(rows, lanes * LEAST))
    return Runs(-(-rows // span), span, columns, tiles)


@functools.cache
def merge_kernel(name: str, dtype: Any) -> Kernel:
    """A kernel of merge.cu, for results of a dtype."""
    return kernel("merge.cu", name, THREADS, TYPE=type_name(dtype))


def merge_kernels(name: str) -> list[Kernel]:
    """All that `merge_kernel` may be asked for."""
    return [merge_kernel(name, dtype) for dtype in ("float32", "float64")]


def merge_sums(partials: Array) -> Array:
    """The sum of an array of partial sums over its first axis."""
    out = array_module(partials).empty(partials.shape[1:], partials.dtype)
    launch(merge_kernel("merge_sums", out.dtype), (-(-out.size // MERGED),), partials, out,
           np.int32(len(partials)), np.int32(out.size))
    return out
