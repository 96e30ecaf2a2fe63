"""The end of a residual block on CUDA: y = relu(sum of terms) in one pass, and back in one.

A term is an array or the deferred activation of one; in a recurrent block some terms are shifted by
a frame. Each pass reads what it needs once and writes each result once; the sums that the terms'
batch norms need are taken on the way, block by block, and then merged in order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from tensorlite.device import Array, array_module
from tensorlite.kernels.contract import GradSums, Term
from tensorlite.kernels.cuda.compiler import Kernel
from tensorlite.kernels.cuda.launch import launch, sums_dtype
from tensorlite.kernels.cuda.rows import (
    Runs,
    cut,
    merge_kernels,
    merge_sums,
    plain,
    row_kernel,
    row_kernels,
    vectors,
    width_for,
)
from tensorlite.kernels.frames import clear_unused

SOURCE = "join.cu"
TERMS = 3  # that the kernels take, at most
MOST = 4  # elements that a thread moves at a time: with 8, the terms' vectors fill the registers


def kernels() -> list[Kernel]:
    """Every kernel that may be launched here."""
    return [*row_kernels(SOURCE, "join_forward", "join_backward", most=MOST),
            *merge_kernels("merge_sums")]


def join_forward(terms: Sequence[Term], chunks: int) -> Array:
    """y = relu(sum of terms), of the shape of the first."""
    terms = _plain(terms)
    first = terms[0].value
    y = array_module(first).empty(first.shape, first.dtype)
    if y.size:
        width = width_for(y.shape[-1], *(t.value for t in terms), most=MOST)
        runs, geometry = _geometry(y.shape, terms, chunks, width)
        launch(row_kernel(SOURCE, "join_forward", y.dtype, width), runs.grid,
               *_arguments(terms, y.shape, chunks), y, *geometry)
    return y


def join_backward(grad: Array, y: Array, terms: Sequence[Term], means: Sequence[Array | None],
                  chunks: int) -> list[tuple[Array, GradSums | None]]:
    """The gradient of each term, and for a deferred one the sums about its mean.

    A deferred term's gradient is that of its norm: zero where the relu it may have cut. Unshifted
    terms without such a relu share one array.
    """
    xp, y, grad, terms = array_module(y), plain(y, y.dtype), plain(grad, y.dtype), _plain(terms)
    channels, dtype = y.shape[-1], sums_dtype(y.dtype)
    if not y.size:
        return [(xp.zeros_like(t.value), None if m is None else
                 GradSums(*xp.zeros((2, channels), dtype)))
                for t, m in zip(terms, means, strict=True)]
    alone = [t.offset != 0 or t.value.shape != y.shape
             or (t.activation is not None and t.activation.relu) for t in terms]
    shared = None if all(alone) else xp.empty(y.shape, y.dtype)
    own = [xp.empty(t.value.shape, y.dtype) if a else None
           for t, a in zip(terms, alone, strict=True)]
    centres = [None if m is None else vectors(y, m)[0] for m in means]
    gradients = [*zip(centres, own, strict=True), *[(None, None)] * (TERMS - len(terms))]
    width = width_for(channels, grad, y, *(t.value for t in terms), most=MOST)
    runs, geometry = _geometry(y.shape, terms, chunks, width)
    norms = sum(m is not None for m in means)
    partials = xp.empty((runs.number, norms, 2, channels), dtype)
    launch(row_kernel(SOURCE, "join_backward", y.dtype, width), runs.grid,
           *_arguments(terms, y.shape, chunks), *itertools.chain(*gradients), grad, y, shared,
           partials if norms else None, *geometry)
    for term, dx in zip(terms, own, strict=True):
        if dx is not None:
            clear_unused(dx, chunks, len(y) // chunks, term.offset)
    sums = iter(merge_sums(partials))
    return [(shared if dx is None else dx, None if mean is None else GradSums(*next(sums)))
            for dx, mean in zip(own, means, strict=True)]


def _plain(terms: Sequence[Term]) -> list[Term]:
    """The terms as a kernel takes them."""
    if not 1 <= len(terms) <= TERMS:
        raise ValueError(f"terms: got {len(terms)}, expected 1 to {TERMS}")
    dtype = terms[0].value.dtype
    return [t._replace(value=plain(t.value, dtype)) for t in terms]


def _geometry(shape: tuple[int, ...], terms: Sequence[Term], chunks: int,
              width: int) -> tuple[Runs, tuple[np.generic, ...]]:
    """How the rows of the output are cut, and what the kernels are told of it."""
    rows, groups = math.prod(shape[:-1]), shape[-1] // width
    runs = cut(rows, groups)
    pixels, times = rows // shape[0], shape[0] // chunks
    if _unshifted(shape, terms):
        pixels, times = rows, 1
    return runs, (np.int64(rows), np.int64(pixels), np.int32(times), np.int32(groups),
                  np.int32(runs.columns), np.int64(runs.span))


def _unshifted(shape: tuple[int, ...], terms: Sequence[Term]) -> bool:
    """No term is shifted: all frames may be taken as the pixels of one."""
    return all(t.offset == 0 and t.value.shape == shape for t in terms)


def _arguments(terms: Sequence[Term], shape: tuple[int, ...],
               chunks: int) -> Iterator[Array | np.int32 | None]:
    """The terms as parameters: z, scale, shift, relu, offset and frames of each."""
    flat = _unshifted(shape, terms)
    for value, activation, offset in terms:
        scale = shift = None
        if activation is not None:
            scale, shift = vectors(value, activation.scale, activation.shift)
        yield from (value, scale, shift, np.int32(activation is not None and activation.relu),
                    np.int32(offset), np.int32(1 if flat else len(value) // chunks))
    yield from (None, None, None, *[np.int32(0)] * 3) * (TERMS - len(terms))
