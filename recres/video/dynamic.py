"""Dynamic images: a whole video as one image (Bilen et al., 2016).

The image is the weighted sum of all frames that approximate rank pooling gives: the first step of
learning a direction along which the frames' running means are in order of time. What moves leaves
a trace that goes from dark to bright or back; what rests cancels, for the weights sum to zero.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np

from recres.video.decode import iter_frames


def sample_dynamic(path: str | os.PathLike[str], backwards: bool = False) -> np.ndarray:
    """The dynamic image of a video, or of the video played backwards: (1, H, W, 3) uint8 RGB.

    Every frame counts, whatever the step between sampled ones. Raises VideoError as
    `decode.read_frames`.
    """
    frames = (frame for _, frame in iter_frames(path))
    if not backwards:
        return to_image(pool(frames))[None]
    # Backwards, no sums that know nothing of T would do: the frames are counted first.
    alpha = coefficients(sum(1 for _ in frames))[::-1]
    pooled, first = np.zeros(()), None
    for (_, frame), weight in zip(iter_frames(path), alpha, strict=True):
        first = frame.astype(np.float64) if first is None else first
        pooled = pooled + weight * (frame - first)
    return to_image(pooled)[None]


def coefficients(n_frames: int) -> np.ndarray:
    """The weights of approximate rank pooling, (T,) float64:

    α_t = 2 (T - t + 1) - (T + 1) (H_T - H_{t-1}),  H_t = Σ_{i ≤ t} 1 / i,  t = 1 … T.
    """
    t = np.arange(1, n_frames + 1)
    harmonic = np.concatenate([[0], np.cumsum(1 / t)])
    return 2 * (n_frames - t + 1) - (n_frames + 1) * (harmonic[-1] - harmonic[:-1])


def pool(frames: Iterable[np.ndarray]) -> np.ndarray:
    """Σ_t α_t · frame_t as float64, of any number of frames, at least one, in one pass.

    The weights depend on T, which is known at the end. They are a sum of terms in each of which T
    is a factor: with S the sum of the frames, S_t that of t · frame_t and S_H that of
    H_{t-1} · frame_t, it is (T + 1) (2 - H_T) S - 2 S_t + (T + 1) S_H.
    """
    # The weights sum to zero: of every frame the first may be subtracted. So what never changes
    # is zero exactly, not a rounding error that scaling would make into a picture.
    first = None
    t, harmonic = 0, 0.0
    for frame in frames:
        if first is None:
            first = frame.astype(np.float64)
            plain, by_time, by_harmonic = (np.zeros_like(first) for _ in range(3))
        t += 1
        change = frame - first
        plain += change
        by_time += t * change
        by_harmonic += harmonic * change
        harmonic += 1 / t
    if first is None:
        raise ValueError("no frames, expected at least 1")
    return (t + 1) * (2 - harmonic) * plain - 2 * by_time + (t + 1) * by_harmonic


def to_image(pooled: np.ndarray) -> np.ndarray:
    """Scaled so that the least and the greatest value over all channels become 0 and 255, as the
    authors show them; uint8. Where all are equal, as where nothing changes, it is grey, 128."""
    low, high = pooled.min(), pooled.max()
    if low == high:
        return np.full(pooled.shape, 128, np.uint8)
    return np.rint((pooled - low) * (255 / (high - low))).astype(np.uint8)
