"""Initialisers: the distributions they name, and nothing but their generator decides."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from tensorlite.nn import init


def test_kaiming_normal_has_the_variance_of_fan_out():
    weights = init.kaiming_normal((3, 3, 32, 64), np.random.default_rng(0), np.float64)
    scaled = weights.ravel() / math.sqrt(2 / (3 * 3 * 64))
    assert stats.kstest(scaled, "norm").pvalue > 1e-3


def test_xavier_uniform_fills_its_bounds():
    weights = init.xavier_uniform((200, 100), np.random.default_rng(0), np.float64)
    scaled = weights.ravel() / math.sqrt(6 / 300)
    assert stats.kstest(scaled, "uniform", args=(-1, 2)).pvalue > 1e-3


def test_uniform():
    weights = init.uniform((20000,), np.random.default_rng(0), -0.1, 0.3, np.float64)
    assert stats.kstest(weights, "uniform", args=(-0.1, 0.4)).pvalue > 1e-3
    with pytest.raises(ValueError, match="low <= high, got 1 and 0"):
        init.uniform((2,), np.random.default_rng(0), 1, 0)


def test_fans():
    assert init.fans((7, 5)) == (7, 5)
    assert init.fans((3, 2, 4, 8)) == (24, 48)
    with pytest.raises(ValueError, match=r"at least 2 axes .*got \(3,\)"):
        init.fans((3,))


@pytest.mark.parametrize("draw", [init.kaiming_normal, init.xavier_uniform])
def test_the_generator_decides_and_precision_only_rounds(draw):
    single = draw((3, 3, 4, 5), np.random.default_rng(3))
    double = draw((3, 3, 4, 5), np.random.default_rng(3), np.float64)
    assert single.dtype == np.float32 and double.dtype == np.float64
    np.testing.assert_array_equal(single, double.astype(np.float32))
    assert not np.array_equal(single, draw((3, 3, 4, 5), np.random.default_rng(4)))
