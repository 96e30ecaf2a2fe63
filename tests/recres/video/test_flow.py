"""Stacks of optical flow: the motion that is in the video, at the place where it belongs."""

from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recres import limits
from recres.video import flow as module
from recres.video.augment import View, apply, normalise
from recres.video.decode import VideoError
from recres.video.flow import BOUND, PIXELS, count_flow, quantise, sample_flow

STEP_OF_VALUE = 20 / 127


@pytest.fixture(scope="module")
def texture():
    """Smooth noise, larger than a frame."""
    noise = np.random.default_rng(0).normal(size=(320, 400))
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    return np.clip(127 + 40 * smooth / smooth.std(), 0, 255).astype(np.float32)


def moved(texture, places, height=96, width=96):
    """The frames (n, H, W, 3) that show the texture moved to each of the places (x, y)."""
    frames = []
    for x, y in places:
        matrix = np.array([[1, 0, x - 100], [0, 1, y - 60]], np.float32)
        grey = cv2.warpAffine(texture, matrix, (width, height), flags=cv2.INTER_CUBIC)
        frames.append(np.repeat(np.rint(grey.clip(0, 255)).astype(np.uint8)[..., None], 3, 2))
    return np.stack(frames)


def test_the_memory_of_the_stacks_is_bounded(monkeypatch, write_video, numbered, tmp_path):
    """A long video's were asked for whatever they came to."""
    video = write_video(tmp_path / "a.avi", numbered(9))
    monkeypatch.setattr(limits, "VIDEO_BYTES", 3 * 32 * 48 * 8)
    assert sample_flow(video, 3, 3, 4).nbytes == limits.VIDEO_BYTES
    with pytest.raises(VideoError, match="too large: 5 stacks of flow have 61440 bytes, more than"):
        sample_flow(video, 2, 3, 4)


