"""The gated recurrent unit over padded sequences on a GPU, and its backpropagation through time.

The equations are those of `kernels.cpu.recurrence`. The input products of all steps are one matrix
product, and so is each weight's gradient; what has to go step by step is one kernel for all of
them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tensorlite.device import Array, array_module, is_on_gpu
from tensorlite.kernels.cuda.compiler import Kernel, kernel
from tensorlite.kernels.cuda.convolution import conv2d_grad_weight, matmul2d
from tensorlite.kernels.cuda.elementwise import cast, column_sums
from tensorlite.kernels.cuda.launch import NAMES, launch, sums_dtype, type_name
from tensorlite.kernels.cuda.rows import plain, vectors

THREADS = 512
SEQUENCES = (4, 1)  # of a block: weights are read once for all of them
ENOUGH = 64 << 10  # bytes of shared memory that every device gives a block
MOST = 99 << 10  # that every device since compute capability 8.0 gives


def _kernel(name: str, dtype: Any, sequences: int) -> Kernel:
    return kernel("recurrence.cu", name, THREADS, hot=True, TYPE=type_name(dtype),
                  SEQUENCES=sequences)


def kernels() -> list[Kernel]:
    """Every kernel that this module launches itself."""
    return [_kernel(name, dtype, sequences) for name in ("gru_forward", "gru_backward")
            for dtype in NAMES for sequences in SEQUENCES]


def _run(name: str, dtype: Any, values: int, *arguments: Any, batch: int, steps: int,
         hidden: int) -> None:
    """Launch a kernel whose blocks keep `values` numbers of each of their sequences."""
    size = values * sums_dtype(dtype).itemsize
    sequences = next((n for n in SEQUENCES if n * size <= ENOUGH), 1)
    if sequences * size > MOST:
        raise ValueError(f"gru: {hidden} units of {dtype} are more than a block can hold")
    launch(_kernel(name, dtype, sequences), (-(-batch // sequences),), *arguments,
           np.int32(batch), np.int32(steps), np.int32(hidden), shared=sequences * size)


def _lengths(lengths: Array, steps: int, like: Array) -> Array | None:
    """Lengths as the kernels take them: None, and nothing to copy, where all sequences are full."""
    if not is_on_gpu(lengths) and (np.asarray(lengths) == steps).all():
        return None
    return plain(array_module(like).asarray(lengths), np.int32)


def _weight_gradient(x: Array, grad: Array) -> Array:
    """x^T @ grad, that is, the gradient to the weights of a 1x1 convolution."""
    one = (1, 1)
    return conv2d_grad_weight(x[None, None], grad[None, None], one, stride=one, padding=(0, 0),
                              dilation=one, groups=1)[0, 0]


def gru_forward(x: Array, lengths: Array, w_ih: Array, w_hh: Array, b_ih: Array, b_hh: Array,
                h0: Array | None) -> tuple[Array, tuple[Array, ...]]:
    """States after each step of padded sequences: (out (B,T,H), what the backward needs).

    x (B,T,F); lengths (B,) whole numbers; w_ih (F,3H); w_hh (H,3H); b_ih, b_hh (3H,); h0 (B,H)
    or None for zeros. out is zero from a sequence's end on.
    """
    xp, dtype = array_module(x), x.dtype
    (batch, steps, features), hidden = x.shape, w_hh.shape[0]
    out = xp.empty((batch, steps, hidden), dtype)
    gates = xp.empty((batch, steps, 4, hidden), sums_dtype(dtype))
    if out.size:
        inputs = matmul2d(plain(x, dtype).reshape(-1, features), plain(w_ih, dtype))
        start = None if h0 is None else plain(h0, gates.dtype)
        _run("gru_forward", dtype, 2 * hidden + 3 * THREADS, inputs, plain(w_hh, dtype),
             *vectors(x, b_ih, b_hh), start, _lengths(lengths, steps, x), out, gates,
             batch=batch, steps=steps, hidden=hidden)
    return out, (out, gates)


def gru_backward(grad: Array, x: Array, lengths: Array, w_ih: Array, w_hh: Array,
                 h0: Array | None, saved: tuple[Array, ...],
                 need_dx: bool = True) -> tuple[Array | None, ...]:
    """Backpropagation through time: (dx, dw_ih, dw_hh, db_ih, db_hh, dh0).

    grad (B,T,H) is the gradient of out; what it holds past a sequence's end is ignored. dx is None
    when it is not needed, dh0 when no h0 was given. Gradients of weights and biases are float32 for
    float16.
    """
    out, gates = saved
    xp, dtype = array_module(x), x.dtype
    (batch, steps, features), hidden = x.shape, w_hh.shape[0]
    d_inputs, d_products = (xp.empty((batch, steps, 3 * hidden), dtype) for _ in range(2))
    dh0 = xp.zeros((batch, hidden), gates.dtype)
    previous = xp.empty(out.shape, dtype)  # the states that steps began with
    if out.size:
        start = None if h0 is None else plain(h0, gates.dtype)
        _run("gru_backward", dtype, 4 * hidden + THREADS, plain(grad, dtype), out, gates,
             plain(w_hh.T, dtype), start, _lengths(lengths, steps, x), d_inputs, d_products, dh0,
             batch=batch, steps=steps, hidden=hidden)
        previous[:, 1:] = out[:, :-1]
        previous[:, 0] = 0 if h0 is None else h0
    flat_inputs, flat_products = (d.reshape(-1, 3 * hidden) for d in (d_inputs, d_products))
    dx = matmul2d(flat_inputs, w_ih.T).reshape(x.shape) if need_dx else None
    dw_ih = _weight_gradient(plain(x, dtype).reshape(-1, features), flat_inputs)
    dw_hh = _weight_gradient(previous.reshape(-1, hidden), flat_products)
    if h0 is None:
        dh0 = None
    elif h0.dtype != dh0.dtype:
        dh0 = cast(dh0, h0.dtype)
    return dx, dw_ih, dw_hh, column_sums(flat_inputs), column_sums(flat_products), dh0
