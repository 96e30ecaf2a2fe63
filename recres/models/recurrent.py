"""Recurrent residual networks (Iqbal, Richard, Kuehne, Gall 2017): ResNets with temporal skips.

A temporal skip adds to a residual block what the frame before brought to it:

    y_t = relu(F(x_t) + x_t + S(x_{t-1})),   x_0 = 0.

All frames of a chunk share the weights. T frames of context take T - 1 skips, one reaching one
frame further back than the next.
"""

from __future__ import annotations

import numpy as np

from tensorlite import Activation, block_join, global_avg_pool, nn, relu
from tensorlite.tensor import Tensor

from .resnet import STAGES, ResidualBlock, VideoResNet, stage_number

SKIPS = ("identity", "conv", "conv_nonlinear")
POSITIONS = ("block1", "block2", "mid_block4", "block4")
READOUTS = ("last", "mean")


class TemporalConv(nn.Module):
    """S(x) = x ∗ W_s, a 1x1 convolution with the block's stride, a batch norm after it as after
    every other convolution; with `nonlinear`, relu of that (eqs. 3 and 4 of the paper)."""

    def __init__(self, block: ResidualBlock, nonlinear: bool, norm: bool,
                 rng: np.random.Generator) -> None:
        self.nonlinear = nonlinear
        self.conv = nn.Conv2d(block.cin, block.cout, 1, stride=block.stride, rng=rng)
        self.norm = nn.BatchNorm2d(block.cout) if norm else None

    def forward(self, x: Tensor) -> Activation:
        """x (N, H, W, cin) → (N, H / stride, W / stride, cout)."""
        if self.norm is not None:
            return nn.conv_norm(x, self.conv, self.norm, relu=self.nonlinear)
        x = self.conv(x)
        return relu(x) if self.nonlinear else x


class RecurrentResNet(VideoResNet):
    """A ResNet with temporal skips.

    skip: ``"identity"`` (S(x) = x, through the block's own projection where it has one, adding no
        weights), ``"conv"`` or ``"conv_nonlinear"`` (see `TemporalConv`).
    position: the residual block of the deepest skip, in the paper's words: ``"block1"`` the first
        of stage 1, ``"block2"`` the last of stage 2, ``"mid_block4"`` the last of stage 4 that
        projects, ``"block4"`` the last of stage 4. Further skips sit in the blocks directly before.
    context: T, frames of a chunk; 1 is the network without a temporal skip.
    readout: ``"last"`` classifies from the chunk's last frame, and work on frames that cannot reach
        it is not done; ``"mean"`` from the mean over frames.
    temporal_norm: whether a batch norm follows the convolution of a convolutional skip.
    The rest as of `ResNet`. ValueError for what does not exist or does not fit.
    """

    def __init__(self, depth: int, classes: int, skip: str = "identity", position: str = "block4",
                 context: int = 2, readout: str = "last", version: str = "v1", width: int = 64,
                 temporal_norm: bool = True, rng: np.random.Generator | int | None = None) -> None:
        rng = np.random.default_rng(rng)
        super().__init__(depth, classes, version, width, rng)
        for name, value, known in (("skip", skip, SKIPS), ("position", position, POSITIONS),
                                   ("readout", readout, READOUTS)):
            if value not in known:
                raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(known)}")
        self.skip, self.position, self.context, self.readout = skip, position, context, readout
        self.recurrent = self._place(position, context)
        if skip != "identity":
            for name, block in self.residual_blocks():
                if name in self.recurrent:
                    block.temporal = TemporalConv(block, skip == "conv_nonlinear", temporal_norm,
                                                  rng)

    def _place(self, position: str, context: int) -> tuple[str, ...]:
        """The names of the T - 1 blocks with a temporal skip, from input to output."""
        blocks = dict(self.residual_blocks())
        names = list(blocks)
        stage = [n for n in names if n.startswith(position.removeprefix("mid_"))]
        if position == "mid_block4":
            stage = [n for n in stage if blocks[n].shortcut is not None]
        deepest = names.index(stage[0] if position == "block1" else stage[-1])
        if not isinstance(context, int) or not 1 <= context <= deepest + 2:
            raise ValueError(f"context: got {context!r}, expected 1 to {deepest + 2} frames for "
                             f"position {position!r} of a {self.depth}-layer network")
        return tuple(names[deepest - (context - 2) : deepest + 1])

    def last_framewise_stage(self) -> str:
        if not self.recurrent:
            return STAGES[-1]
        return STAGES[stage_number(self.recurrent[0].partition(".")[0]) - 1]

    def forward(self, x: Tensor, after: str | None = None) -> Tensor:
        """Chunks (B, T, H, W, 3) → logits (B, classes); see `VideoResNet` for `after`."""
        batch = x.shape[0]
        x, first = self.chunks(x, after)
        frames = self.context
        if first == 0:
            x = self.stem(x)
        for name, block in self.residual_blocks():
            if stage_number(name.partition(".")[0]) < first:
                continue
            if name in self.recurrent:
                x = self._recurrent_block(block, x, frames)
                frames = x.shape[0] // batch
            else:
                x = block(x)
        x = global_avg_pool(x)
        if frames > 1:
            x = x.reshape(batch, frames, -1).mean(axis=1)
        return self.fc(x)

    def _recurrent_block(self, block: ResidualBlock, x: Tensor, frames: int) -> Tensor:
        """y_t = relu(F(x_t) + shortcut(x_t) + S(x_{t-1})) for x (B frames, H, W, C).

        With readout "last", the first frame of each chunk has done its work once it has been added
        to the second: y then holds B (frames - 1) frames.
        """
        drop = self.readout == "last"
        now = _without(x, frames, 0) if drop else x
        if self.skip == "identity":
            skip = before = block.skip(x)
        else:
            skip, before = block.skip(now), block.temporal(_without(x, frames, -1))
        return block_join(block.residual(now), skip, before, frames=frames, first_left_out=drop)


def _without(x: Tensor, frames: int, which: int) -> Tensor:
    """Folded chunks x (B frames, ...) without their first (0) or last (-1) frame."""
    chunks = x.reshape(-1, frames, *x.shape[1:])
    kept = chunks[:, 1:] if which == 0 else chunks[:, :-1]
    return kept.reshape(-1, *x.shape[1:])


def recurrent_resnet(depth: int = 50, *, classes: int, **options) -> RecurrentResNet:
    """A recurrent residual network; `options` as of `RecurrentResNet`."""
    return RecurrentResNet(depth, classes, **options)
