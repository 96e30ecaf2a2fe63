"""Which frames of a video are used, and how they are cut into chunks: arithmetic on counts.

Every `step`-th frame is sampled, and the sampled frames are tiled by chunks of `context` frames
(the paper's M chunks of T frames). Nothing here opens a file.
"""

from __future__ import annotations


def sample_indices(n_frames: int, step: int, context: int) -> tuple[int, ...]:
    """The frames to use of a video of n_frames: 0, step, 2·step, …; never fewer than `context`.

    A video with fewer than `context` such frames is sampled more finely, with the largest step
    that gives enough; one with fewer than `context` frames at all repeats its last frame.
    Raises ValueError for a count below 1.
    """
    for name, value in (("n_frames", n_frames), ("step", step), ("context", context)):
        if value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1")
    if context > 1:
        # `context` frames at distance s need (context - 1)·s + 1 frames.
        step = max(1, min(step, (n_frames - 1) // (context - 1)))
    indices = tuple(range(0, n_frames, step))
    return indices + (n_frames - 1,) * (context - len(indices))


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