@pytest.fixture
def numbered_flow(monkeypatch, write_video, numbered, tmp_path):
    """numbered_flow(n): a video whose field from frame k to frame j is everywhere x = (j - k) · k'
    and y = -x / 2 in steps of the value, with k' = 1 + the lower of the two numbers."""
    calls = []

    class Method:
        def calc(self, one, two, _):
            one, two = (int(np.mean(x) // 6) for x in (one, two))
            calls.append((one, two))
            x = 2 * (two - one) * (1 + min(one, two))
            return np.broadcast_to(np.float32([x, -x / 2]) * STEP_OF_VALUE, (32, 48, 2))

    monkeypatch.setattr(module, "_method", lambda height, width: Method())

    def write(n):
        calls.clear()
        return write_video(tmp_path / f"{n}.avi", numbered(n))

    write.calls = calls
    return write


def pairs(stacks):
    """For each stack, the pairs of frames (from, to) of `numbered_flow` that its fields are of."""
    assert (stacks == stacks[:, :1, :1]).all()
    result = []
    for stack in stacks[:, 0, 0].astype(int) - 128:
        assert (stack[0::2] == -2 * stack[1::2]).all()
        result.append([(x // 2 - 1, x // 2) if x > 0 else (-x // 2, -x // 2 - 1)
                       for x in stack[0::2]])
    return result


def test_a_stack_begins_at_its_frame_or_earlier_at_the_end(numbered_flow):
    path = numbered_flow(12)
    stacks = sample_flow(path, step=4, context=2, length=3)
    assert stacks.shape == (3, 32, 48, 6) and stacks.dtype == np.uint8
    assert pairs(stacks) == [[(0, 1), (1, 2), (2, 3)], [(4, 5), (5, 6), (6, 7)],
                             [(8, 9), (9, 10), (10, 11)]]
    assert numbered_flow.calls == [(k, k + 1) for k in range(11) if k not in (3, 7)]
    late = sample_flow(numbered_flow(10), step=4, context=2, length=3)
    assert pairs(late)[2] == [(6, 7), (7, 8), (8, 9)]


def test_a_field_is_computed_once_however_many_stacks_it_is_in(numbered_flow):
    path = numbered_flow(9)
    stacks = sample_flow(path, step=2, context=2, length=5)
    expected = [[(k, k + 1) for k in range(b, b + 5)] for b in (0, 2, 3, 3, 3)]
    assert pairs(stacks) == expected
    assert numbered_flow.calls == [(k, k + 1) for k in range(8)]


def test_backwards_is_the_flow_of_the_video_played_backwards(numbered_flow):
    path = numbered_flow(12)
    stacks = sample_flow(path, step=4, context=2, length=3, backwards=True)
    assert pairs(stacks) == [[(8, 7), (7, 6), (6, 5)], [(4, 3), (3, 2), (2, 1)],
                             [(3, 2), (2, 1), (1, 0)]]
    assert all(one == two + 1 for one, two in numbered_flow.calls)
    assert len(set(numbered_flow.calls)) == len(numbered_flow.calls)


def test_a_short_video_repeats_its_last_field_and_one_frame_does_not_move(numbered_flow):
    stacks = sample_flow(numbered_flow(3), step=10, context=2, length=4)
    assert pairs(stacks) == [[(0, 1), (1, 2), (1, 2), (1, 2)]] * 2
    stacks = sample_flow(numbered_flow(3), step=10, context=2, length=4, backwards=True)
    assert pairs(stacks) == [[(2, 1), (1, 0), (1, 0), (1, 0)]] * 2
    for backwards in (False, True):
        still = sample_flow(numbered_flow(1), step=10, context=2, length=4, backwards=backwards)
        assert still.shape == (2, 32, 48, 8) and (still == 128).all()


@pytest.mark.parametrize("n", [1, 2, 3, 7, 12, 13])
def test_there_are_as_many_stacks_as_sampled_frames(numbered_flow, n):
    from recres.video.decode import sample_video

    path = numbered_flow(n)
    for step, context, length in ((4, 1, 3), (4, 5, 3), (3, 2, 20), (1, 2, 1)):
        frames = len(sample_video(path, step, context))
        assert len(sample_flow(path, step, context, length)) == frames
        numbered_flow.calls.clear()
        assert count_flow(path, step, context) == frames and not numbered_flow.calls


@pytest.mark.parametrize(("height", "width"), [(96, 96), (240, 320)])
@pytest.mark.parametrize("motion", [(0, 0), (3, -2), (0.5, 1.25), (-5, 2.5)])
def test_the_flow_of_a_moving_texture(write_video, tmp_path, texture, height, width, motion):
    places = [(k * motion[0], k * motion[1]) for k in range(4)]
    path = write_video(tmp_path / "moving.avi", moved(texture, places, height, width))
    stacks = sample_flow(path, step=2, context=1, length=2)
    inside = (stacks[:, 16:-16, 16:-16].astype(float) - 128) * STEP_OF_VALUE
    error = np.abs(inside - np.tile(motion, 2))
    assert error.mean() < 0.1 and np.quantile(error, 0.95) < 0.2
    back = sample_flow(path, step=2, context=1, length=2, backwards=True)
    inside = (back[:, 16:-16, 16:-16].astype(float) - 128) * STEP_OF_VALUE
    assert np.abs(inside + np.tile(motion, 2)).mean() < 0.1


def test_the_mirror_image_of_flow_is_the_flow_of_the_mirror_image(write_video, tmp_path, texture):
    frames = moved(texture, [(0, 0), (3, -2), (5, 1), (4, 4)])
    one = sample_flow(write_video(tmp_path / "one.avi", frames), 2, 1, 3)
    two = sample_flow(write_video(tmp_path / "two.avi", frames[:, :, ::-1]), 2, 1, 3)
    whole = View(0, 0, 96, flip=True)
    mirrored = apply(one, whole, 96, is_flow=True)
    # As far as the method is symmetric: OpenCV goes over an image from its left to its right.
    difference = np.abs(mirrored.astype(float) - two)[:, 8:-8, 8:-8] * STEP_OF_VALUE
    assert difference.mean() < 0.1
    unturned = np.abs(apply(one, whole, 96).astype(float) - two)[:, 8:-8, 8:-8] * STEP_OF_VALUE
    assert unturned[..., ::2].mean() > 2 and unturned[..., 1::2].mean() < 0.1


def test_quantisation_is_symmetric_about_128_and_cuts_off_at_20_pixels():
    pixels = np.linspace(-30, 30, 2001)
    values = quantise(pixels)
    assert values.min() == 1 and values.max() == 255 and quantise(np.zeros(1)) == 128
    np.testing.assert_array_equal(quantise(-pixels).astype(int), 256 - values.astype(int))
    inside = np.abs(pixels) <= BOUND
    assert np.abs((values[inside] - 128.0) * PIXELS - pixels[inside]).max() <= PIXELS / 2 + 1e-12
    assert pytest.approx(20 / 127) == PIXELS


def test_normalised_flow_is_in_pixels(texture):
    pixels = np.random.default_rng(0).uniform(-20, 20, (2, 3, 5, 7, 12))
    result = normalise(quantise(pixels), "flow")
    assert result.dtype == np.float32 and result.shape == pixels.shape
    assert np.abs(result - pixels).max() <= PIXELS / 2 + 1e-5
    assert normalise(np.full((1, 2, 2, 4), 128, np.uint8), "flow").any() == 0
    with pytest.raises(ValueError, match=r"expected \(..., 2 L\) of flow"):
        normalise(np.zeros((1, 4, 4, 3), np.uint8), "flow")


def test_frames_that_are_too_small_are_refused(write_video, tmp_path):
    path = write_video(tmp_path / "small.avi", np.zeros((3, 14, 200, 3), np.uint8))
    for ask in (lambda: sample_flow(path, 1, 1, 2), lambda: count_flow(path, 1, 1)):
        with pytest.raises(VideoError, match="frames of 200x14, optical flow needs at least 16x16"):
            ask()
    with pytest.raises(ValueError, match="length is 0, expected at least 1"):
        sample_flow(path, 1, 1, 0)


def test_the_smallest_and_the_longest_frames_do_not_end_the_process():
    """OpenCV crashes on images that are small for its scales: in a process of its own."""
    code = """
import numpy as np
from recres.video.flow import _method
rng = np.random.default_rng(0)
for size in ((16, 16), (16, 400), (400, 16), (17, 31), (159, 160), (160, 160), (160, 1000)):
    one, two = rng.integers(0, 256, (2, *size), dtype=np.uint8)
    flow = _method(*size).calc(one, two, None)
    assert flow.shape == (*size, 2) and np.isfinite(flow).all()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@given(st.integers(1, 66), st.booleans(), st.integers(0, 99))
def test_a_view_of_many_channels_is_that_of_each(channels, flip, seed):
    rng = np.random.default_rng(seed)
    frames = rng.integers(1, 256, (2, 20, 30, channels), dtype=np.uint8)
    view, size = View(2, 5, 17, flip), int(rng.integers(5, 40))
    result = apply(frames, view, size)
    for i in range(channels):
        alone = apply(np.repeat(frames[..., i : i + 1], 3, -1), view, size)
        np.testing.assert_array_equal(result[..., i], alone[..., 0])
    if channels % 2 == 0:
        turned = apply(frames, view, size, is_flow=True).astype(int)
        sign = -1 if flip else 1
        np.testing.assert_array_equal(turned[..., ::2] - 128, sign * (result[..., ::2] - 128.0))
        np.testing.assert_array_equal(turned[..., 1::2], result[..., 1::2])
