"""How far a difference between two models can be trusted: means, deviations, and intervals.

All functions are pure. Errors of two models on the same test videos are compared pairwise: some
videos are hard for both, and that takes most of the noise out of the difference.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from recres.random import generator

BLOCK = 4 << 20  # counts drawn at once: 32 MiB


class Difference(NamedTuple):
    """A mean difference and the ends of its interval."""

    mean: float
    low: float
    high: float


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (divisor n - 1), which a single value does not have.

    ValueError without values.
    """
    if not len(values):
        raise ValueError("values: none, expected at least one")
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return float(np.mean(values)), deviation


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Student's t interval of the mean of n independent values, such as one a seed; None for one.

    ValueError without values.
    """
    mean, deviation = mean_and_deviation(values)
    if deviation is None:
        return None
    reach = float(stdtrit(len(values) - 1, (1 + level) / 2)) * deviation / len(values) ** 0.5
    return mean - reach, mean + reach


def paired_difference(errors_a: ArrayLike, errors_b: ArrayLike,
                      groups: Sequence[Hashable] | None = None, resamples: int = 10000,
                      level: float = 0.95, seed: int = 0) -> Difference:
    """Mean of a - b over V videos with a percentile bootstrap interval (Efron 1979).

    errors_a, errors_b: (V,), a video's error averaged over the seeds of each model, in [0, 1].
    groups: (V,), what each video belongs to. Clips of a group come from one recording and fail
    together, so then whole groups are drawn, and the interval is the more honest, mostly wider one.

    The interval answers: with other test videos (groups) of the same kind, but these very trained
    networks, where would the mean difference lie? It says nothing of other seeds (`mean_interval`
    of the seeds' differences does), nor of other training videos. With fewer than some twenty
    groups it is too narrow.

    ValueError for shapes that disagree and for fewer than two videos or groups.
    """
    a, b = np.asarray(errors_a, np.float64), np.asarray(errors_b, np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"errors_a, errors_b: shapes {a.shape} and {b.shape}, expected (V,) twice")
    if not 0 < level < 1:
        raise ValueError(f"level: {level}, expected between 0 and 1")
    units = _units(a - b, groups)
    if len(units) < 2:
        what = "videos" if groups is None else "groups"
        raise ValueError(f"{len(units)} {what}, an interval needs at least 2")
    # What is drawn with replacement from n units is how often each *kind* of unit comes up, and
    # per-video errors have few kinds: this is the plain bootstrap at a fraction of its work. Kinds
    # stand in order of appearance, so that a and b swapped give the same interval mirrored.
    kinds, first, counts = np.unique(units, axis=0, return_index=True, return_counts=True)
    order = np.argsort(first)
    kinds, counts = kinds[order], counts[order]
    rng = generator(seed, "bootstrap")
    means = []
    rows = max(1, BLOCK // len(kinds))
    for start in range(0, resamples, rows):
        drawn = rng.multinomial(len(units), counts / len(units), min(rows, resamples - start))
        sums = drawn @ kinds
        means.append(sums[:, 0] / sums[:, 1])
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Difference(float((a - b).mean()), float(low), float(high))


def _units(difference: np.ndarray, groups: Sequence[Hashable] | None) -> np.ndarray:
    """(n, 2): of each unit that is drawn the sum of its differences and how many videos it has."""
    if groups is None:
        return np.stack([difference, np.ones_like(difference)], axis=1)
    if len(groups) != len(difference):
        raise ValueError(f"groups: {len(groups)} of them for {len(difference)} videos")
    place: dict[Hashable, int] = {}
    member = np.array([place.setdefault(group, len(place)) for group in groups], np.int64)
    return np.stack([np.bincount(member, difference), np.bincount(member)], axis=1)
