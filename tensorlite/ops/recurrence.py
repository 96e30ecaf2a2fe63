"""What looks across time: the temporal skip connection and the gated recurrent unit."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import kernels
from ..autograd import Function, Node
from ..device import Array, array_module
from ..tensor import Tensor
from .arguments import check_lengths, one_dtype
from .casting import as_dtype, for_products


class TemporalSkip(Function):
    """out_t = y_t + x_{t-1} within each chunk, x_0 = 0; so dy_t = grad_t and dx_t = grad_{t+1}."""

    name, roles = "temporal_skip", (None, "temporal skip")

    @staticmethod
    def forward(ctx: Node, y: Array, x: Array, *, frames: int) -> Array:
        ctx.shapes, ctx.frames = (y.shape, x.shape), frames
        return kernels.of(y).temporal_skip_forward(y, x, frames)

    @staticmethod
    def backward(ctx: Node, grad: Array) -> tuple[Array, ...]:
        return kernels.of(grad).temporal_skip_backward(grad, *ctx.shapes, ctx.frames)


class GRU(Function):
    """A gated recurrent unit over sequences (Cho et al. 2014, in the variant of cuDNN):

        r_t = σ(x_t W_ir + b_ir + h_{t-1} W_hr + b_hr)
        z_t = σ(x_t W_iz + b_iz + h_{t-1} W_hz + b_hz)
        n_t = tanh(x_t W_in + b_in + r_t (h_{t-1} W_hn + b_hn))
        h_t = (1 - z_t) n_t + z_t h_{t-1}

    Backward goes through time from the last step to the first, carrying dh.
    """

    @staticmethod
    def forward(ctx: Node, x: Array, w_ih: Array, w_hh: Array, b_ih: Array, b_hh: Array,
                h0: Array, *, lengths: np.ndarray) -> Array:
        w_ih, w_hh = as_dtype(w_ih, x.dtype), as_dtype(w_hh, x.dtype)
        out, saved = kernels.of(x).gru_forward(x, lengths, w_ih, w_hh, b_ih, b_hh, h0)
        ctx.save(x, lengths, w_ih, w_hh, h0, *saved)
        return out

    @staticmethod
    def backward(ctx: Node, grad: Array) -> tuple[Array | None, ...]:
        x, lengths, w_ih, w_hh, h0, *saved = ctx.saved
        return kernels.of(grad).gru_backward(grad, x, lengths, w_ih, w_hh, h0, tuple(saved),
                                             need_dx=ctx.needs[0])


def temporal_skip(y: Tensor, x: Tensor, frames: int) -> Tensor:
    """Add to each frame's `y` the `x` of the frame before it in its chunk of `frames` frames.

    Chunks are folded into the first axis, chunk by chunk: y (B frames, ...), x (B frames, ...) →
    (B frames, ...); a chunk's first frame has no predecessor and stays as it is (Iqbal et al. 2017,
    eq. 2). Frames that cannot matter may be left out: y (B (frames - 1), ...) without the first
    frame of each chunk, or x (B (frames - 1), ...) without the last one.
    """
    if not isinstance(frames, int) or frames < 1:
        raise ValueError(f"frames: expected an integer >= 1, got {frames!r}")
    ny, nx = (t.shape[0] if t.ndim else -1 for t in (y, x))
    whole = ny == nx and ny % frames == 0
    first_left_out = ny * frames == nx * (frames - 1) and nx % frames == 0
    last_left_out = nx * frames == ny * (frames - 1) and ny % frames == 0
    if y.shape[1:] != x.shape[1:] or not (whole or first_left_out or last_left_out):
        raise ValueError(f"temporal_skip: expected y and x of one shape (B*{frames}, ...), one of "
                         f"them perhaps (B*{frames - 1}, ...), got {y.shape} and {x.shape}")
    return TemporalSkip.apply(y, x, frames=frames)


def gru(x: Tensor, lengths: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor,
        h0: Tensor | None = None) -> Tensor:
    """A gated recurrent unit over padded sequences.

    x (B, T, F); lengths (B,) integers in [0, T], or None where every sequence has T steps;
    w_ih (F, 3 H), w_hh (H, 3 H), b_ih, b_hh (3 H,), gates in the order r, z, n; h0 (B, H), zeros
    by default → the states h_1 … h_T (B, T, H), zero after the end of a sequence.
    """
    if x.ndim != 3 or w_hh.ndim != 2:
        raise ValueError(f"gru: expected x (B, T, F) and w_hh (H, 3 H), got {x.shape} and "
                         f"{w_hh.shape}")
    x = for_products(x)
    batch, steps, features = x.shape
    hidden = w_hh.shape[0]
    if h0 is None:
        h0 = Tensor(array_module(x.data).zeros((batch, hidden), x.dtype))
    for name, t, shape in (("w_ih", w_ih, (features, 3 * hidden)),
                           ("w_hh", w_hh, (hidden, 3 * hidden)), ("b_ih", b_ih, (3 * hidden,)),
                           ("b_hh", b_hh, (3 * hidden,)), ("h0", h0, (batch, hidden))):
        if t.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {t.shape}")
    one_dtype(x, w_ih=w_ih, w_hh=w_hh, b_ih=b_ih, b_hh=b_hh, h0=h0)
    lengths = check_lengths(lengths, batch, steps)
    return GRU.apply(x, w_ih, w_hh, b_ih, b_hh, h0, lengths=lengths)
