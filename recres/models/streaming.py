"""A network for chunks, given a video frame by frame: what a new frame needs of those before it is
kept, so that each frame is worked on once.

The chunks are all windows of T frames. A temporal skip starts each of them with nothing, so that
features behind a skip may depend on where the window began, not on their frame alone. After the
k-th skip a frame has seen itself and k frames before it, or as many as its window has:

* With readout "last" only frames k + 1 … T of a window go further than the k-th skip. These have
  all their k predecessors in the window: x_0 reaches nothing, every window that goes on with a
  frame wants the same features of it, and one version of them, kept, serves all.
* With readout "mean" all frames go on, and the first k of a window have fewer predecessors. After
  the k-th skip a frame has k + 1 versions: as first frame of a window, as second, …, as k-th, and
  as any later one. Each is another input to the layers that follow, so none can be saved.

A purely temporal skip sums from the window's beginning: behind it a frame has a version for each of
the T windows that it is in. They differ by what is added alone, F(x) and shortcut(x) serve all; and
with readout "last" only that of the window which the frame completes goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tensorlite import concatenate, global_avg_pool, no_grad, value_of
from tensorlite.device import Array
from tensorlite.tensor import Tensor

from .resnet import ResidualBlock, VideoResNet
from .temporal import join_frame


class Stream:
    """Inference along a video, one frame at a time, with running statistics.

    A new frame costs, T being the model's frames of context:

    * readout "last": one frame's work in every layer. Kept: for each of the T - 1 blocks with a
      temporal skip, what one frame passes on to the next; of a purely temporal skip, T - 1 outputs.
    * readout "mean": one frame's work up to the first skip, that of k frames in the k-th block with
      a skip, of T frames behind the last; windows on their own would take T frames everywhere.
      Kept: k times what a frame passes on in the k-th block. With a purely temporal skip, one
      frame's work up to and in its block, T behind it, and again T - 1 outputs kept.
    * average pooling over frames, or no skip: one frame's work in every layer.

    The model is folded (`Module.fold`), and stays so. Call `reset` when its weights have changed.
    """

    def __init__(self, model: VideoResNet) -> None:
        if not isinstance(model, VideoResNet):
            raise TypeError("model: expected a network for chunks of frames (VideoResNet), got "
                            f"{type(model).__name__}")
        self.model = model
        self._last = getattr(model, "readout", "mean") == "last"
        self._recurrent: Sequence[str] = getattr(model, "recurrent", ())
        self._pure = bool(self._recurrent) and getattr(model, "skip", "") == "pure_temporal"
        self.reset()

    def reset(self) -> None:
        """Forget the frames so far: a new video begins."""
        self.model.fold()
        self._shape: tuple[int, ...] | None = None
        self._count = 0  # frames so far, at most T
        # By block: what each version of the frame before passes on, the youngest window's first.
        self._before: dict[str, list[Any]] = {}
        # For each window not complete, the youngest first: the sum of its frames' pooled features.
        self._sums: list[Tensor] = []

    @no_grad()
    def push(self, frame: Array | Tensor) -> Tensor | None:
        """Go on by one frame (H, W, C), or by one of each of N videos side by side (N, H, W, C),
        normalised as for the model.

        Returns the logits (N, classes) that the model has for the chunk of the last T frames; None
        as long as there have been fewer. ValueError for a shape that is none of these, or not that
        of the frames before.
        """
        x = self._check(frame)
        if self.model.training:
            self.model.fold()
        before: dict[str, list[Any]] = {}
        count = min(self._count + 1, self.model.context)
        versions: list[Tensor] = []
        if count == self.model.context or self._recurrent or not self._last:  # else: of no use
            versions = self._blocks(self.model.stem(x), before)
        logits, sums = self._read_out(versions, len(x)) if versions else (None, [])
        # All at once: a push that was interrupted has not been.
        self._shape, self._count, self._before, self._sums = x.shape, count, before, sums
        return logits

    def _check(self, frame: Array | Tensor) -> Tensor:
        x = Tensor(frame, device=next(self.model.parameters()).device)
        if x.ndim == 3:
            x = x.reshape(1, *x.shape)
        channels = self.model.channels
        if x.ndim != 4 or x.shape[3] != channels:
            raise ValueError(f"frame: expected (H, W, {channels}) or (N, H, W, {channels}), got "
                             f"shape {Tensor(frame).shape}")
        if self._shape not in (None, x.shape):
            raise ValueError(f"frame: got shape {Tensor(frame).shape}, but the frames before were "
                             f"{self._shape}; reset() begins a new video")
        return x

    def _blocks(self, x: Tensor, before: dict[str, list[Any]]) -> list[Tensor]:
        """The versions of a frame after the last block; what they pass on is put into `before`."""
        versions = [x]
        for name, block in self.model.residual_blocks():
            if name not in self._recurrent:
                versions = [block(_together(versions))]
                continue
            added = self._before.get(name, [])
            if self._pure or not self._last:
                added = [None, *added]  # a window's first frame has none before it
            if self._pure:
                versions, before[name] = self._pure_block(block, versions[0], added)
            else:
                versions, before[name] = self._skip_block(block, versions, added)
            if not versions:  # with readout "last": the video has too few frames yet
                break
        return versions

    def _skip_block(self, block: ResidualBlock, versions: Sequence[Tensor], added: Sequence[Any]
                    ) -> tuple[list[Tensor], list[Any]]:
        """All versions of a frame through a block with a temporal skip; also what they pass on.

        Version i goes with what was passed on to it, added[i]; the last one, of a frame with all
        predecessors that matter, with all that is left.
        """
        out, passed_on = [], []
        for i, x in enumerate(versions):
            end = i + 1 if i + 1 < len(versions) else len(added)
            ys, passed = recurrent_block(block, x, added[i:end])
            out += ys
            passed_on.append(passed)
        return out, passed_on

    def _pure_block(self, block: ResidualBlock, x: Tensor, added: Sequence[Any]
                    ) -> tuple[list[Tensor], list[Any]]:
        """The versions of a frame behind a purely temporal skip, that of the youngest window first,
        as far as they go on; also those that windows yet to be completed add to the next frame."""
        residual, shortcut = value_of(block.residual(x)), value_of(block.skip(x))
        versions = [join_frame(residual, shortcut, before) for before in added]
        passed_on = versions[: self.model.context - 1]
        return versions[len(passed_on) :] if self._last else versions, passed_on

    def _read_out(self, versions: Sequence[Tensor], batch: int
                  ) -> tuple[Tensor | None, list[Tensor]]:
        """Logits of the window that the new frame completes, and the sums of the others."""
        pooled = global_avg_pool(_together(versions))
        if self._last:
            return self.model.fc(pooled), []
        frames = pooled.reshape(-1, batch, pooled.shape[1])  # versions, videos, channels
        sums = [frames[0]]
        for i, total in enumerate(self._sums, start=1):
            sums.append(total + frames[min(i, len(frames) - 1)])
        if len(sums) < self.model.context:
            return None, sums
        return self.model.fc(sums.pop() * (1 / self.model.context)), sums


def _together(versions: Sequence[Tensor]) -> Tensor:
    """Versions (N, ...) folded into one batch, version by version."""
    return versions[0] if len(versions) == 1 else concatenate(versions)


def recurrent_block(block: ResidualBlock, x: Tensor, added: Sequence[Any]
                    ) -> tuple[list[Tensor], Any]:
    """y = relu(F(x) + shortcut(x) + before) for every `before` in `added`, None for nothing; and
    S(x), which is such a `before` for the next frame."""
    shortcut = value_of(block.skip(x))
    passed_on = value_of(block.temporal(x)) if hasattr(block, "temporal") else shortcut
    residual = value_of(block.residual(x))
    return [join_frame(residual, shortcut, before) for before in added], passed_on
