"""How weights start. Every function draws from the generator it is given and nowhere else.

Draws are made in float64 and then rounded, so a float32 and a float64 network of the same seed
start from the same numbers. Shapes are those of the engine: convolutions (kh, kw, C_in/groups,
C_out), linear layers (in, out).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """Inputs and outputs that one weight array connects: (fan_in, fan_out).

    `shape` is (in, out) or (kh, kw, C_in/groups, C_out); anything with fewer than two axes is a
    ValueError. As in PyTorch, fan_out counts every output channel, whatever the groups.
    """
    if len(shape) < 2:
        raise ValueError(f"shape: fans need at least 2 axes (…, in, out), got {tuple(shape)}")
    window = math.prod(shape[:-2])
    return window * shape[-2], window * shape[-1]


def kaiming_normal(
    shape: Sequence[int], rng: np.random.Generator, dtype: DTypeLike = np.float32
) -> np.ndarray:
    """Normal with standard deviation sqrt(2 / fan_out), as ResNets start.

    He et al., Delving Deep into Rectifiers (2015), the variant that keeps the gradient's scale.
    """
    _, fan_out = fans(shape)
    return (rng.standard_normal(shape) * math.sqrt(2 / max(fan_out, 1))).astype(dtype)


def xavier_uniform(
    shape: Sequence[int], rng: np.random.Generator, dtype: DTypeLike = np.float32
) -> np.ndarray:
    """Uniform in ±sqrt(6 / (fan_in + fan_out)). Glorot and Bengio (2010)."""
    bound = math.sqrt(6 / max(sum(fans(shape)), 1))
    return uniform(shape, rng, -bound, bound, dtype)


def uniform(
    shape: Sequence[int],
    rng: np.random.Generator,
    low: float,
    high: float,
    dtype: DTypeLike = np.float32,
) -> np.ndarray:
    """Uniform in [low, high]; low > high is a ValueError."""
    if not low <= high:
        raise ValueError(f"low, high: expected low <= high, got {low} and {high}")
    return rng.uniform(low, high, shape).astype(dtype)
