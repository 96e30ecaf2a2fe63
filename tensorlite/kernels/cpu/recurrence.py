"""The gated recurrent unit over padded sequences, and its backpropagation through time.

PyTorch's equations and gate order (r, z, n), for each step of each sequence:

    r = sigmoid(x W_ir + b_ir + h W_hr + b_hr)
    z = sigmoid(x W_iz + b_iz + h W_hz + b_hz)
    n = tanh(x W_in + b_in + r * (h W_hn + b_hn))
    h' = (1 - z) * n + z * h

What does not depend on the state, the input products and all weight gradients, is one matrix
product over all steps; only h W_h runs step by step. A step's arrays are small, so what counts
there is the number of calls: what can be done for all steps at once is done outside the loops.
"""

from __future__ import annotations

import numpy as np

from tensorlite.kernels.cpu.elementwise import column_sums, matmul2d
from tensorlite.kernels.cpu.memory import empty
from tensorlite.kernels.cpu.threads import scratch


def _ended(lengths: np.ndarray, steps: int) -> np.ndarray | None:
    """Which steps lie past their sequence's end, (T,B,1); None if none does."""
    ended = np.arange(steps)[:, None, None] >= np.asarray(lengths)[None, :, None]
    return ended if ended.any() else None


def gru_forward(
    x: np.ndarray,
    lengths: np.ndarray,
    w_ih: np.ndarray,
    w_hh: np.ndarray,
    b_ih: np.ndarray,
    b_hh: np.ndarray,
    h0: np.ndarray | None,
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """States after each step of padded sequences: (out (B,T,H), what the backward needs).

    x (B,T,F); lengths (B,) whole numbers; w_ih (F,3H); w_hh (H,3H); b_ih, b_hh (3H,); h0 (B,H)
    or None for zeros. out is zero from a sequence's end on.
    """
    (batch, steps, features), hidden, dtype = x.shape, len(w_hh), x.dtype
    two = 2 * hidden
    # sigmoid(a) = tanh(a / 2) / 2 + 1 / 2, which cannot overflow; a / 2 comes from halved terms.
    half = np.ones(3 * hidden, dtype)
    half[:two] = 0.5
    inputs = scratch("gru inputs", (batch * steps, 3 * hidden), dtype)
    matmul2d(x.reshape(batch * steps, features), w_ih, out=inputs)
    inputs += b_ih
    inputs[:, :two] += b_hh[:two]
    inputs *= half
    weight, bias = w_hh * half, np.broadcast_to(b_hh[two:], (batch, hidden))
    states = empty((steps + 1, batch, hidden), dtype)
    gates = empty((steps, batch, two), dtype)  # r and z
    news = empty((steps, batch, hidden), dtype)  # n
    products = empty((steps, batch, hidden), dtype)  # h W_hn + b_hn
    states[0] = 0 if h0 is None else h0
    ended = _ended(lengths, steps)
    from_h = scratch("gru from h", (batch, 3 * hidden), dtype)
    by_step = inputs.reshape(batch, steps, 3 * hidden).transpose(1, 0, 2)
    for t in range(steps):
        h, gate, n, new = states[t], gates[t], news[t], states[t + 1]
        np.matmul(h, weight, out=from_h)
        np.add(by_step[t, :, :two], from_h[:, :two], out=gate)
        np.tanh(gate, out=gate)
        gate *= half[:two]
        gate += half[:two]
        np.add(from_h[:, two:], bias, out=products[t])
        np.multiply(gate[:, :hidden], products[t], out=n)
        n += by_step[t, :, two:]
        np.tanh(n, out=n)
        np.subtract(h, n, out=new)
        new *= gate[:, hidden:]
        new += n
        if ended is not None:
            np.copyto(new, h, where=ended[t])
    out = empty((batch, steps, hidden), dtype)
    out[...] = states[1:].transpose(1, 0, 2)
    if ended is not None:
        np.copyto(out, 0, where=ended.transpose(1, 0, 2))
    return out, (states, gates, news, products)


def gru_backward(
    grad: np.ndarray,
    x: np.ndarray,
    lengths: np.ndarray,
    w_ih: np.ndarray,
    w_hh: np.ndarray,
    h0: np.ndarray | None,
    saved: tuple[np.ndarray, ...],
    need_dx: bool = True,
) -> tuple[np.ndarray | None, ...]:
    """Backpropagation through time: (dx, dw_ih, dw_hh, db_ih, db_hh, dh0).

    grad (B,T,H) is the gradient of out; what it holds past a sequence's end is ignored. dx is None
    when it is not needed, dh0 when no h0 was given.
    """
    states, gates, news, products = saved
    (steps, batch, hidden), dtype = news.shape, grad.dtype
    features = x.shape[2]
    r, z = gates[..., :hidden], gates[..., hidden:]
    # All that dh is multiplied with on its way to the pre-activations, for all steps at once:
    # to_n for n, and factors for h W_hr, h W_hz and h W_hn.
    keep, to_n = 1 - z, 1 - news * news
    to_n *= keep
    factors = scratch("gru factors", (steps, batch, 3, hidden), dtype)
    to_r, to_z, to_product = (factors[:, :, gate] for gate in range(3))
    np.multiply(to_n, r, out=to_product)
    np.multiply(to_product, products, out=to_r)
    to_r *= 1 - r
    np.subtract(states[:-1], news, out=to_z)
    to_z *= z
    to_z *= keep
    grads = np.empty((steps, batch, hidden), dtype)
    grads[...] = grad.transpose(1, 0, 2)
    ended = _ended(lengths, steps)
    if ended is not None:  # the gradient passes to the step before as it is: zero
        np.copyto(factors, 0, where=ended[..., None])
        np.copyto(to_n, 0, where=ended)
        np.copyto(grads, 0, where=ended)
        z = np.where(ended, 0, z)
    d_products = scratch("gru d products", (steps, batch, 3, hidden), dtype)
    by_step, back = d_products.reshape(steps, batch, 3 * hidden), w_hh.T
    dh, from_next = np.zeros((batch, hidden), dtype), np.empty((batch, hidden), dtype)
    for t in reversed(range(steps)):
        grads[t] += dh  # from here on the gradient of h_t
        np.multiply(grads[t, :, None], factors[t], out=d_products[t])
        np.matmul(by_step[t], back, out=from_next)
        np.multiply(grads[t], z[t], out=dh)
        dh += from_next
    d_inputs = scratch("gru d inputs", (batch, steps, 3, hidden), dtype)
    d_inputs[:, :, :2] = d_products[:, :, :2].transpose(1, 0, 2, 3)
    np.multiply(grads, to_n, out=d_inputs[:, :, 2].transpose(1, 0, 2))
    flat_inputs = d_inputs.reshape(batch * steps, 3 * hidden)
    flat_products = d_products.reshape(steps * batch, 3 * hidden)
    flat_x = x.reshape(batch * steps, features)
    dx = None
    if need_dx:
        dx = empty(x.shape, dtype)
        matmul2d(flat_inputs, w_ih.T, out=dx.reshape(flat_x.shape))
    dw_ih, dw_hh = empty(w_ih.shape, dtype), empty(w_hh.shape, dtype)
    matmul2d(flat_x.T, flat_inputs, out=dw_ih)
    matmul2d(states[:-1].reshape(steps * batch, hidden).T, flat_products, out=dw_hh)
    db_ih, db_hh = column_sums(flat_inputs), column_sums(flat_products)
    return dx, dw_ih, dw_hh, db_ih, db_hh, None if h0 is None else dh
