"""Moments and norm backward on the CPU against float64, in the cases where single passes cancel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlite.kernels import cpu

arrays = dict(
    seed=st.integers(0, 2**31),
    shape=st.tuples(st.integers(1, 6), st.integers(1, 9), st.sampled_from([1, 3, 16, 33, 520])),
    dtype=st.sampled_from(["float32", "float64"]),
    layout=st.sampled_from(["plain", "strided", "transposed", "reversed"]),
    workspace=st.sampled_from([1, 400, 1 << 21]),
    threads=st.integers(1, 3),
)


@given(**arrays)
def test_moments(seed, shape, dtype, layout, workspace, threads, make_array, machine, assert_close):
    x = make_array(seed, shape, dtype, layout)
    with machine(workspace, threads):
        result, again = cpu.moments(x), cpu.moments(x)
    wide = x.astype(np.float64)
    rows = x[..., 0].size
    assert result.count == rows and result.mean.dtype == result.m2.dtype == x.dtype
    assert all(np.array_equal(a, b) for a, b in zip(result[1:], again[1:], strict=True))
    assert_close(result.mean, wide.mean((0, 1)), abs(wide).max())
    assert_close(result.m2, wide.var((0, 1)) * rows, np.square(wide).sum((0, 1)))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_moments_do_not_cancel(threads, machine):
    """Mean 10 000, deviation 1: sums of squares in float32 would lose every digit."""
    x = np.random.default_rng(0).normal(1e4, 1, (40_000, 3)).astype(np.float32)
    with machine(1 << 16, threads):
        result = cpu.moments(x)
    np.testing.assert_allclose(result.mean, x.mean(0, np.float64), rtol=1e-7)
    np.testing.assert_allclose(result.m2, x.var(0, np.float64) * len(x), rtol=1e-5)


def test_moments_of_nothing():
    result = cpu.moments(np.zeros((0, 4, 3), np.float32))
    assert result.count == 0 and not result.mean.any() and not result.m2.any()


@given(**arrays)
def test_norm_backward(
    seed, shape, dtype, layout, workspace, threads, make_array, machine, assert_close
):
    x, grad = (make_array(seed + i, shape, dtype, layout) for i in range(2))
    mean, scale, slope, offset = (
        make_array(seed + 2 + i, shape[-1:], dtype, "plain") for i in range(4)
    )
    with machine(workspace, threads):
        sums = cpu.norm_backward_sums(grad, x, mean)
        dx = cpu.norm_backward(grad, x, scale, slope, offset)
    wide = [a.astype(np.float64) for a in (grad, x, mean, scale, slope, offset)]
    g, v, m, a, b, c = wide
    assert sums.grad.dtype == dx.dtype == x.dtype
    for ours, terms in ((sums.grad, g), (sums.grad_centred, g * (abs(v) + abs(m)))):
        expected = g.sum((0, 1)) if ours is sums.grad else (g * (v - m)).sum((0, 1))
        assert_close(ours, expected, abs(terms).sum((0, 1)))
    assert_close(dx, a * g + b * v + c, abs(a * g) + abs(b * v) + abs(c))


@given(**arrays, relu=st.booleans())
def test_affine(
    seed, shape, dtype, layout, workspace, threads, relu, make_array, machine, assert_close
):
    x = make_array(seed, shape, dtype, layout)
    scale, shift = (make_array(seed + 1 + i, shape[-1:], dtype, "plain") for i in range(2))
    with machine(workspace, threads):
        y = cpu.affine(x, scale, shift, relu)
    expected = x.astype(np.float64) * scale + shift
    assert y.dtype == x.dtype
    magnitude = np.abs(x) * np.abs(scale) + np.abs(shift)
    assert_close(y, np.maximum(expected, 0) if relu else expected, magnitude)
