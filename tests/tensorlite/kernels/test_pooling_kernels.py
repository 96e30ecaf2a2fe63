"""Pooling on the CPU against loops over windows in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlite.kernels import cpu
from tensorlite.kernels.contract import Mask, Prologue


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


def reference_max(x, window, grad=None):
    """The maximum over windows and, given grad, its gradient: at the first cell that holds it."""
    inside, shape, places = windows(x, window, -np.inf)
    real, _, _ = windows(np.ones(x.shape), window, 0)
    y, dx = np.empty(shape), np.zeros(inside.shape)
    n, c = np.meshgrid(np.arange(shape[0]), np.arange(shape[3]), indexing="ij")
    for i, j, at in places:
        cells = inside[at].reshape(shape[0], -1, shape[3])
        best = y[:, i, j] = cells.max(axis=1)
        held = (cells == best[:, None]) | np.isnan(cells)
        first = (held & (real[at].reshape(cells.shape) > 0)).argmax(axis=1)
        if grad is not None:
            rows, columns = np.divmod(first, window[0][1])
            dx[n, at[1].start + rows, at[2].start + columns, c] += grad[:, i, j]
    return y, crop(dx, x, window)


@given(pool=pools(), ties=st.booleans(), extremes=st.booleans())
def test_max_pool(pool, ties, extremes, make_array, machine):
    x = make_array(pool["seed"], pool["shape"], pool["dtype"], pool["layout"])
    if ties:
        x = np.sign(x)
    if extremes:
        rng = np.random.default_rng(pool["seed"])
        x = np.where(rng.random(x.shape) < 0.3, rng.choice([-np.inf, np.inf, np.nan], x.shape), x)
        x = x.astype(pool["dtype"])
    window = pool["window"]
    shape = windows(x, window, 0)[1]
    grad = make_array(pool["seed"] + 1, shape, pool["dtype"], pool["layout"])
    y, dx = reference_max(x, window, grad)
    with machine(pool["workspace"], pool["threads"]):
        ours = cpu.max_pool2d_forward(x, *window)
        back, sums = cpu.max_pool2d_backward(grad, x, ours, *window)
    assert ours.dtype == back.dtype == x.dtype and sums is None
    np.testing.assert_array_equal(ours, y)
    np.testing.assert_allclose(back, dx, rtol=0, atol=64 * np.finfo(x.dtype).eps)


@given(pool=pools(), ties=st.booleans(), relu=st.booleans(), positive=st.booleans())
def test_max_pool_of_an_activation(pool, ties, relu, positive, make_array, machine, assert_close):
    """With a prologue and a mask it equals activation, pool, and their gradients in turn."""
    z = make_array(pool["seed"], pool["shape"], pool["dtype"], pool["layout"])
    if ties:
        z = np.sign(z)
    window, channels = pool["window"], z.shape[3]
    rng = np.random.default_rng(pool["seed"])
    scale = rng.choice([0.5, 1.0, 2.0] if positive else [-1.0, 0.0, 0.5], channels)
    scale, shift, mean = (
        v.astype(z.dtype) for v in (scale, *rng.standard_normal((2, channels)))
    )
    activation = Prologue(scale, shift, relu)
    a = z * scale + shift
    if relu:
        a = np.maximum(a, 0)
    shape = windows(z, window, 0)[1]
    grad = make_array(pool["seed"] + 1, shape, pool["dtype"], pool["layout"])
    y, dx = reference_max(a, window, grad)
    if relu:
        dx = np.where(a > 0, dx, 0)
    with machine(pool["workspace"], pool["threads"]):
        ours = cpu.max_pool2d_forward(z, *window, activation)
        back, sums = cpu.max_pool2d_backward(grad, z, ours, *window, Mask(z, activation, mean))
        plain = cpu.max_pool2d_forward(a, *window)
    np.testing.assert_array_equal(ours, plain)  # not a bit differs
    np.testing.assert_array_equal(ours, y)
    if pool["dtype"] == "float64" or ties:  # in float32 rounding makes ties that z has not
        np.testing.assert_allclose(back, dx, rtol=0, atol=64 * np.finfo(z.dtype).eps)
        assert_close(sums.grad, dx.sum((0, 1, 2)), abs(dx).sum((0, 1, 2)))
        products = dx * (z - mean.astype(np.float64))
        assert_close(sums.grad_centred, products.sum((0, 1, 2)), abs(dx * z).sum() + abs(dx).sum())


def test_the_same_from_run_to_run(make_array, machine):
    z = make_array(0, (5, 9, 9, 16), "float32", "plain")
    vectors = [make_array(i, (16,), "float32", "plain") for i in range(3)]
    activation, window = Prologue(*vectors[:2], True), ((3, 3), (2, 2), (1, 1))
    grad, results = make_array(9, (5, 5, 5, 16), "float32", "plain"), []
    for _ in range(2):
        with machine(400, 3):
            y = cpu.max_pool2d_forward(z, *window, activation)
            dx, sums = cpu.max_pool2d_backward(
                grad, z, y, *window, Mask(z, activation, vectors[2])
            )
        results.append([a.tobytes() for a in (y, dx, *sums)])
    assert results[0] == results[1]


def test_an_infinite_gradient_goes_only_to_the_maximum():
    x = np.arange(9.0, dtype=np.float32).reshape(1, 3, 3, 1)
    y = cpu.max_pool2d_forward(x, (3, 3), (1, 1), (0, 0))
    dx, _ = cpu.max_pool2d_backward(np.full_like(y, np.inf), x, y, (3, 3), (1, 1), (0, 0))
    assert dx.ravel().tolist() == [0] * 8 + [np.inf]


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
    x[0, 2, 1:] = np.nan
    window = ((2, 2), (2, 2), (1, 1))
    y = cpu.max_pool2d_forward(x, *window)
    np.testing.assert_array_equal(y[0, :, :, 0], [[-np.inf, -np.inf], [-np.inf, np.nan]])
    grad = np.array([1, 2, 4, 8], np.float32).reshape(y.shape)
    dx, _ = cpu.max_pool2d_backward(grad, x, y, *window)
    assert dx[0, :, :, 0].tolist() == [[1, 2, 0], [4, 0, 0], [0, 8, 0]]


@pytest.mark.parametrize("forward", [cpu.max_pool2d_forward, cpu.avg_pool2d_forward])
def test_an_empty_batch(forward):
    assert forward(np.zeros((0, 4, 4, 2), np.float32), (2, 2), (2, 2), (0, 0)).shape == (0, 2, 2, 2)


def test_the_gradient_of_an_empty_batch():
    z, vector = np.zeros((0, 4, 4, 2)), np.ones(2)
    y = cpu.max_pool2d_forward(z, (2, 2), (2, 2), (0, 0))
    mask = Mask(z, Prologue(vector, vector, True), vector)
    dx, sums = cpu.max_pool2d_backward(y, z, y, (2, 2), (2, 2), (0, 0), mask)
    assert dx.shape == z.shape and not sums.grad.any() and not sums.grad_centred.any()
