"""Whether two sides computed the same: `compare` their results, name by name."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping

from bench.rows import Side, Tolerance
from bench.sides import Failed
from tensorlite.device import Array, array_module


def compare(ours: Mapping[str, Array], theirs: Iterable[tuple[str, Array]], side: Side,
            tolerance: Tolerance) -> None:
    """Failed unless both sides have the same results, up to the tolerance, every one."""
    seen = set()
    for name, expected in theirs:
        seen.add(name)
        if name not in ours or ours[name].shape != expected.shape:
            raise Failed(f"{side} has {name} of shape {expected.shape}, we have "
                         f"{ours[name].shape if name in ours else 'none'}")
        is_gradient = name.startswith("grad.")
        allowed = tolerance.gradients if is_gradient else tolerance.outputs
        error = difference(ours[name], expected, is_gradient and tolerance.euclidean)
        if not error <= allowed:
            raise Failed(f"{name} differs from {side}'s by {error:.1e} of its size, allowed are "
                         f"{allowed:.0e}")
    if seen != ours.keys():
        raise Failed(f"{side} lacks {', '.join(sorted(ours.keys() - seen))}")


def difference(a: Array, b: Array, euclidean: bool = False) -> float:
    """The largest difference of two arrays over the largest value of b, or the length of the
    difference over that of b; NaN if one is in them. Arrays of 16 bits are widened first."""
    xp = array_module(b)
    if not b.size:
        return 0.0
    dtype = xp.result_type(a.dtype, b.dtype, xp.float32)
    a, b = a.astype(dtype, copy=False).ravel(), b.astype(dtype, copy=False).ravel()

    def size(array: Array) -> float:
        return float(xp.linalg.norm(array) if euclidean else xp.abs(array).max())

    error, whole = size(a - b), size(b)
    return error if error == 0 else error / max(whole, sys.float_info.min)
