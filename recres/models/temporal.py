"""What a residual block with a temporal skip does to the frames of a chunk, by type of skip.

The frames are folded, x (B frames, H, W, C). The equations are those at the top of `recurrent.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tensorlite import Activation, block_join, conv2d, nn, relu, stack, value_of
from tensorlite.tensor import Tensor

from .resnet import ResidualBlock


class TemporalConv(nn.Module):
    """S(x) = x ∗ W_s, a 1x1 convolution with the block's stride, a batch norm after it as after
    every other convolution; with `nonlinear`, relu of that (eqs. 3 and 4 of the paper).

    With e_t the gradient at that output of the convolution which goes into frame t, the gradient of
    W_s is Σ_t x_{t-1}ᵀ e_t. The public code of the paper's framework pairs e_t with x_t, the frame
    that the error comes from, instead of the one that the weights were applied to: the gradient of
    no loss. `same_frame` does so too, to see what that did to the paper's comparison of trained
    skips with the identity, which has no weights to be trained wrongly. Values and the gradient of
    x are the same with it and without: bit for bit in `tensorlite.unfused`, else to rounding, as
    the moments of a fused convolution's output are summed in another order.
    """

    def __init__(self, block: ResidualBlock, nonlinear: bool, norm: bool, same_frame: bool,
                 rng: np.random.Generator) -> None:
        self.nonlinear, self.same_frame = nonlinear, same_frame
        self.conv = nn.Conv2d(block.cin, block.cout, 1, stride=block.stride, rng=rng)
        self.norm = nn.BatchNorm2d(block.cout) if norm else None

    def forward(self, x: Tensor) -> Activation:
        """x (N, H, W, cin) → (N, H / stride, W / stride, cout)."""
        if self.norm is not None:
            return nn.conv_norm(x, self.conv, self.norm, relu=self.nonlinear)
        return self._finish(self.conv(x))

    def along(self, x: Tensor, frames: int) -> Activation:
        """What the frames of chunks x (B frames, H, W, cin) pass on: S of each but the last."""
        before = _without(x, frames, -1)
        if not self.same_frame:
            return self(before)
        # Two convolutions whose values are those of the first (y - y is 0): x learns through the
        # first alone, W_s through the second alone.
        fixed = conv2d(before, self.conv.weight.detach(), stride=self.conv.stride)
        y = self.conv(_without(x.detach(), frames, 0))
        return self._finish(fixed + (y - y.detach()))

    def _finish(self, z: Tensor) -> Tensor:
        """The convolution's output through what comes after it."""
        if self.norm is not None:
            z = self.norm(z)
        return relu(z) if self.nonlinear else z


# What a block does to chunks x (B frames, H, W, C), by type of temporal skip. With `last`, only the
# frames of y that can reach the readout of the chunk's last frame are made.


def _identity_block(block: ResidualBlock, x: Tensor, frames: int, last: bool) -> Tensor:
    """y_t = relu(F(x_t) + shortcut(x_t) + shortcut(x_{t-1})).

    With `last`, the first frame of each chunk has done its work once it has been added to the
    second: y then holds B (frames - 1) frames.
    """
    skip = block.skip(x)
    now = _without(x, frames, 0) if last else x
    return block_join(block.residual(now), skip, skip, frames=frames, first_left_out=last)


def _convolved_block(block: ResidualBlock, x: Tensor, frames: int, last: bool) -> Tensor:
    """y_t = relu(F(x_t) + shortcut(x_t) + S(x_{t-1})), of the frames of `_identity_block`."""
    now = _without(x, frames, 0) if last else x
    skip, before = block.skip(now), block.temporal.along(x, frames)
    return block_join(block.residual(now), skip, before, frames=frames, first_left_out=last)


def _pure_temporal_block(block: ResidualBlock, x: Tensor, frames: int, last: bool) -> Tensor:
    """y_t = relu(F(x_t) + shortcut(x_t) + y_{t-1}), y_0 = 0; with `last`, of the last frame."""
    residual, skip = _chunks(value_of(block.residual(x)), frames), _chunks(block.skip(x), frames)
    outputs = [join_frame(residual[:, 0], skip[:, 0], None)]
    for t in range(1, frames):
        outputs.append(join_frame(residual[:, t], skip[:, t], outputs[-1]))
    if last:
        return outputs[-1]
    y = stack(outputs, axis=1)
    return y.reshape(-1, *y.shape[2:])


BLOCKS: dict[str, Callable[[ResidualBlock, Tensor, int, bool], Tensor]] = {
    "identity": _identity_block, "conv": _convolved_block, "conv_nonlinear": _convolved_block,
    "pure_temporal": _pure_temporal_block}


def join_frame(residual: Tensor, skip: Tensor, before: Activation | None) -> Tensor:
    """relu(residual + skip + before) of one frame of each chunk; `before` None where it is 0."""
    if before is None:
        return block_join(residual, skip)
    # A chunk of two frames, of which only the second is wanted.
    return block_join(residual, skip, before, frames=2, first_left_out=True)


def _chunks(x: Activation, frames: int) -> Tensor:
    """(B frames, …) → (B, frames, …)."""
    x = value_of(x)
    return x.reshape(-1, frames, *x.shape[1:])


def _without(x: Tensor, frames: int, which: int) -> Tensor:
    """Folded chunks x (B frames, …) without their first (0) or last (-1) frame."""
    chunks = _chunks(x, frames)
    kept = chunks[:, 1:] if which == 0 else chunks[:, :-1]
    return kept.reshape(-1, *x.shape[1:])
