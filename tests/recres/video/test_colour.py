"""Random changes of colour."""

from __future__ import annotations

import numpy as np
import pytest

from recres.video import colour


def test_strength_zero_changes_nothing():
    frames = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 3), np.uint8)
    before = frames.copy()
    colour.apply(frames, colour.draw_matrix(np.random.default_rng(1), 0.0))
    np.testing.assert_array_equal(frames, before)


@pytest.mark.parametrize("seed", range(5))
def test_grey_stays_grey_and_all_frames_change_alike(seed):
    matrix = colour.draw_matrix(np.random.default_rng(seed), 1.0)
    frames = np.full((3, 4, 4, 3), 100, np.uint8)
    frames[:, :2] = (200, 40, 90)
    colour.apply(frames, matrix)
    grey = frames[:, 2:].astype(int)
    assert np.ptp(grey, axis=-1).max() <= 1
    assert (frames == frames[:1]).all()
    expected = np.clip(matrix @ [200, 40, 90, 1], 0, 255)
    np.testing.assert_allclose(frames[0, 0, 0], expected, atol=1)  # OpenCV rounds the matrix


def test_hues_turn_all_the_way_round_at_strength_one():
    red = np.array([255.0, 0.0, 0.0, 1.0])
    rng = np.random.default_rng(0)
    strongest = {int((colour.draw_matrix(rng, 1.0) @ red).argmax()) for _ in range(50)}
    assert strongest == {0, 1, 2}
    weak = {int((colour.draw_matrix(rng, 0.2) @ red).argmax()) for _ in range(50)}
    assert weak == {0}


def test_writes_into_a_part_of_a_batch():
    batch = np.full((2, 1, 3, 3, 3), 50, np.uint8)
    brighter = np.column_stack([np.eye(3), np.full(3, 10.0)])
    colour.apply(batch[1], brighter)
    assert (batch[0] == 50).all() and (batch[1] == 60).all()
