"""The GPU's moments and norm backward, run by the emulator, against the CPU kernels in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlite.kernels import cpu
from tensorlite.kernels.contract import GradSums, Moments
from tensorlite.kernels.cuda import normalisation
from tensorlite.kernels.cuda.launch import sums_dtype
from tests.cuda_on_cpu.emulator import SCHEDULES
from tests.tensorlite.campaign import examples

from .row_cases import (
    DTYPES,
    arrays,
    assert_near,
    cramped,
    misaligned,
    orders,
    vectors_of,
    wide,
)


@pytest.fixture(autouse=True, scope="module")
def needs_the_emulator(schedules):
    pass


@examples(15)
@given(**arrays, schedule=orders)
def test_moments(seed, shape, dtype, layout, blocks, schedule, make_array):
    x = make_array(seed, shape, dtype, layout)
    with cramped(normalisation, blocks, schedule):
        result, again = normalisation.moments(x), normalisation.moments(x)
    (w,) = wide(x)
    expected = cpu.moments(w)
    assert type(result.count) is int and result.count == expected.count
    assert result.mean.dtype == result.m2.dtype == sums_dtype(dtype)
    assert all(np.array_equal(a, b) for a, b in zip(result[1:], again[1:], strict=True))
    assert_near(result.mean, expected.mean, abs(w).mean((0, 1)))
    assert_near(result.m2, expected.m2, np.square(w).sum((0, 1)))


@pytest.mark.parametrize("blocks", [1, 7])
@pytest.mark.parametrize("channels", [3, 4])
def test_moments_do_not_cancel(channels, blocks):
    """Mean 10 000, deviation 1: sums of squares in float32 would lose every digit."""
    x = np.random.default_rng(0).normal(1e4, 1, (5000, channels)).astype(np.float32)
    with cramped(normalisation, blocks):
        result = normalisation.moments(x)
    np.testing.assert_allclose(result.mean, x.mean(0, np.float64), rtol=1e-7)
    np.testing.assert_allclose(result.m2, x.var(0, np.float64) * len(x), rtol=1e-6)


def test_moments_where_means_round_as_much_as_values_vary():
    """Mean 1e6, deviation 0.1: a tile's mean is a float32 as coarse as that."""
    x = np.random.default_rng(0).normal(1e6, 0.1, (1000, 4)).astype(np.float32)
    with cramped(normalisation, 3):
        result = normalisation.moments(x)
    np.testing.assert_allclose(result.m2, x.var(0, np.float64) * len(x), rtol=1e-5)


def test_moments_of_rows_unlike_the_first():
    """What the sums are centred on may be far from all the rest."""
    x = np.random.default_rng(0).normal(3, 1, (4000, 4)).astype(np.float32)
    x[0] = 1000
    with cramped(normalisation, 1):
        result = normalisation.moments(x)
    np.testing.assert_allclose(result.mean, x.mean(0, np.float64), rtol=1e-6)
    np.testing.assert_allclose(result.m2, x.var(0, np.float64) * len(x), rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 8), (2, 3, 0)])
def test_empty(shape, dtype):
    x, vector = np.zeros(shape, dtype), np.zeros(shape[-1], sums_dtype(dtype))
    with cramped(normalisation):
        count, *moments = normalisation.moments(x)
        sums = normalisation.norm_backward_sums(x, x, vector)
        dx = normalisation.norm_backward(x, x, vector, vector, vector)
    assert count == 0 and dx.shape == shape and dx.dtype == x.dtype
    for result in (*moments, *sums):
        assert result.shape == vector.shape and result.dtype == vector.dtype and not result.any()


@examples(15)
@given(**arrays, schedule=orders)
def test_norm_backward_sums(seed, shape, dtype, layout, blocks, schedule, make_array):
    grad, x = (make_array(seed + i, shape, dtype, layout) for i in range(2))
    (mean,) = vectors_of(make_array, seed + 2, shape, dtype, 1)
    with cramped(normalisation, blocks, schedule):
        sums = normalisation.norm_backward_sums(grad, x, mean)
        again = normalisation.norm_backward_sums(grad, x, mean)
    g, v, m = wide(grad, x, mean)
    expected = cpu.norm_backward_sums(g, v, m)
    assert sums.grad.dtype == sums.grad_centred.dtype == sums_dtype(dtype)
    assert all(np.array_equal(a, b) for a, b in zip(sums, again, strict=True))
    assert_near(sums.grad, expected.grad, abs(g).sum((0, 1)))
    assert_near(sums.grad_centred, expected.grad_centred, abs(g * (abs(v) + abs(m))).sum((0, 1)))


