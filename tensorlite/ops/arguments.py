"""Checks of arguments that several families of ops share, in the caller's terms."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..tensor import Tensor

Pair = int | tuple[int, int]


def one_dtype(x: Tensor, **others: Tensor | None) -> None:
    """TypeError naming the argument unless x is of floating point and the others of its dtype, or
    float32 beside float16: parameters in full precision."""
    if x.dtype.kind != "f":
        raise TypeError(f"x: expected a floating-point tensor, got {x.dtype}")
    allowed = (x.dtype, np.float32 if x.dtype == np.float16 else x.dtype)
    for name, t in others.items():
        if t is not None and t.dtype not in allowed:
            raise TypeError(f"{name}: expected the dtype {x.dtype} of x, got {t.dtype}")


def pair(name: str, value: Pair, least: int) -> tuple[int, int]:
    """`value` for (height, width); ValueError naming the argument unless both are >= `least`."""
    both = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(both) != 2 or not all(isinstance(v, int | np.integer) and v >= least for v in both):
        raise ValueError(f"{name}: expected an integer >= {least} or a pair of them, got {value!r}")
    return int(both[0]), int(both[1])


def check_lengths(lengths: Any, batch: int, steps: int) -> np.ndarray:
    """Lengths of sequences as an array (batch,); None: all have `steps` steps. ValueError unless
    they are integers in [0, steps]."""
    lengths = lengths.data if isinstance(lengths, Tensor) else lengths
    lengths = np.asarray(np.full(batch, steps) if lengths is None else lengths)
    if lengths.shape != (batch,) or lengths.dtype.kind not in "iu":
        raise ValueError(f"lengths: expected {batch} integers, got {lengths.dtype} of shape "
                         f"{lengths.shape}")
    if batch and not 0 <= lengths.min() <= lengths.max() <= steps:
        raise ValueError(f"lengths: expected values in [0, {steps}], got {lengths.min()} to "
                         f"{lengths.max()}")
    return lengths


def window_output(name: str, size: tuple[int, ...], kernel: tuple[int, ...],
                  stride: tuple[int, int], padding: tuple[int, int],
                  dilation: tuple[int, int] = (1, 1)) -> tuple[int, int]:
    """Height and width of what a sliding window makes; ValueError where it does not fit once."""
    padded = [n + 2 * p for n, p in zip(size, padding, strict=True)]
    span = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    if any(s > n for s, n in zip(span, padded, strict=True)):
        raise ValueError(f"{name}: a window of {span[0]}x{span[1]} does not fit an input of "
                         f"{size[0]}x{size[1]} with padding {padding}")
    height, width = ((n - s) // t + 1 for n, s, t in zip(padded, span, stride, strict=True))
    return height, width
