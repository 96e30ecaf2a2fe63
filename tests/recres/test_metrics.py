"""Errors of chunks, videos and time-reversed pairs, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from recres import metrics
from recres.metrics import Scores

LOGITS = np.log(np.array([
    [0.6, 0.3, 0.1],  # video a, class 0
    [0.2, 0.7, 0.1],
    [0.5, 0.4, 0.1],
    [0.1, 0.2, 0.7],  # video b, class 1
    [0.3, 0.4, 0.3],  # video c, class 1
]))
OWNER = [0, 0, 0, 1, 2]


def scores() -> Scores:
    return metrics.gather(["a", "b", "c"], [0, 1, 1], LOGITS + 3.0, OWNER)


def answered(*answers: int, labels: tuple[int, ...]) -> Scores:
    n = len(labels)
    return Scores(tuple("abcdefgh"[:n]), np.array(labels), np.eye(5)[list(answers)],
                  np.ones(n, int), np.zeros(n, int), 0.0)


def test_a_videos_posterior_is_the_mean_over_its_chunks():
    found = scores()
    np.testing.assert_allclose(found.posteriors[0], [1.3 / 3, 1.4 / 3, 0.3 / 3], atol=1e-12)
    np.testing.assert_allclose(found.posteriors[1], [0.1, 0.2, 0.7], atol=1e-12)
    assert found.chunks.tolist() == [3, 1, 1]


def test_chunk_error_and_video_error_are_two_things():
    found = scores()
    assert found.wrong.tolist() == [1, 1, 0]
    assert found.chunk_error == pytest.approx(2 / 5)
    assert found.answers.tolist() == [1, 2, 1]  # a is wrong though two of its chunks are right
    assert found.video_error == pytest.approx(2 / 3)


def test_the_loss_is_the_mean_over_chunks():
    expected = -np.log([0.6, 0.2, 0.5, 0.2, 0.4]).mean()
    assert scores().loss == pytest.approx(expected, rel=1e-12)


def test_large_logits_stay_finite():
    found = metrics.gather(["a"], [1], np.array([[1e4, -1e4]]), [0])
    assert found.loss == pytest.approx(2e4)
    np.testing.assert_array_equal(found.posteriors, [[1.0, 0.0]])


def test_every_video_needs_a_chunk():
    with pytest.raises(ValueError, match="a chunk of each of 2 videos"):
        metrics.gather(["a", "b"], [0, 1], np.zeros((1, 2)), [0])


def test_confusion_has_the_true_class_in_rows():
    table = metrics.confusion(scores())
    assert table.tolist() == [[0, 1, 0], [0, 1, 1], [0, 0, 0]]


def test_pairs():
    partner = metrics.partners(["open", "sit", "stand", "close", "wave"],
                               [("sit", "stand"), ("open", "close")])
    assert partner.tolist() == [3, 2, 1, 0, -1]
    found = answered(0, 2, 1, 4, 1, labels=(0, 1, 2, 3, 4))
    assert metrics.pair_error(found, partner) == pytest.approx(2 / 5)
    assert metrics.within_pair_error(found, partner) == pytest.approx(2 / 3)


def test_becoming_the_partner_counts_only_what_was_right():
    partner = np.array([1, 0, 3, 2, -1])
    forwards = answered(0, 1, 0, 2, 4, labels=(0, 1, 1, 2, 4))  # the third is wrong
    backwards = answered(1, 1, 0, 3, 4, labels=(0, 1, 1, 2, 4))  # the last has no partner
    assert metrics.becomes_partner(forwards, backwards, partner) == pytest.approx(2 / 3)


def test_shares_of_nothing_are_none():
    partner = np.array([1, 0, 3, 2, -1])
    wrong = answered(2, 3, labels=(0, 1))
    assert metrics.within_pair_error(wrong, partner) is None
    assert metrics.becomes_partner(wrong, wrong, partner) is None
