"""The sampled frames of a data set's videos, kept in memory up to a bound."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np

from recres.datasets import Video
from recres.video.decode import VideoError, sample_video
from recres.video.prefetch import Prefetcher


class FrameSource:
    """Sampled frames of `videos`, by their index; any number of threads may ask.

    Every `step`-th frame, at least `context` frames a video (`sample.sample_indices`). The videos
    used last stay in memory, up to `max_bytes` together; the others are decoded again when asked
    for. A video that two threads ask for at once is decoded once.
    """

    def __init__(self, videos: Sequence[Video], step: int, context: int, max_bytes: int):
        for name, value, least in (
            ("step", step, 1),
            ("context", context, 1),
            ("max_bytes", max_bytes, 0),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}, expected at least {least}")
        self.videos = tuple(videos)
        self.step = step
        self.context = context
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()  # the one used last comes last
        self._bytes = 0
        self._decoding: dict[int, Future[np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.videos)

    def frames(self, index: int) -> np.ndarray:
        """The sampled frames of a video, (n, H, W, 3) uint8 RGB, read-only, n >= context.

        Raises VideoError when the video cannot be used.
        """
        with self._lock:
            if index in self._kept:
                self._kept.move_to_end(index)
                return self._kept[index]
            result = self._decoding.get(index)
            mine = result is None
            if result is None:
                result = self._decoding[index] = Future()
        if not mine:
            return result.result()
        try:
            frames = sample_video(self.videos[index].path, self.step, self.context)
            frames.flags.writeable = False
        except BaseException as error:
            with self._lock:
                del self._decoding[index]
            result.set_exception(error)
            raise
        with self._lock:
            del self._decoding[index]
            self._keep(index, frames)
        result.set_result(frames)
        return frames

    def _keep(self, index: int, frames: np.ndarray) -> None:
        if frames.nbytes > self.max_bytes:
            return
        self._kept[index] = frames
        self._bytes += frames.nbytes
        while self._bytes > self.max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.nbytes

    def scan(
        self,
        workers: int = 1,
        skip_bad: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[int | VideoError]:
        """Decode every video once: for each, its number of sampled frames or what is wrong with it.

        Raises the first VideoError, in the order of the videos, unless skip_bad. `progress` is
        called with the number of videos done and of all. What fits into memory stays there.
        """
        counts: list[int | VideoError] = []
        with Prefetcher(self._count, range(len(self)), workers) as results:
            for result in results:
                if isinstance(result, VideoError) and not skip_bad:
                    raise result
                counts.append(result)
                if progress is not None:
                    progress(len(counts), len(self))
        return counts

    def _count(self, index: int) -> int | VideoError:
        try:
            return len(self.frames(index))
        except VideoError as error:
            return error
