"""Which frames of a video are used, and how they are cut into chunks: arithmetic on counts.

Every `step`-th frame is sampled, and the sampled frames are tiled by chunks of `context` frames
(the paper's M chunks of T frames), or one is taken of each of equal parts (temporal segment
networks). Nothing here opens a file.
"""

from __future__ import annotations

import numpy as np


def sample_indices(n_frames: int, step: int, context: int) -> tuple[int, ...]:
    """The frames to use of a video of n_frames: 0, step, 2·step, …; never fewer than `context`.

    A video with fewer than `context` such frames is sampled more finely, with the largest step
    that gives enough; one with fewer than `context` frames at all repeats its last frame.
    Raises ValueError for a count below 1.
    """
    indices = tuple(range(0, n_frames, sample_step(n_frames, step, context)))
    return indices + (n_frames - 1,) * (context - len(indices))


def sample_step(n_frames: int, step: int, context: int) -> int:
    """The distance of the frames that `sample_indices` gives, and its ValueError."""
    for name, value in (("n_frames", n_frames), ("step", step), ("context", context)):
        if value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1")
    if context == 1:
        return step
    # `context` frames at distance s need (context - 1)·s + 1 frames.
    return max(1, min(step, (n_frames - 1) // (context - 1)))


def chunk_starts(n_sampled: int, context: int) -> tuple[int, ...]:
    """Where the chunks of `context` sampled frames begin: 0, context, 2·context, …

    A remainder makes a last chunk that ends at the last sampled frame and overlaps its neighbour,
    so there are ceil(n_sampled / context) chunks. Raises ValueError when there are fewer sampled
    frames than one chunk takes (`sample_indices` sees to it that there are not).
    """
    if context < 1:
        raise ValueError(f"context is {context}, expected at least 1")
    if n_sampled < context:
        raise ValueError(f"n_sampled is {n_sampled}, expected at least the context, {context}")
    starts = tuple(range(0, n_sampled - context + 1, context))
    remainder = n_sampled % context
    return (*starts, n_sampled - context) if remainder else starts


def segment_indices(n_sampled: int, segments: int,
                    rng: np.random.Generator | None = None) -> tuple[int, ...]:
    """One of the sampled frames from each of `segments` equal parts, in order (Wang et al., 2016).

    Drawn uniformly from its part, or, without `rng`, the middle one; parts differ by one frame
    where the count cannot be divided. Raises ValueError when there are fewer frames than parts.
    """
    if segments < 1:
        raise ValueError(f"segments is {segments}, expected at least 1")
    if n_sampled < segments:
        raise ValueError(f"n_sampled is {n_sampled}, expected at least one a segment, {segments}")
    ends = [part * n_sampled // segments for part in range(segments + 1)]
    parts = list(zip(ends, ends[1:], strict=False))
    if rng is None:
        return tuple((low + high) // 2 for low, high in parts)
    return tuple(int(rng.integers(low, high)) for low, high in parts)
