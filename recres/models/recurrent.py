"""Recurrent residual networks (Iqbal, Richard, Kuehne, Gall 2017): ResNets with temporal skips.

A temporal skip adds to a residual block what the frame before brought to it:

    y_t = relu(F(x_t) + shortcut(x_t) + S(x_{t-1})),   S(x_0) = 0.

All frames of a chunk share the weights. T frames of context take T - 1 skips, one reaching one
frame further back than the next. Two networks to compare with are of the same make: the purely
temporal skip, where a block adds its own output of the frame before (ref. 27 of the paper), so that
one of them reaches back to the chunk's start,

    y_t = relu(F(x_t) + shortcut(x_t) + y_{t-1}),   y_0 = 0,

and the network without any, fine-tuned on the same chunks.
"""

from __future__ import annotations

import math

import numpy as np

from tensorlite import global_avg_pool
from tensorlite.tensor import Tensor

from .resnet import VideoResNet, stage_number
from .temporal import BLOCKS, TemporalConv

SKIPS = ("identity", "conv", "conv_nonlinear", "pure_temporal", "none")
POSITIONS = ("block1", "block2", "mid_block3", "block3", "mid_block4", "block4")
RECURRENT_GRADIENTS = ("correct", "same-frame")
READOUTS = ("last", "mean")


class RecurrentResNet(VideoResNet):
    """A ResNet with temporal skips.

    skip: ``"identity"`` (S(x) = x, through the block's own projection where it has one, adding no
        weights), ``"conv"`` or ``"conv_nonlinear"`` (see `TemporalConv`), ``"pure_temporal"`` (see
        the top of this file), or ``"none"``.
    position: the residual block of the deepest skip, in the paper's words: ``"block1"`` the first
        of stage 1, ``"block2"`` the last of stage 2, ``"block4"`` the last of stage 4, which is the
        last stage and the default, ``"mid_block4"`` the last of stage 4 that projects; in a network
        truncated after block3 ``"mid_block3"`` and ``"block3"`` instead. Further skips sit in the
        blocks directly before; of ``"pure_temporal"`` there is one.
    context: T, frames of a chunk; 1 is the network without a temporal skip.
    readout: ``"last"`` classifies from the chunk's last frame, and work on frames that cannot reach
        it is not done; ``"mean"`` from the mean over frames.
    temporal_norm: whether a batch norm follows the convolution of a convolutional skip.
    recurrent_gradient: of a convolutional skip's weights, ``"correct"`` or, to compare with a wrong
        one, ``"same-frame"`` (see `TemporalConv`).
    The rest as of `ResNet`. ValueError for what does not exist or does not fit.
    """

    def __init__(self, depth: int, classes: int, skip: str = "identity",
                 position: str | None = None, context: int = 2, readout: str = "last",
                 version: str = "v1", width: int = 64, temporal_norm: bool = True,
                 rng: np.random.Generator | int | None = None, truncate: str | None = None,
                 recurrent_gradient: str = "correct", channels: int = 3) -> None:
        rng = np.random.default_rng(rng)
        super().__init__(depth, classes, version, width, rng, truncate, channels)
        last = self.stages[-1]
        position = last if position is None else position
        for name, value, known in (
                ("skip", skip, SKIPS), ("readout", readout, READOUTS),
                ("position", position, ("block1", "block2", f"mid_{last}", last)),
                ("recurrent_gradient", recurrent_gradient, RECURRENT_GRADIENTS)):
            if value not in known:
                raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(known)}")
        self.skip, self.position, self.context, self.readout = skip, position, context, readout
        self.recurrent_gradient = recurrent_gradient
        self.recurrent = self._place()
        if skip.startswith("conv"):
            for name, block in self.residual_blocks():
                if name in self.recurrent:
                    block.temporal = TemporalConv(block, skip == "conv_nonlinear", temporal_norm,
                                                  recurrent_gradient == "same-frame", rng)

    def _place(self) -> tuple[str, ...]:
        """The names of the blocks with a temporal skip, from input to output."""
        blocks = dict(self.residual_blocks())
        names = list(blocks)
        stage = [n for n in names if n.startswith(self.position.removeprefix("mid_"))]
        if self.position.startswith("mid_"):
            stage = [n for n in stage if blocks[n].shortcut is not None]
        deepest = names.index(stage[0] if self.position == "block1" else stage[-1])
        if self.skip in ("pure_temporal", "none"):
            most, room = math.inf, "at least 1 frame"
        else:
            most = deepest + 2
            room = (f"1 to {most} frames for position {self.position!r} of a {self.depth}-layer "
                    "network")
        if not isinstance(self.context, int) or not 1 <= self.context <= most:
            raise ValueError(f"context: got {self.context!r}, expected {room}")
        if self.skip == "none" or self.context == 1:
            return ()
        count = 1 if self.skip == "pure_temporal" else self.context - 1
        return tuple(names[deepest + 1 - count : deepest + 1])

    def last_framewise_stage(self) -> str:
        if not self.recurrent:
            return self.stages[-1]
        return self.stages[stage_number(self.recurrent[0].partition(".")[0]) - 1]

    def forward(self, x: Tensor, after: str | None = None) -> Tensor:
        """Chunks (B, T, H, W, C) → logits (B, classes); see `VideoResNet` for `after`."""
        stages, batch = self.remaining(x, after), x.shape[0]
        if self.readout == "last" and not self.recurrent:
            x = x[:, -1:]  # no other frame reaches the output
        x = x.reshape(-1, *x.shape[2:])
        if "stem" in stages:
            x = self.stem(x)
        for name, block in self.residual_blocks():
            if name.partition(".")[0] not in stages:
                continue
            if name in self.recurrent:
                x = BLOCKS[self.skip](block, x, x.shape[0] // batch, self.readout == "last")
            else:
                x = block(x)
        x = global_avg_pool(x)
        if x.shape[0] > batch:
            x = x.reshape(batch, -1, x.shape[1]).mean(axis=1)
        return self.fc(x)


def recurrent_resnet(depth: int = 50, *, classes: int, **options) -> RecurrentResNet:
    """A recurrent residual network; `options` as of `RecurrentResNet`."""
    return RecurrentResNet(depth, classes, **options)
