"""Dynamic images: approximate rank pooling of all frames."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recres.video.decode import VideoError, read_frames
from recres.video.dynamic import coefficients, pool, sample_dynamic, to_image


@pytest.fixture
def clip(write_video, tmp_path):
    """write(n): a video of a bright square that moves to the right."""

    def write(n):
        frames = np.full((n, 40, 60, 3), 60, np.uint8)
        for i, frame in enumerate(frames):
            frame[12:28, 4 + 3 * i : 16 + 3 * i] = (230, 160, 90)
        return write_video(tmp_path / f"clip{n}.avi", frames)

    return write


def direct(frames):
    """Σ α_t · frame_t in the words of the paper: α_t = Σ_{i ≥ t} (2 i - T - 1) / i."""
    total = len(frames)
    alpha = [sum((2 * i - total - 1) / i for i in range(t, total + 1))
             for t in range(1, total + 1)]
    return np.einsum("t,t...->...", alpha, frames.astype(np.float64))


@pytest.mark.parametrize(("n", "expected"), [
    (1, [0]), (2, [-1 / 2, 1 / 2]), (3, [-4 / 3, 2 / 3, 2 / 3]),
    (4, [-29 / 12, 7 / 12, 13 / 12, 3 / 4])])
def test_coefficients(n, expected):
    np.testing.assert_allclose(coefficients(n), expected, rtol=0, atol=1e-14)


@given(st.integers(1, 300))
def test_coefficients_sum_to_zero_and_weigh_late_frames_up(n):
    alpha = coefficients(n)
    assert abs(alpha.sum()) < 1e-9 * n * n
    if n > 1:
        assert alpha[0] < 0 < alpha[-1]
        assert alpha @ np.arange(n) > 0


@given(st.integers(1, 60), st.integers(0, 99))
def test_one_pass_is_the_formula(n, seed):
    frames = np.random.default_rng(seed).integers(0, 256, (n, 4, 5, 3), dtype=np.uint8)
    expected = direct(frames)
    np.testing.assert_allclose(pool(iter(frames)), expected, rtol=0, atol=1e-9 * 255 * n)
    np.testing.assert_allclose(np.einsum("t,t...->...", coefficients(n), frames), expected,
                               rtol=0, atol=1e-9 * 255 * n)


@pytest.mark.parametrize("n", [1, 2, 15])
def test_the_image_of_a_video(clip, n):
    path = clip(n)
    frames = read_frames(path)
    image = sample_dynamic(path)
    assert image.shape == (1, 40, 60, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(image[0], to_image(pool(frames)))
    if n > 1:
        pooled = direct(frames)
        scaled = 255 * (pooled - pooled.min()) / (pooled.max() - pooled.min())
        assert np.abs(image[0] - scaled).max() <= 0.5 + 1e-9
        assert (image.min(), image.max()) == (0, 255)


def test_backwards_is_the_image_of_the_video_played_backwards(clip):
    path = clip(14)
    expected = to_image(direct(read_frames(path)[::-1]))
    assert np.abs(sample_dynamic(path, backwards=True)[0].astype(int) - expected).max() <= 1
    assert np.abs(sample_dynamic(path)[0].astype(int) - expected).max() > 50


def test_what_was_there_late_is_bright_and_what_was_early_is_dark(clip):
    red = sample_dynamic(clip(12))[0, :, :, 0].astype(int)
    assert red[20, 6] < red[2, 2] - 50  # the square was there in the first frame alone
    assert red[20, 36] > red[2, 2] + 50  # and there in frames 7 to 10 of 12


@pytest.mark.parametrize("n", [1, 2, 41])
def test_a_video_in_which_nothing_changes_is_grey(write_video, tmp_path, n):
    frame = np.random.default_rng(0).integers(0, 256, (1, 32, 48, 3), dtype=np.uint8)
    path = write_video(tmp_path / "still.avi", np.repeat(frame, n, axis=0))
    for backwards in (False, True):
        assert (sample_dynamic(path, backwards) == 128).all()


def test_no_frames_and_bad_videos_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no frames, expected at least 1"):
        pool(iter(()))
    with pytest.raises(VideoError, match="no such file"):
        sample_dynamic(tmp_path / "absent.avi")
