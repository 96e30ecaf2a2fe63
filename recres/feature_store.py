"""Features of frames behind frozen stages: computed once, kept on disk, read in every epoch.

What the network makes of a frame up to a frozen stage never changes, as long as the frame is always
seen in the same view. The file holds float32 numbers and nothing else, video after video; while it
is being made it has another name, and its length says which videos it already has, so that
making it can be stopped at any moment and gone on with.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from recres.config import Config
from recres.errors import InputError
from recres.evaluation import in_full
from recres.loader import Chunk, FrameLoader, Videos
from recres.models import VideoResNet
from recres.random import generator
from tensorlite import Tensor, no_grad

FRAMES_AT_ONCE = 16  # through the network, while features are made


class FeatureStore:
    """A `Loader` of chunks of features. Without `create` it holds none.

    path: the file. stage: the stage that the features come from. shape (H, W, C): of one frame's.
    """

    def __init__(self, path: Path, stage: str, shape: tuple[int, ...], videos: Videos,
                 config: Config) -> None:
        self.path, self.stage, self.shape, self.config = path, stage, shape, config
        self.views = 1 + config.mirror
        self.videos = (*videos.sides["train"], *videos.sides["holdout"])
        self.counts = {video: videos.counts[video] for video in self.videos}
        self.offsets, total = {}, 0
        for video in self.videos:
            self.offsets[video] = total
            total += self.views * self.counts[video]
        self.frames = total
        self._features: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return self.frames * self._frame_bytes

    @property
    def _frame_bytes(self) -> int:
        return 4 * int(np.prod(self.shape))

    @property
    def complete(self) -> bool:
        """Whether the file is there."""
        return self.path.is_file() and self.path.stat().st_size == self.nbytes

    def create(self, encode: Callable[[int], np.ndarray],
               progress: Callable[[int, int], None] | None = None) -> None:
        """Make the file, or what is missing of it, and open it.

        encode(video) → (views, n, H, W, C) float32. `progress` is called with videos done and all.
        InputError where the disk has no room.
        """
        if not self.complete:
            partial = self.path.with_name(f".partial-{self.path.name}")
            with open(partial, "ab") as file:
                done = self._whole_videos(file.tell())
                start = self.offsets[self.videos[done]] if done < len(self.videos) else self.frames
                file.truncate(start * self._frame_bytes)
                file.seek(0, os.SEEK_END)
                self._check_room(self.nbytes - file.tell())
                for i, video in enumerate(self.videos[done:], start=done + 1):
                    features = encode(video)
                    expected = (self.views, self.counts[video], *self.shape)
                    if features.shape != expected or features.dtype != np.float32:
                        raise ValueError(f"features: expected float32 {expected}, got "
                                         f"{features.dtype} {features.shape}")
                    features.tofile(file)
                    if progress is not None:
                        progress(i, len(self.videos))
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.path)
        self._features = np.memmap(self.path, np.float32, "r", shape=(self.frames, *self.shape))

    def _whole_videos(self, size: int) -> int:
        """How many videos a file of `size` bytes has all of."""
        ends = [(self.offsets[v] + self.views * self.counts[v]) * self._frame_bytes
                for v in self.videos]
        return sum(end <= size for end in ends)

    def _check_room(self, needed: int) -> None:
        free = shutil.disk_usage(self.path.parent).free
        if needed > free:
            raise InputError(f"{self.path}: the features need {needed / 1e9:.2f} GB more, the disk "
                             f"has {free / 1e9:.2f} GB free")

    def load(self, chunks: Sequence[Chunk], epoch: int | None = None,
             backwards: bool = False) -> np.ndarray:
        """See `recres.loader.Loader`; with --mirror a training epoch draws one of the two views of
        each chunk. Only chunks of the training side."""
        assert self._features is not None, "the store has not been created"
        context = self.config.context
        out = np.empty((len(chunks), context, *self.shape), np.float32)
        for place, chunk in zip(out, chunks, strict=True):
            view, count = 0, self.counts[chunk.video]
            if epoch is not None and self.views > 1:
                rng = generator(self.config.seed, epoch, chunk.number, "view")
                view = int(rng.integers(self.views))
            first = self.offsets[chunk.video] + view * count
            frames = self._features[first : first + count]
            place[:] = (frames[::-1] if backwards else frames)[chunk.start : chunk.start + context]
        return out

    def remove(self) -> None:
        """Delete the file."""
        self._features = None
        self.path.unlink(missing_ok=True)


def encoder(model: VideoResNet, stage: str, loader: FrameLoader) -> Callable[[int], np.ndarray]:
    """The `encode` of `FeatureStore.create`: each frame goes through the network once."""

    def encode(video: int) -> np.ndarray:
        return np.stack([encode_frames(model, stage, frames) for frames in loader.fixed(video)])

    return encode


def encode_frames(model: VideoResNet, stage: str, frames: np.ndarray) -> np.ndarray:
    """Images (n, H, W, 3) → features (n, H', W', C) after `stage`, on the CPU."""
    model.eval()
    device = next(model.parameters()).device
    with no_grad():
        return np.concatenate([
            in_full(model.encode(Tensor(frames[i : i + FRAMES_AT_ONCE], device=device), stage))
            for i in range(0, len(frames), FRAMES_AT_ONCE)])


def feature_shape(model: VideoResNet, stage: str, image_size: int) -> tuple[int, ...]:
    """(H', W', C) of the features after `stage` of an image of that size."""
    blank = np.zeros((1, image_size, image_size, 3), np.float32)
    return encode_frames(model, stage, blank).shape[1:]
