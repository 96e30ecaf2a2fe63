"""Chunks of videos, and their frames as arrays for the network.

Every sampled frame of a video is in a chunk of T; a chunk is a video and a place in it. With
temporal segments a video is one chunk, of T frames spread over it; on features of whole videos it
is one of all its frames. What a chunk looks like in an epoch depends on (seed, epoch, chunk) alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from recres import limits
from recres.config import Config
from recres.datasets import Split, Video, holdout
from recres.errors import InputError
from recres.random import generator
from recres.video import augment, colour
from recres.video.decode import VideoError
from recres.video.frame_store import FrameStore
from recres.video.prefetch import Item, Prefetcher, Result
from recres.video.sample import chunk_starts, segment_indices
from recres.video.source import FrameSource

FRAME_BYTES = 2 << 30  # decoded frames that a process keeps in memory, at most
SIDES = ("train", "holdout", "test")


class Chunk(NamedTuple):
    """T sampled frames of a video from `start` on (which ones: `frame_indices`). video: its place
    in the source of frames; number: the chunk's own among all of its source, whether or not they
    are used, by which its draws are keyed."""

    number: int
    video: int
    start: int


class Videos:
    """The videos of a split that can be read, their sampled frames, and their chunks by side.

    found: for each video by name its count of sampled frames, or why it cannot be used; without
    it every video is decoded once to find out, before hours of training and not after. Then
    `progress` is called with videos done and all, and the first bad video is raised as VideoError
    unless --skip-bad. source: of the same videos sampled in the same way, to use what it has in
    memory already.

    Attributes: source, of the frames of all listed videos, training side first; counts, of
    sampled frames by place in `source`; sides, the places of the usable videos of each of `SIDES`;
    skipped, reasons by name.
    """

    def __init__(self, split: Split, config: Config, found: Mapping[str, int | str] | None = None,
                 progress: Callable[[int, int], None] | None = None,
                 source: FrameSource | None = None) -> None:
        self.split, self.config = split, config
        listed = (*split.train, *split.test)
        self.source = source or FrameSource(
            listed, config.frame_step, config.context, _frame_bytes(config.processes),
            config.input, config.flow_length, FrameStore(config.frames) if config.frames else None)
        if self.source.store is not None:
            self.source.store.require(config.frame_step, config.context, config.image_size)
        if found is None:
            results = self.source.scan(max(config.threads, config.workers), config.skip_bad,
                                       progress, apart=config.workers > 0)
            found = {video.name: str(result) if isinstance(result, VideoError) else result
                     for video, result in zip(listed, results, strict=True)}
        if not isinstance(found, Mapping):
            raise InputError(f"{config.root}: what was found in its videos when the run began is "
                             f"a {type(found).__name__}, expected a count for each")
        for video in listed:
            if video.name not in found:
                raise InputError(f"{video.path}: not in the data set when the run began")
            count = found[video.name]
            most = limits.VIDEO_FRAMES
            if not isinstance(count, str) and not (type(count) is int
                                                   and config.context <= count <= most):
                raise InputError(f"{video.path}: {count!r} frames when the run began, expected "
                                 f"{config.context} to {most} (recres.limits.VIDEO_FRAMES)")
        self.found = dict(found)
        self.skipped = {name: why for name, why in found.items() if isinstance(why, str)}
        self.counts = {place: count for place, video in enumerate(listed)
                       if isinstance(count := found[video.name], int)}
        self._check_counts()
        self.sides = self._divide()
        self._chunks: dict[int, list[Chunk]] = {}
        number = 0
        for place, count in self.counts.items():
            starts = (0,) if _one_chunk(config) else chunk_starts(count, config.context)
            self._chunks[place] = [Chunk(number + i, place, s) for i, s in enumerate(starts)]
            number += len(starts)

    def _check_counts(self) -> None:
        """InputError for more chunks than can be listed, or more frames than a store has."""
        chunks = sum(1 if _one_chunk(self.config) else -(-count // self.config.context)
                     for count in self.counts.values())
        if chunks > limits.CHUNKS:
            raise InputError(f"{self.config.root}: {chunks} chunks, more than the {limits.CHUNKS} "
                             "of recres.limits.CHUNKS")
        if self.source.store is not None:
            for place, count in self.counts.items():
                video = self.source.videos[place]
                there = self.source.store.count(video, self.config.context)
                if there < count:
                    raise other_frames(video, there, str(count))

    def _divide(self) -> dict[str, tuple[int, ...]]:
        listed, config = self.source.videos, self.config
        place = {video.name: i for i, video in enumerate(listed) if i in self.counts}
        train = tuple(v for v in self.split.train if v.name in place)
        test = tuple(v for v in self.split.test if v.name in place)
        for side, videos in (("training", train), ("test", test)):
            if not videos:
                raise InputError(f"{config.root}: no video of the {side} side can be used")
        held: tuple[Video, ...] = ()
        if config.holdout:
            train, held = holdout(train, config.holdout, config.seed)
        return {side: tuple(place[v.name] for v in videos)
                for side, videos in zip(SIDES, (train, held, test), strict=True)}

    def chunks(self, side: str) -> list[Chunk]:
        """Every chunk of a side, video by video; of the training side with --chunks-per-video that
        many of each, from the middles of equal parts of it."""
        result: list[Chunk] = []
        for place in self.sides[side]:
            chunks, most = self._chunks[place], self.config.chunks_per_video
            if side == "train" and most is not None and most < len(chunks):
                chunks = [chunks[i] for i in segment_indices(len(chunks), most)]
            result.extend(chunks)
        return result

    def frame_indices(self, chunk: Chunk, epoch: int | None = None) -> Sequence[int]:
        """Which sampled frames of its video a chunk has: see `frame_indices` of this module."""
        return frame_indices(chunk, self.counts[chunk.video], self.config, epoch)

    def label(self, chunk: Chunk) -> int:
        """The class of a chunk."""
        return self.source.videos[chunk.video].label


def other_frames(video: Video, there: int, before: str) -> VideoError:
    """What to say of a video that has other frames than were found in it before."""
    return VideoError(video.path, f"has {there} sampled frames, but had {before} when they were "
                                  "counted (videos.json)")


def _one_chunk(config: Config) -> bool:
    """Whether every video is one chunk, however many frames it has."""
    return bool(config.features) or config.sampling == "segments"


def frame_indices(chunk: Chunk, count: int, config: Config,
                  epoch: int | None = None) -> Sequence[int]:
    """Which of the `count` sampled frames of its video a chunk has.

    Temporal segments are drawn for a training epoch; without one it is the middles.
    """
    if config.features:
        return range(count)
    if config.sampling == "segments":
        rng = None if epoch is None else generator(config.seed, epoch, chunk.number, "segments")
        return segment_indices(count, config.context, rng)
    return range(chunk.start, chunk.start + config.context)


def _frame_bytes(processes: int) -> int:
    """A quarter of the machine's memory for all processes of a run, should it have them all, but no
    more than FRAME_BYTES for each."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(FRAME_BYTES, memory // 4 // processes)


