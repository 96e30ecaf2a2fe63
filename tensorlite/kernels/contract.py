"""What every kernel family speaks besides arrays: the small records that let kernels be fused.

The CPU and CUDA modules expose the same function names with the same signatures; these records
are the part of those signatures that is not an array. Per-channel arrays have shape (C,) and
belong to the last axis of the array they describe. Nothing here computes.
"""

from __future__ import annotations

from typing import NamedTuple

from tensorlite.device import Array


class Prologue(NamedTuple):
    """A deferred activation, applied by its reader: value = x * scale + shift, then relu if set."""

    scale: Array
    shift: Array
    relu: bool


class Epilogue(NamedTuple):
    """What finishes an output while it is in the cache: y * scale + shift + residual, then relu.

    scale and residual may be None for none; residual has the output's shape.
    """

    scale: Array | None
    shift: Array
    residual: Array | None
    relu: bool


class Term(NamedTuple):
    """A summand of a block's output: value, or its activation, (B T', H, W, C) for B chunks.

    Frame t of a chunk is added to the output's frame t + offset; what falls outside is left out.
    """

    value: Array
    activation: Prologue | None
    offset: int


class Mask(NamedTuple):
    """The input of an op was the activation of z; the gradient to it is wanted as that of the norm:
    zero where the relu cut, with the `GradSums` of it and z about `mean`."""

    z: Array
    activation: Prologue
    mean: Array


class Moments(NamedTuple):
    """Per-channel moments over all leading axes: m2 = sum of (x - mean)^2 over `count` values."""

    count: int  # type: ignore[assignment]  # the field's name; tuple.count is not used
    mean: Array
    m2: Array


class NormGrad(NamedTuple):
    """A gradient seen through a batch norm, formed by its reader: scale*grad + slope*z + offset.

    z is the norm's input (the raw convolution output), of the gradient's shape. All but scale are
    None for a norm by running statistics, through which a gradient passes as scale*grad.
    """

    z: Array | None
    scale: Array
    slope: Array | None
    offset: Array | None


class GradSums(NamedTuple):
    """Per-channel sums of a gradient and of gradient * (z - mean), for a norm's backward."""

    grad: Array
    grad_centred: Array
