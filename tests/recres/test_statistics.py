"""Means, deviations and bootstrap intervals: small exact cases, symmetry, and their coverage."""

from __future__ import annotations

import numpy as np
import pytest

from recres.statistics import mean_and_deviation, mean_interval, paired_difference


def test_mean_and_sample_deviation():
    assert mean_and_deviation([0.25]) == (0.25, None)
    mean, deviation = mean_and_deviation([0.1, 0.2, 0.6])
    assert mean == pytest.approx(0.3) and deviation == pytest.approx(np.sqrt(0.14 / 2))
    with pytest.raises(ValueError, match="values: none"):
        mean_and_deviation([])


def test_students_interval():
    assert mean_interval([0.25]) is None
    # t = 12.706 with one degree of freedom, 4.303 with two (any table of Student's distribution)
    np.testing.assert_allclose(mean_interval([0.0, 0.2]), [0.1 - 1.2706, 0.1 + 1.2706], atol=1e-4)
    reach = 2.920 * np.sqrt(0.07 / 3)
    found = mean_interval([0.1, 0.2, 0.6], level=0.9)
    np.testing.assert_allclose(found, [0.3 - reach, 0.3 + reach], atol=1e-4)


def test_no_difference_has_no_width():
    errors = [0.0, 1.0, 0.5, 1.0]
    assert paired_difference(errors, errors) == (0, 0, 0)
    assert paired_difference(np.add(errors, 0.25), errors) == (0.25, 0.25, 0.25)


def test_two_videos_have_three_means():
    # drawn twice from {0, 1}: means 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4
    assert paired_difference([0, 1], [0, 0], level=0.8) == (0.5, 0.0, 1.0)
    assert paired_difference([0, 1], [0, 0], level=0.4) == (0.5, 0.5, 0.5)


def test_the_interval_is_that_of_drawing_videos_one_by_one():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, (2, 60)) / 3
    found = paired_difference(a, b, resamples=20000)
    means = (a - b)[rng.integers(0, 60, (20000, 60))].mean(axis=1)
    assert found.mean == pytest.approx((a - b).mean())
    np.testing.assert_allclose(found[1:], np.quantile(means, [0.025, 0.975]), atol=0.01)


def test_the_interval_of_groups_is_that_of_drawing_groups_one_by_one():
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 6, 25)
    groups = np.repeat(np.arange(25), sizes)
    a = np.clip(np.repeat(rng.random(25), sizes) + 0.2 * rng.random(len(groups)), 0, 1)
    b = rng.random(len(groups))
    found = paired_difference(a, b, [f"g{number}" for number in groups], resamples=20000)
    means = []
    for drawn in rng.integers(0, 25, (20000, 25)):
        count = np.bincount(drawn, minlength=25)[groups]
        means.append((count * (a - b)).sum() / count.sum())
    assert found.mean == pytest.approx((a - b).mean())
    np.testing.assert_allclose(found[1:], np.quantile(means, [0.025, 0.975]), atol=0.01)


def test_swapping_mirrors_the_interval():
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, 4, (2, 50)) / 3
    for groups in (None, [f"g{i // 5}" for i in range(50)]):
        one, two = paired_difference(a, b, groups), paired_difference(b, a, groups)
        np.testing.assert_allclose(one, (-two.mean, -two.high, -two.low), atol=1e-12)
        assert one.low < one.mean < one.high


def test_the_seed_decides():
    a, b = np.random.default_rng(3).random((2, 40))
    assert paired_difference(a, b, seed=1) == paired_difference(a, b, seed=1)
    assert paired_difference(a, b, seed=1) != paired_difference(a, b, seed=2)


def test_groups_that_fail_together_widen_the_interval():
    rng = np.random.default_rng(4)
    a, b = np.repeat(rng.integers(0, 2, (2, 20)), 10, axis=1).astype(float)
    videos = paired_difference(a, b)
    groups = paired_difference(a, b, np.repeat(np.arange(20), 10).tolist())
    assert groups.high - groups.low > 2.5 * (videos.high - videos.low)  # expected: √10 = 3.16


def covered(grouped: bool) -> float:
    """How often the true difference is in the interval, of 400 experiments with 60 groups of 4
    videos that fail together."""
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(60), 4).tolist()
    inside = 0
    for trial in range(400):
        a, b = rng.random((2, 60)) < [[0.4], [0.3]]
        found = paired_difference(np.repeat(a, 4), np.repeat(b, 4), groups if grouped else None,
                                  resamples=500, seed=trial)
        inside += found.low <= 0.1 <= found.high
    return inside / 400


def test_the_interval_covers_as_often_as_it_says():
    # 400 experiments: standard error 0.011; percentile intervals run a little narrow
    assert 0.91 < covered(grouped=True) < 0.98
    # and the interval that takes clips of a group for independent is half as wide as it should be
    assert covered(grouped=False) < 0.8


@pytest.mark.parametrize(("arguments", "reason"), [
    (([0, 1], [0, 1, 1]), r"shapes \(2,\) and \(3,\)"),
    (([[0, 1]], [[0, 1]]), r"expected \(V,\)"),
    (([1], [0]), "1 videos, an interval needs at least 2"),
    (([], []), "0 videos"),
    (([0, 1], [0, 0], ["g", "g"]), "1 groups"),
    (([0, 1], [0, 0], ["g"]), "groups: 1 of them for 2 videos"),
    (([0, 1], [0, 0], None, 10, 95), "level: 95"),
])
def test_what_has_no_interval(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        paired_difference(*arguments)