@examples(15)
@given(**arrays)
def test_norm_backward(seed, shape, dtype, layout, blocks, make_array):
    grad, x = (make_array(seed + i, shape, dtype, layout) for i in range(2))
    given_ = vectors_of(make_array, seed + 2, shape, dtype, 3)
    with cramped(normalisation, blocks):
        dx = normalisation.norm_backward(grad, x, *given_)
    g, v, a, b, c = wide(grad, x, *given_)
    assert dx.dtype == x.dtype
    assert_near(dx, cpu.norm_backward(g, v, a, b, c), abs(a * g) + abs(b * v) + abs(c))


def test_the_order_of_threads_changes_nothing(make_array):
    x, grad = (make_array(i, (40, 7, 40), "float32", "plain") for i in range(2))
    results = []
    for schedule in SCHEDULES:
        with cramped(normalisation, 3, schedule):
            _, mean, m2 = normalisation.moments(x)
            results.append(np.stack([mean, m2, *normalisation.norm_backward_sums(grad, x, mean)]))
    assert all(np.array_equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_that_vectors_do_not_fit(dtype, make_array):
    """The width follows from the addresses too: the emulator refuses misaligned vectors."""
    plain = make_array(0, (5, 2, 16), dtype, "plain")
    x, vectors = misaligned(plain), vectors_of(make_array, 1, plain.shape, dtype, 3)
    with cramped(normalisation):
        for a in (plain, x):
            _, mean, m2 = normalisation.moments(a)
            assert_near(mean, *(f(wide(plain)[0]).mean((0, 1)) for f in (np.asarray, np.abs)))
            sums = normalisation.norm_backward_sums(plain, a, mean)
            assert_near(sums.grad, *(f(wide(plain)[0]).sum((0, 1)) for f in (np.asarray, np.abs)))
        dx = normalisation.norm_backward(plain, x, *vectors)
        assert np.array_equal(dx, normalisation.norm_backward(plain, plain, *vectors))


@examples(10)
@given(seed=st.integers(0, 2**31), channels=st.sampled_from([1, 3, 256, 300]),
       dtype=st.sampled_from(["float32", "float64"]), train=st.booleans(),
       coarse=st.booleans())
def test_norm_vectors(seed, channels, dtype, train, coarse):
    """`coarse`: running statistics of another dtype than the vectors; they move all the same."""
    rng = np.random.default_rng(seed)
    mean, gamma, beta, running_mean = rng.standard_normal((4, channels))
    m2, running_var = rng.uniform(0.5, 9, (2, channels))
    moments = Moments(17, mean.astype(dtype), m2.astype(dtype)) if train else None
    kept = "float32" if coarse else dtype
    vectors = [v.astype(t) for v, t in zip((gamma, beta, running_mean, running_var),
                                         (dtype, dtype, kept, kept), strict=True)]
    ours, theirs = vectors[2].copy(), vectors[3].copy()
    with cramped(normalisation):
        found = normalisation.norm_vectors(moments, *vectors[:2], ours, theirs, 0.1, 1e-5)
    exact = [*wide(*vectors), 0.1, 1e-5]
    expected = cpu.norm_vectors(Moments(17, *wide(*moments[1:])) if train else None, *exact)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        assert_near(a, b, 1 + abs(b) + abs(exact[1]))
    for a, b, before in zip((ours, theirs), exact[2:4], vectors[2:], strict=True):
        assert_near(a, b, 1 + abs(b))
        assert np.array_equal(a, before) != train


@examples(10)
@given(seed=st.integers(0, 2**31), channels=st.sampled_from([1, 3, 256, 300]),
       dtype=st.sampled_from(["float32", "float64"]))
def test_norm_grad_vectors(seed, channels, dtype):
    vectors = np.random.default_rng(seed).uniform(0.5, 2, (5, channels)).astype(dtype)
    with cramped(normalisation):
        found = normalisation.norm_grad_vectors(GradSums(*vectors[:2]), *vectors[2:], 29)
    exact = wide(*vectors)
    expected = cpu.norm_grad_vectors(GradSums(*exact[:2]), *exact[2:], 29)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        assert_near(a, b, 1 + abs(b))
