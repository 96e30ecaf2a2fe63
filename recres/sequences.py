"""Whole videos as padded sequences of feature vectors, and the statistics of those vectors.

For the models of `recres.models.sequence`. The vectors come from a store of pooled features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from recres.errors import InputError
from recres.loader import Chunk
from recres.random import generator


class SequenceStore(Protocol):
    """Keeps the pooled features of videos, in one view of their frames or more."""

    @property
    def views(self) -> int:
        """How many views there are of each video."""

    def sequence(self, place: int, view: int = 0) -> np.ndarray:
        """(n, F) float32: a vector for each sampled frame of the video with that place."""


class SequenceLoader:
    """A `Loader` of whole videos: a chunk stands for its video, wherever in it it lies.

    seed: of the draws of views.
    """

    in_flight = 1

    def __init__(self, store: SequenceStore, seed: int) -> None:
        self.store, self.seed = store, seed
        self._lengths: dict[int, int] = {}

    def load(self, chunks: Sequence[Chunk], epoch: int | None = None,
             backwards: bool = False) -> np.ndarray:
        """(B, T, F) float32, each sequence followed by zeros up to the length T of the longest.

        Where the store has several views, a training epoch draws one for each chunk. backwards:
        the sequences in reverse.
        """
        sequences = [self._sequence(chunk, epoch) for chunk in chunks]
        longest = max(map(len, sequences))
        out = np.zeros((len(chunks), longest, sequences[0].shape[1]), np.float32)
        for place, sequence in zip(out, sequences, strict=True):
            place[: len(sequence)] = sequence[::-1] if backwards else sequence
        return out

    def arguments(self, chunks: Sequence[Chunk]) -> dict[str, np.ndarray]:
        """What the model needs besides: `lengths` (B,), of the sequences."""
        return {"lengths": np.array([self._length(chunk.video) for chunk in chunks], np.int64)}

    def _sequence(self, chunk: Chunk, epoch: int | None) -> np.ndarray:
        view = 0
        if epoch is not None and self.store.views > 1:
            rng = generator(self.seed, epoch, chunk.number, "view")
            view = int(rng.integers(self.store.views))
        return self.store.sequence(chunk.video, view)

    def _length(self, place: int) -> int:
        if place not in self._lengths:
            self._lengths[place] = len(self.store.sequence(place))
        return self._lengths[place]


def statistics(store: SequenceStore, places: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each feature, (F,) float64, over all frames of some videos in
    all their views.

    One pass: each sequence's mean and sum of squared distances from it are merged into those of
    the sequences before (Chan, Golub and LeVeque 1979). A feature that is the same in every frame
    has a deviation of exactly 0. InputError where a feature is not finite, ValueError without
    videos.
    """
    count, origin = 0, None
    mean = squares = np.zeros(0)
    for place in places:
        for view in range(store.views):
            frames = store.sequence(place, view).astype(np.float64)
            if not np.isfinite(frames).all():
                raise InputError(f"features of video {place}: expected finite numbers, got nan or "
                                 "infinity")
            if origin is None:
                origin = frames[0].copy()
                mean = squares = np.zeros_like(origin)
            # Seen from the first frame, what does not vary is exactly 0: no rounding makes it vary.
            frames -= origin
            here = frames.mean(axis=0)
            apart, total = here - mean, count + len(frames)
            squares = (squares + ((frames - here) ** 2).sum(axis=0)
                       + apart**2 * (count * len(frames) / total))
            mean = mean + apart * (len(frames) / total)
            count = total
    if origin is None:
        raise ValueError("places: expected at least one video, got none")
    return origin + mean, np.sqrt(squares / count)
