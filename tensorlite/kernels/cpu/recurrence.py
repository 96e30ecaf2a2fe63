"""The gated recurrent unit over padded sequences, and its backpropagation through time.

PyTorch's equations and gate order (r, z, n), for each step of each sequence:

    r = sigmoid(x W_ir + b_ir + h W_hr + b_hr)
    z = sigmoid(x W_iz + b_iz + h W_hz + b_hz)
    n = tanh(x W_in + b_in + r * (h W_hn + b_hn))
    h' = (1 - z) * n + z * h

What does not depend on the state, the input products and all weight gradients, is one matrix
product over all steps; only h W_h runs step by step.
"""

from __future__ import annotations

import numpy as np

from tensorlite.kernels.cpu.elementwise import matmul2d


def _sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) written with tanh, which cannot overflow."""
    return 0.5 * np.tanh(0.5 * x) + 0.5


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
    batch, steps, features = x.shape
    hidden = w_hh.shape[0]
    inputs = matmul2d(x.reshape(batch * steps, features), w_ih) + b_ih
    inputs = inputs.reshape(batch, steps, 3 * hidden)
    live = np.arange(steps)[:, None, None] < np.asarray(lengths)[None, :, None]
    out = np.zeros((batch, steps, hidden), x.dtype)
    states = np.empty((steps + 1, batch, hidden), x.dtype)
    states[0] = 0 if h0 is None else h0
    gates = np.empty((steps, 4, batch, hidden), x.dtype)  # r, z, n and h W_hn + b_hn
    for t in range(steps):
        h = states[t]
        from_x = inputs[:, t]
        from_h = h @ w_hh + b_hh
        gate = _sigmoid(from_x[:, : 2 * hidden] + from_h[:, : 2 * hidden])
        r, z = gate[:, :hidden], gate[:, hidden:]
        product = from_h[:, 2 * hidden :]
        n = np.tanh(from_x[:, 2 * hidden :] + r * product)
        gates[t] = r, z, n, product
        new = n + z * (h - n)
        states[t + 1] = np.where(live[t], new, h)
        out[:, t] = np.where(live[t], new, 0)
    return out, (states, gates)


def gru_backward(
    grad: np.ndarray,
    x: np.ndarray,
    lengths: np.ndarray,
    w_ih: np.ndarray,
    w_hh: np.ndarray,
    h0: np.ndarray | None,
    saved: tuple[np.ndarray, ...],
) -> tuple[np.ndarray | None, ...]:
    """Backpropagation through time: (dx, dw_ih, dw_hh, db_ih, db_hh, dh0).

    grad (B,T,H) is the gradient of out; what it holds past a sequence's end is ignored. dh0 is
    None when no h0 was given.
    """
    states, gates = saved
    steps, batch, hidden = gates.shape[0], gates.shape[2], gates.shape[3]
    live = np.arange(steps)[:, None, None] < np.asarray(lengths)[None, :, None]
    d_inputs = np.empty((batch, steps, 3, hidden), grad.dtype)
    d_products = np.empty((steps, batch, 3, hidden), grad.dtype)
    dh = np.zeros((batch, hidden), grad.dtype)
    for t in reversed(range(steps)):
        r, z, n, product = gates[t]
        # Past a sequence's end dh is still zero, and stays so.
        dh = np.where(live[t], dh + grad[:, t], dh)
        dn = np.where(live[t], dh * (1 - z) * (1 - n * n), 0)
        dz = np.where(live[t], dh * (states[t] - n) * z * (1 - z), 0)
        dr = dn * product * r * (1 - r)
        for gate, value in enumerate((dr, dz, dn)):
            d_inputs[:, t, gate] = value
            d_products[t, :, gate] = value
        d_products[t, :, 2] = dn * r
        dh = np.where(live[t], dh * z, dh) + d_products[t].reshape(batch, 3 * hidden) @ w_hh.T
    flat_inputs = d_inputs.reshape(batch * steps, 3 * hidden)
    flat_products = d_products.reshape(steps * batch, 3 * hidden)
    flat_x = x.reshape(batch * steps, x.shape[2])
    dx = matmul2d(flat_inputs, w_ih.T).reshape(x.shape)
    dw_ih = matmul2d(flat_x.T, flat_inputs)
    dw_hh = matmul2d(states[:-1].reshape(steps * batch, hidden).T, flat_products)
    db_ih, db_hh = flat_inputs.sum(axis=0), flat_products.sum(axis=0)
    return dx, dw_ih, dw_hh, db_ih, db_hh, None if h0 is None else dh
