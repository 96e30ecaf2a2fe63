"""What the network is shown of a data set's videos, kept in memory up to a bound.

It comes from the video files or, decoded before, from a store of frames (`frame_store`).
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from recres.datasets import Video
from recres.errors import InputError
from recres.video.decode import VideoError, sample_video
from recres.video.dynamic import sample_dynamic
from recres.video.flow import count_flow, sample_flow
from recres.video.frame_store import FrameStore
from recres.video.prefetch import Prefetcher
from recres.video.processes import in_processes

INPUTS = ("frames", "flow", "dynamic")


class FrameSource:
    """Sampled frames of `videos`, by their index; any number of threads may ask.

    Every `step`-th frame, at least `context` frames a video (`sample.sample_indices`). What stands
    for a frame depends on `input`: "frames", the frame itself; "flow", a stack of the `flow_length`
    fields of optical flow from there on (`flow.sample_flow`); "dynamic": one dynamic image is the
    only frame of a video (`dynamic.sample_dynamic`).

    The videos used last stay in memory, up to `max_bytes` together; the others are decoded again
    when asked for. A video that two threads ask for at once is decoded once.

    store: where the frames are read instead of decoding videos. InputError where it was made with
    other settings, of other videos, or for another input.
    """

    def __init__(self, videos: Sequence[Video], step: int, context: int, max_bytes: int,
                 input: str = "frames", flow_length: int = 10, store: FrameStore | None = None):
        for name, value, least in (
            ("step", step, 1),
            ("context", context, 1),
            ("max_bytes", max_bytes, 0),
            ("flow_length", flow_length, 1),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}, expected at least {least}")
        if input not in INPUTS:
            raise ValueError(f"input is {input!r}, expected one of {', '.join(INPUTS)}")
        self.videos = tuple(videos)
        self.step = step
        self.context = context
        self.max_bytes = max_bytes
        self.input = input
        self.flow_length = flow_length
        if store is not None:
            if input != "frames":
                raise InputError(f"{store.path}: has sampled frames alone, but input {input} is "
                                 "made of all frames of a video")
            store.require(step, context)
            store.match(self.videos)
        self.store = store
        self._forget()

    def _forget(self) -> None:
        """Begin with nothing in memory."""
        self._lock = threading.Lock()
        # By index and whether it is played backwards; the one used last comes last.
        self._kept: OrderedDict[tuple[int, bool], np.ndarray] = OrderedDict()
        self._bytes = 0
        self._dropped = False  # a video, for want of room
        self._decoding: dict[tuple[int, bool], Future[np.ndarray]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """For another process: what is in memory stays here."""
        gone = ("_lock", "_kept", "_bytes", "_dropped", "_decoding")
        return {name: value for name, value in self.__dict__.items() if name not in gone}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def part(self, of: int) -> FrameSource:
        """The source for one of so many processes, each of which has its part of the memory."""
        result = copy.copy(self)
        result._fits = self._fits
        result.max_bytes = self.max_bytes // of
        return result

    def __len__(self) -> int:
        return len(self.videos)

    @property
    def channels(self) -> int:
        """Of what stands for a frame."""
        return 2 * self.flow_length if self.input == "flow" else 3

    @property
    def pixels(self) -> str | None:
        """How its frames are not exactly those of the videos; None where they are."""
        return self.store.settings.pixels if self.store is not None else None

    def frames(self, index: int, backwards: bool = False) -> np.ndarray:
        """The sampled frames of a video, (n, H, W, C) uint8, read-only, n >= context, except that
        a dynamic image is one.

        backwards: the sampled frames in reverse, and where a frame stands for more than itself,
        what the video played backwards has there. Raises VideoError when the video cannot be used.
        """
        if self.input == "frames":
            frames = self._get((index, False))
            return frames[::-1] if backwards else frames
        return self._get((index, backwards))

    def some(self, index: int, choose: Callable[[int], Sequence[int]],
             backwards: bool = False) -> np.ndarray:
        """Of `frames(index, backwards)` those whose places choose(how many there are) gives.

        From a store that is too big for the memory that there is, only these are decoded.
        """
        if self.store is None or self._fits:
            frames = self.frames(index, backwards)
            return frames[list(choose(len(frames)))]
        count = self.store.count(self.videos[index], self.context)
        places = choose(count)
        if backwards:
            places = [count - 1 - place for place in places]
        return self.store.frames(self.videos[index], self.context, places)

    @cached_property
    def _fits(self) -> bool:
        """Whether the frames of all videos, from the store, have room in memory."""
        return self.store is not None and self.store.decoded_bytes(self.videos) <= self.max_bytes

    @property
    def keeps_all(self) -> bool:
        """Whether a video is still in memory when it is asked for again, as far as that is known
        yet."""
        return not self._dropped if self.store is None else self._fits

    @property
    def yet_to_keep(self) -> int:
        """Bytes of frames, at most, that will still come into memory beside those that are kept."""
        if self.store is not None:
            return self.store.decoded_bytes(self.videos) - self._bytes if self._fits else 0
        done = self._dropped or len(self._kept) >= len(self.videos)
        return 0 if done else self.max_bytes - self._bytes

    def _get(self, key: tuple[int, bool]) -> np.ndarray:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            result = self._decoding.get(key)
            mine = result is None
            if result is None:
                result = self._decoding[key] = Future()
        if not mine:
            return result.result()
        try:
            frames = self._sample(*key)
            frames.flags.writeable = False
        except BaseException as error:
            with self._lock:
                del self._decoding[key]
            result.set_exception(error)
            raise
        with self._lock:
            del self._decoding[key]
            self._keep(key, frames)
        result.set_result(frames)
        return frames

    def _sample(self, index: int, backwards: bool) -> np.ndarray:
        if self.store is not None:
            return self.store.frames(self.videos[index], self.context)
        path = self.videos[index].path
        if self.input == "flow":
            return sample_flow(path, self.step, self.context, self.flow_length, backwards)
        if self.input == "dynamic":
            return sample_dynamic(path, backwards)
        return sample_video(path, self.step, self.context)

    def _keep(self, key: tuple[int, bool], frames: np.ndarray) -> None:
        if self._bytes + frames.nbytes > self.max_bytes:
            self._dropped = True
        if frames.nbytes > self.max_bytes:
            return
        self._kept[key] = frames
        self._bytes += frames.nbytes
        while self._bytes > self.max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.nbytes

    def scan(
        self,
        workers: int = 1,
        skip_bad: bool = False,
        progress: Callable[[int, int], None] | None = None,
        apart: bool = False,
    ) -> list[int | VideoError]:
        """For each video, its number of sampled frames or what is wrong with it: every one is
        decoded once, unless there is a store, whose index says it.

        Raises the first VideoError, in the order of the videos, unless skip_bad. `progress` is
        called with the number of videos done and of all. What fits into memory stays there, except
        of flow, which takes much longer than decoding and is not computed to count.

        apart: by processes of their own, at least two, instead of threads: a video at which the
        decoder crashes is then one more that cannot be used. Nothing stays in memory.
        """
        counts: list[int | VideoError] = []
        with contextlib.ExitStack() as stack:
            results: Iterator[int | VideoError]
            if apart and self.store is None:
                jobs = [(video.path, self.step, self.context, self.input) for video in self.videos]
                results = stack.enter_context(contextlib.closing(
                    in_processes(_count, jobs, max(2, workers), _crashed)))
            else:
                results = stack.enter_context(
                    Prefetcher(self._count, range(len(self)), workers))
            for result in results:
                if isinstance(result, VideoError) and not skip_bad:
                    raise result
                counts.append(result)
                if progress is not None:
                    progress(len(counts), len(self))
        return counts

    def _count(self, index: int) -> int | VideoError:
        try:
            if self.store is not None:
                return self.store.count(self.videos[index], self.context)
            if self.input == "flow":
                return _count((self.videos[index].path, self.step, self.context, self.input))
            return len(self.frames(index))
        except VideoError as error:
            return error


_Job = tuple[Path, int, int, str]  # a video file, step, context and input


def _count(job: _Job) -> int | VideoError:
    """How many frames a video has, or what is wrong with it."""
    path, step, context, input = job
    try:
        if input == "flow":
            return count_flow(path, step, context)
        if input == "dynamic":
            return len(sample_dynamic(path))
        return len(sample_video(path, step, context))
    except VideoError as error:
        return error


def _crashed(job: _Job) -> VideoError:
    return VideoError(job[0], "the decoder crashes on it")