class Loader(Protocol):
    """Makes network inputs of chunks; may be called from a thread.

    in_flight: how many calls of `load` at once it is made for.
    """

    in_flight: int

    def load(self, chunks: Sequence[Chunk], epoch: int | None = None,
             backwards: bool = False) -> np.ndarray:
        """(B, T, …) float32: as drawn for a training epoch, or, without one, the view to evaluate
        on. backwards: the chunks of the videos played backwards."""

    def arguments(self, chunks: Sequence[Chunk]) -> dict[str, Any]:
        """What else the network is to be given with these chunks, by name."""


def prefetch(loader: Loader, load: Callable[[Item], Result],
             items: Iterable[Item]) -> Prefetcher[Item, Result]:
    """load(item), which calls `loader`, for each item: as many at once as it is made for, and one
    more result that is there already."""
    return Prefetcher(load, items, loader.in_flight, loader.in_flight + 1)


class FrameLoader:
    """Chunks as normalised images or flow.

    convention: of the network for images (`augment.normalise`); flow has its own.
    """

    in_flight = 1

    def __init__(self, source: FrameSource, config: Config, convention: str) -> None:
        self.source, self.config = source, config
        self.is_flow = source.input == "flow"
        self.convention = "flow" if self.is_flow else convention

    def load(self, chunks: Sequence[Chunk], epoch: int | None = None,
             backwards: bool = False, out: np.ndarray | None = None) -> np.ndarray:
        """See `Loader`; out: where to write them."""
        config, size = self.config, self.config.image_size
        shown = np.empty((len(chunks), config.context, size, size, self.source.channels), np.uint8)
        for place, chunk in zip(shown, chunks, strict=True):
            choose = partial(self._places, chunk, epoch)
            frames = self.source.some(chunk.video, choose, backwards)
            views = self.views(frames.shape[1], frames.shape[2], chunk, epoch)
            for frame, target in zip(frames, place, strict=True):
                augment.apply(frame[None], next(views), size, target[None], self.is_flow)
            if epoch is not None and config.colour_jitter:
                rng = generator(config.seed, epoch, chunk.number, "colour")
                colour.apply(place, colour.draw_matrix(rng, config.colour_jitter))
        return augment.normalise(shown, self.convention, out)

    def _places(self, chunk: Chunk, epoch: int | None, count: int) -> Sequence[int]:
        if not self.config.features and chunk.start + self.config.context > count:
            raise other_frames(self.source.videos[chunk.video], count,
                               f"at least {chunk.start + self.config.context}")
        return frame_indices(chunk, count, self.config, epoch)

    def arguments(self, chunks: Sequence[Chunk]) -> dict[str, Any]:
        """See `Loader`."""
        return {}

    def views(self, height: int, width: int, chunk: Chunk,
              epoch: int | None) -> Iterator[augment.View]:
        """The view of each frame of a chunk: one for all of them, unless --augment-per-frame."""
        if epoch is None:
            view = augment.evaluation_view(height, width)
        else:
            rng = generator(self.config.seed, epoch, chunk.number, "view")
            view = augment.training_view(height, width, rng)
        while True:
            yield view
            if epoch is not None and self.config.augment_per_frame:
                view = augment.training_view(height, width, rng)

    def fixed(self, video: int) -> Iterator[np.ndarray]:
        """All sampled frames of a video in its fixed views, (n, H, W, C) float32: the centre, and
        with --mirror its mirror image."""
        frames = self.source.frames(video)
        view = augment.evaluation_view(*frames.shape[1:3])
        for flip in (False, True)[: 1 + self.config.mirror]:
            shown = augment.apply(frames, view._replace(flip=flip), self.config.image_size,
                                  is_flow=self.is_flow)
            yield augment.normalise(shown, self.convention)


