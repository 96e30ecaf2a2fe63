"""Summaries of arrays hold what NumPy says of them, in float64."""

from __future__ import annotations

import base64
import json

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlite.trace.summary import BINS, PLANES, SAMPLE, SIDE, WHOLE, summarise
from tensorlite.trace.tape import Picture

RNG = np.random.default_rng(0)


def planes(picture: Picture) -> np.ndarray:
    colours = (3,) if picture.kind == "rgb" else ()
    return np.stack([np.frombuffer(base64.b64decode(plane["data"]), "<f4")
                     .reshape(picture.height, picture.width, *colours)
                     for plane in picture.planes])


@given(hnp.arrays(st.sampled_from([np.float32, np.float64, np.float16, np.int64]),
                  hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
                  elements=st.integers(-50, 50)))
def test_statistics(array: np.ndarray) -> None:
    found = summarise(array)
    exact = array.astype(np.float64)
    assert found.shape == list(array.shape) and found.dtype == str(array.dtype)
    assert found.norm == pytest.approx(np.linalg.norm(exact), rel=1e-6, abs=0)
    if array.size:
        assert (found.min, found.max) == (exact.min(), exact.max())
        assert found.mean == pytest.approx(exact.mean(), rel=1e-6, abs=1e-6)
    else:
        assert found.min is found.max is found.mean is None
    assert found.nonfinite == 0
    if array.size <= WHOLE:
        assert found.values == exact.reshape(-1).tolist()
        assert found.picture is None and found.histogram is None


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(4, 32, 32, 3), (4, 32, 32, 4), (6, 7, 5, 11), (3, 2048)])
def test_large_arrays(shape: tuple[int, ...], dtype: type) -> None:
    array = (1e3 * RNG.standard_normal(shape)).astype(dtype)
    labels = np.arange(shape[0]) % 3
    found = summarise(array, labels, 4)
    exact = array.astype(np.float64)
    assert found.norm == pytest.approx(np.linalg.norm(exact), rel=1e-6)
    assert found.frame_norms is not None and found.frame_norms[3] is None
    for t in range(3):
        assert found.frame_norms[t] == pytest.approx(np.linalg.norm(exact[labels == t]), rel=1e-6)
    assert found.values is None
    sample = exact.reshape(-1)[:: -(-array.size // SAMPLE)]
    histogram = found.histogram
    assert histogram is not None and histogram["of"] == sample.size
    counts, _ = np.histogram(sample, BINS, (histogram["low"], histogram["high"]))
    assert histogram["low"] == sample.min() and histogram["high"] == sample.max()
    assert np.abs(np.subtract(histogram["counts"], counts)).sum() <= 2  # an element on an edge
    assert sum(histogram["counts"]) == sample.size


def test_what_is_not_finite() -> None:
    found = summarise(np.array([1.0, np.nan, -3.0, np.inf], np.float32))
    assert found.nonfinite == 2 and (found.min, found.max, found.mean) == (-3, 1, -1)
    assert found.norm == pytest.approx(10**0.5) and found.values == [1, None, -3, None]
    json.dumps(found.values, allow_nan=False)
    none = summarise(np.full((2, 200), np.nan))
    assert none.nonfinite == 400 and none.min is None and none.norm == 0
    assert none.histogram is None


def test_squares_that_are_too_large_for_the_array_are_added_up_all_the_same() -> None:
    found = summarise(np.full(2048, 1e30, np.float32))
    assert found.nonfinite == 0 and found.norm == pytest.approx(1e30 * 2048**0.5, rel=1e-6)


def test_maps_are_means_over_channels_and_squares() -> None:
    maps = RNG.standard_normal((4, 61, 31, 5)).astype(np.float32)
    picture = summarise(maps, np.array([0, 1, 0, 1]), 2).picture
    assert picture is not None and picture.kind == "maps"
    assert picture.how == ("the first 2 of 4 images; mean over 5 channels; "
                           "61 x 31 as means over 3 x 3")
    assert [plane["frame"] for plane in picture.planes] == [0, 1]  # of the first chunk
    exact = maps[:2, :60, :30].astype(np.float64).mean(axis=-1)
    exact = exact.reshape(2, 20, 3, 10, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(planes(picture), exact, rtol=1e-5, atol=1e-6)


def test_images_keep_their_colours() -> None:
    images = RNG.standard_normal((1, 2, 16, 16, 3))
    picture = summarise(images, np.array([[0, 1]]), 2).picture
    assert picture is not None and picture.kind == "rgb" and picture.how == "16 x 16"
    assert [plane["title"] for plane in picture.planes] == ["frame 0", "frame 1"]
    np.testing.assert_array_equal(planes(picture), images[0].astype(np.float32))


def test_weights_are_a_matrix() -> None:
    weight = RNG.standard_normal((3, 3, 8, 16))
    picture = summarise(weight, weights=True).picture
    assert picture is not None and picture.kind == "matrix"
    by = -(-72 // SIDE)
    exact = weight.reshape(72, 16)[: 72 // by * by, : 16 // by * by]
    exact = exact.reshape(72 // by, by, 16 // by, by).mean(axis=(1, 3))
    np.testing.assert_allclose(planes(picture)[0], exact, rtol=1e-5, atol=1e-6)


def test_many_images_are_cut_short() -> None:
    picture = summarise(RNG.standard_normal((20, 8, 8, 2))).picture
    assert picture is not None and len(picture.planes) == PLANES
    assert "the first 8 of 20 images" in picture.how


def test_the_array_is_left_as_it_is() -> None:
    array = RNG.standard_normal((3, 500))[:, ::2]
    before = array.copy()
    summarise(array)
    np.testing.assert_array_equal(array, before)


def test_norms_of_very_small_and_very_large_numbers() -> None:
    """Their squares are no numbers; a gradient that vanishes is not zero."""
    small = summarise(np.full((1024, 4), 1e-25, np.float32))
    assert small.norm == pytest.approx(64e-25) and small.mean == pytest.approx(1e-25)
    labels = np.array([0, 1])
    large = summarise(np.array([[1e300, -1e300], [1e200, 0]]), labels, 2)
    assert large.norm == pytest.approx(2 ** 0.5 * 1e300) and large.nonfinite == 0
    assert large.frame_norms == pytest.approx([2 ** 0.5 * 1e300, 1e200])
    most = np.finfo(np.float64).max
    assert summarise(np.full((3, 3), most)).mean == pytest.approx(most)
    assert summarise(np.full((3, 3), most)).norm == most
