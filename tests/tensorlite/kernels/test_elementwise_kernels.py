"""Elementwise kernels, matrix products and the temporal skip on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlite.kernels import cpu

dtypes = st.sampled_from(["float32", "float64"])
layouts = st.sampled_from(["plain", "strided", "transposed", "reversed"])
sizes = st.integers(1, 40)


@given(seed=st.integers(0, 2**31), shape=st.tuples(sizes, sizes), dtype=dtypes, layout=layouts,
       workspace=st.sampled_from([1, 400]), threads=st.integers(1, 3))
def test_relu(seed, shape, dtype, layout, workspace, threads, make_array, machine):
    x, grad = (make_array(seed + i, shape, dtype, layout) for i in range(2))
    with machine(workspace, threads):
        y = cpu.relu_forward(x)
        dx = cpu.relu_backward(grad, y)
    assert y.dtype == dx.dtype == x.dtype
    assert np.array_equal(y, np.maximum(x, 0)) and np.array_equal(dx, np.where(x > 0, grad, 0))


def test_relu_keeps_nan_and_infinity():
    y = cpu.relu_forward(np.array([np.nan, np.inf, -np.inf, -0.0]))
    assert np.isnan(y[0]) and y[1:].tolist() == [np.inf, 0, 0]


@given(seed=st.integers(0, 2**31), rows=st.integers(0, 40), inner=st.integers(0, 40),
       columns=st.integers(0, 40), dtype=dtypes, layout=layouts, turned=st.booleans(),
       given_out=st.booleans(), threads=st.integers(1, 3))
def test_matmul2d(
    seed, rows, inner, columns, dtype, layout, turned, given_out, threads, make_array, machine,
    assert_close,
):
    a = make_array(seed, (rows, inner), dtype, layout)
    b = make_array(seed + 1, (columns, inner) if turned else (inner, columns), dtype, layout)
    b = b.T if turned else b
    out = np.empty((rows, columns), dtype) if given_out else None
    with machine(400, threads):
        c = cpu.matmul2d(a, b, out)
        again = cpu.matmul2d(a, b)
    assert (out is None or c is out) and c.dtype == a.dtype and np.array_equal(c, again)
    assert_close(c, a.astype(np.float64) @ b.astype(np.float64), abs(a) @ abs(b))


@pytest.mark.parametrize("shape", [(700, 300), (300, 700)])
def test_matmul2d_large_enough_to_be_split(shape, machine, assert_close):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((shape[0], 400)), rng.standard_normal((400, shape[1]))
    with machine(1 << 20, 3):
        assert_close(cpu.matmul2d(a, b), a @ b, abs(a) @ abs(b))


@given(seed=st.integers(0, 2**31), chunks=st.integers(0, 3), frames=st.integers(1, 4),
       kind=st.sampled_from(["whole", "first dropped", "last dropped"]), dtype=dtypes,
       layout=layouts, threads=st.integers(1, 3))
def test_temporal_skip(
    seed, chunks, frames, kind, dtype, layout, threads, make_array, machine
):
    if frames == 1:
        kind = "whole"
    y_frames = frames - (kind == "first dropped")
    x_frames = frames - (kind == "last dropped")
    inner = (2, 3, 4)
    y = make_array(seed, (chunks * y_frames, *inner), dtype, layout)
    x = make_array(seed + 1, (chunks * x_frames, *inner), dtype, layout)
    grad = make_array(seed + 2, y.shape, dtype, layout)
    expected, dx = y.copy(), np.zeros(x.shape, dtype)
    for chunk in range(chunks):
        for t in range(1, frames):  # frame t, counted from 0, receives frame t - 1
            at = chunk * y_frames + t - (kind == "first dropped")
            expected[at] += x[chunk * x_frames + t - 1]
            dx[chunk * x_frames + t - 1] += grad[at]
    with machine(400, threads):
        out = cpu.temporal_skip_forward(y, x, frames)
        grads = cpu.temporal_skip_backward(grad, y.shape, x.shape, frames)
    assert np.array_equal(out, expected) and not np.shares_memory(out, y)
    assert np.array_equal(grads[0], grad) and np.array_equal(grads[1], dx)
