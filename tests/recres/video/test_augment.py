"""Views and normalisation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recres.random import generator
from recres.video.augment import View, apply, evaluation_view, normalise, training_view

lengths = st.integers(1, 400)


@given(lengths, lengths, st.integers(0, 10**6), st.floats(1, 2), st.floats(0, 1))
def test_training_views_lie_in_the_frame(height, width, seed, low, more):
    view = training_view(height, width, generator(seed), scale=(low, low + more))
    shorter = min(height, width)
    assert 0 <= view.top <= height - view.side and 0 <= view.left <= width - view.side
    assert max(1, shorter / (low + more) - 0.5) <= view.side <= max(1, shorter / low + 0.5)


@given(lengths, lengths, st.floats(1, 2))
def test_evaluation_views_are_centred(height, width, scale):
    view = evaluation_view(height, width, scale)
    assert abs(2 * view.top + view.side - height) <= 1
    assert abs(2 * view.left + view.side - width) <= 1
    assert not view.flip


def test_the_evaluation_view_of_a_ucf101_clip():
    """Resized to 341 x 256, cut to 224: 210 of the 240 rows."""
    assert evaluation_view(240, 320) == View(15, 55, 210)


def test_training_views_vary_in_place_size_and_side():
    views = [training_view(240, 320, generator(0, i)) for i in range(400)]
    assert {view.side for view in views} >= set(range(195, 236, 5))
    assert min(view.left for view in views) < 5 and max(view.left for view in views) > 105
    assert max(view.top for view in views) > 35
    assert 150 < sum(view.flip for view in views) < 250
    unflipped = [training_view(240, 320, generator(0, i), flip=False) for i in range(400)]
    assert unflipped == [view._replace(flip=False) for view in views]


def test_the_view_is_the_square_itself():
    frames = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    square = frames[:, 4:16, 7:19]
    assert np.array_equal(apply(frames, View(4, 7, 12), 12), square)
    assert np.array_equal(apply(frames, View(4, 7, 12, flip=True), 12), square[:, :, ::-1])


@pytest.mark.parametrize("size", [5, 24, 33])
def test_resizing_keeps_a_gradient_and_all_frames_alike(size):
    ramp = np.arange(0, 240, 8, dtype=np.uint8)
    frame = np.broadcast_to(ramp[None, :, None], (20, 30, 3))
    result = apply(np.stack([frame, frame]), View(2, 6, 16), size)
    assert result.shape == (2, size, size, 3) and result.dtype == np.uint8
    assert np.array_equal(result[0], result[1])
    centres = (np.arange(size) + 0.5) * 16 / size - 0.5 + 6
    expected = 8 * np.clip(centres, 6, 21)
    assert np.abs(result[0, 0, :, 0] - expected).max() <= 1
    flipped = apply(frame[None], View(2, 6, 16, flip=True), size)
    assert np.array_equal(flipped[0], result[0, :, ::-1])


def test_a_view_is_written_where_it_belongs():
    frames = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), dtype=np.uint8)
    batch = np.zeros((3, 2, 8, 8, 3), np.uint8)
    result = apply(frames, View(0, 0, 20), 8, out=batch[1])
    assert np.array_equal(batch[1], apply(frames, View(0, 0, 20), 8))
    assert result.base is batch and not batch[[0, 2]].any()
    with pytest.raises(ValueError, match=r"out is uint8 \(3, 2, 8, 8, 3\), expected uint8"):
        apply(frames, View(0, 0, 20), 8, out=batch)


@pytest.mark.parametrize("view", [View(-1, 0, 5), View(0, 28, 5), View(18, 0, 5), View(0, 0, 0)])
def test_a_view_outside_the_frame_is_refused(view):
    with pytest.raises(ValueError, match="does not lie in a frame of 20 x 30"):
        apply(np.zeros((1, 20, 30, 3), np.uint8), view, 8)


def test_scales_below_one_are_refused():
    with pytest.raises(ValueError, match="scale is"):
        training_view(20, 30, generator(0), scale=(0.5, 1))
    with pytest.raises(ValueError, match="scale is"):
        training_view(20, 30, generator(0), scale=(1.5, 1.2))
    with pytest.raises(ValueError, match="scale is"):
        evaluation_view(20, 30, scale=0.9)


@pytest.mark.parametrize("contiguous", [True, False])
def test_normalisation(contiguous):
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 7, 9, 3), dtype=np.uint8)
    if not contiguous:
        frames = frames[:, :, ::2, ::-1]
    before = frames.copy()
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = {
        "torch": (frames / 255 - mean) / std,
        "caffe": frames[..., ::-1] - np.array([103.939, 116.779, 123.68]),
    }
    for convention, reference in expected.items():
        result = normalise(frames, convention)
        assert result.dtype == np.float32 and result.flags.c_contiguous
        assert np.abs(result - reference).max() <= 2e-7 * np.abs(reference).max()
    assert np.array_equal(frames, before)


def test_normalisation_of_nothing():
    assert normalise(np.empty((0, 4, 4, 3), np.uint8), "torch").shape == (0, 4, 4, 3)


def test_what_normalisation_refuses():
    frames = np.zeros((1, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="'keras', expected one of torch, caffe"):
        normalise(frames, "keras")
    with pytest.raises(TypeError, match="float64, expected uint8"):
        normalise(frames / 255, "torch")
    with pytest.raises(ValueError, match=r"expected \(..., 3\)"):
        normalise(frames[..., :2], "torch")