def plan_epoch(chunks: Sequence[Chunk], config: Config, epoch: int) -> list[list[list[Chunk]]]:
    """An epoch's updates, each a list of batches: every chunk once, in the epoch's order.

    Sizes of updates differ by at most one chunk, and so do those of the batches of an update.
    Several processes take a batch together: see `share`.
    """
    order = generator(config.seed, epoch, "order").permutation(len(chunks))
    return [[[chunks[i] for i in batch] for batch in np.array_split(update, _parts(update, config))]
            for update in np.array_split(order, updates_an_epoch(len(chunks), config))]


def share(batches: Sequence[Sequence[Chunk]], rank: int, config: Config) -> list[list[Chunk]]:
    """What one of several processes has of an update's batches; sizes differ by at most one chunk.

    Where it has nothing of a batch, that is left out or, with --sync-norm, to which all processes
    belong, empty.
    """
    mine = [[batch[i] for i in np.array_split(range(len(batch)), config.processes)[rank]]
            for batch in batches]
    return [batch for batch in mine if batch or config.sync_norm]


def updates_an_epoch(n_chunks: int, config: Config) -> int:
    """How many updates an epoch of `n_chunks` chunks makes."""
    if config.update_fraction is None:
        return -(-n_chunks // (config.batch * config.processes))
    return max(1, round(min(n_chunks, 1 / config.update_fraction)))


def _parts(update: np.ndarray, config: Config) -> int:
    return -(-len(update) // (config.batch * config.processes))


def describe_updates(n_chunks: int, config: Config) -> dict[str, Any]:
    """The numbers of `plan_epoch`: updates an epoch, chunks and batches of the largest update."""
    updates = updates_an_epoch(n_chunks, config)
    largest = -(-n_chunks // updates)
    together = config.batch * config.processes
    return {"updates": updates, "chunks": largest, "batches": -(-largest // together)}
