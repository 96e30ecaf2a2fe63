"""Pooling on the CPU against loops over windows in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlite.kernels import cpu


@st.composite
def pools(draw):
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    return dict(
        seed=draw(st.integers(0, 2**31)),
        shape=(draw(st.integers(1, 3)), draw(st.integers(kernel[0], 9)),
               draw(st.integers(kernel[1], 9)), draw(st.sampled_from([1, 3, 16]))),
        dtype=draw(st.sampled_from(["float32", "float64"])),
        layout=draw(st.sampled_from(["plain", "strided", "transposed", "reversed"])),
        window=(kernel, draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
                tuple(draw(st.integers(0, k // 2)) for k in kernel)),
        workspace=draw(st.sampled_from([1, 400, 1 << 21])),
        threads=draw(st.integers(1, 3)),
    )


def windows(x, window, fill):
    """Padded x in float64, and each output pixel with the window it sees there."""
    (kh, kw), (sh, sw), (ph, pw) = window
    inside = np.pad(np.asarray(x, np.float64), ((0, 0), (ph, ph), (pw, pw), (0, 0)),
                    constant_values=fill)
    height = (inside.shape[1] - kh) // sh + 1
    width = (inside.shape[2] - kw) // sw + 1
    places = [
        (i, j, (slice(None), slice(i * sh, i * sh + kh), slice(j * sw, j * sw + kw)))
        for i in range(height)
        for j in range(width)
    ]
    return inside, (len(x), height, width, x.shape[3]), places


def crop(padded, x, window):
    ph, pw = window[2]
    return padded[:, ph : ph + x.shape[1], pw : pw + x.shape[2]]


@given(pool=pools(), ties=st.booleans())
def test_max_pool(pool, ties, make_array, machine):
    x = make_array(pool["seed"], pool["shape"], pool["dtype"], pool["layout"])
    if ties:
        x = np.sign(x)
    window = pool["window"]
    inside, shape, places = windows(x, window, -np.inf)
    grad = make_array(pool["seed"] + 1, shape, pool["dtype"], pool["layout"])
    y, argmax, dx = np.empty(shape), np.empty(shape, int), np.zeros(inside.shape)
    n, c = np.meshgrid(np.arange(shape[0]), np.arange(shape[3]), indexing="ij")
    for i, j, at in places:
        flat = inside[at].reshape(shape[0], -1, shape[3])
        best = argmax[:, i, j] = flat.argmax(axis=1)
        y[:, i, j] = flat.max(axis=1)
        rows, columns = np.divmod(best, window[0][1])
        dx[n, at[1].start + rows, at[2].start + columns, c] += grad[:, i, j]
    with machine(pool["workspace"], pool["threads"]):
        ours, where = cpu.max_pool2d_forward(x, *window)
        back = cpu.max_pool2d_backward(grad, where, x.shape, *window)
    assert ours.dtype == back.dtype == x.dtype and where.dtype == np.uint8
    assert np.array_equal(ours, y) and np.array_equal(where, argmax)
    np.testing.assert_allclose(
        back, crop(dx, x, window), rtol=0, atol=64 * np.finfo(x.dtype).eps
    )


@given(pool=pools())
def test_avg_pool(pool, make_array, machine, assert_close):
    x = make_array(pool["seed"], pool["shape"], pool["dtype"], pool["layout"])
    window = pool["window"]
    inside, shape, places = windows(x, window, 0)
    grad = make_array(pool["seed"] + 1, shape, pool["dtype"], pool["layout"])
    y, dx = np.empty(shape), np.zeros(inside.shape)
    cells = window[0][0] * window[0][1]
    for i, j, at in places:
        y[:, i, j] = inside[at].sum(axis=(1, 2)) / cells
        dx[at] += grad[:, i : i + 1, j : j + 1] / np.float64(cells)
    with machine(pool["workspace"], pool["threads"]):
        ours = cpu.avg_pool2d_forward(x, *window)
        back = cpu.avg_pool2d_backward(grad, x.shape, *window)
    assert ours.dtype == back.dtype == x.dtype
    assert_close(ours, y, abs(x).max())
    assert_close(back, crop(dx, x, window), cells * abs(grad).max())


@given(pool=pools())
def test_global_avg_pool(pool, make_array, machine, assert_close):
    x = make_array(pool["seed"], pool["shape"], pool["dtype"], pool["layout"])
    grad = make_array(pool["seed"] + 1, (len(x), x.shape[3]), pool["dtype"], pool["layout"])
    with machine(pool["workspace"], pool["threads"]):
        y = cpu.global_avg_pool_forward(x)
        dx = cpu.global_avg_pool_backward(grad, x.shape)
    assert_close(y, x.astype(np.float64).mean((1, 2)), abs(x).max())
    expected = np.broadcast_to(grad[:, None, None] / np.float64(x[0, ..., 0].size), x.shape)
    assert_close(dx, expected, abs(grad).max())


def test_nan_wins_and_padding_never_does():
    x = np.full((1, 3, 3, 1), -np.inf, np.float32)
    x[0, 2, 2] = np.nan
    y, argmax = cpu.max_pool2d_forward(x, (2, 2), (2, 2), (1, 1))
    assert np.isnan(y[0, 1, 1, 0]) and argmax[0, 1, 1, 0] == 3
    assert y[0, 0, 0, 0] == -np.inf and argmax[0, 0, 0, 0] == 3  # the only cell not padding
    dx = cpu.max_pool2d_backward(np.ones_like(y), argmax, x.shape, (2, 2), (2, 2), (1, 1))
    assert dx.sum() == 4


@pytest.mark.parametrize("forward", [cpu.max_pool2d_forward, cpu.avg_pool2d_forward])
def test_an_empty_batch(forward):
    y = forward(np.zeros((0, 4, 4, 2), np.float32), (2, 2), (2, 2), (0, 0))
    assert (y[0] if isinstance(y, tuple) else y).shape == (0, 2, 2, 2)
