"""Sequences of features, padded and in order; statistics of the videos asked for and no others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recres.errors import InputError
from recres.loader import Chunk
from recres.sequences import SequenceLoader, statistics


class Kept:
    """A store of sequences in memory; (place, view) says which. Counts what it is asked for."""

    def __init__(self, sequences: dict[int, np.ndarray], views: int = 1) -> None:
        self.sequences, self.views = sequences, views
        self.asked: list[tuple[int, int]] = []

    def sequence(self, place: int, view: int = 0) -> np.ndarray:
        self.asked.append((place, view))
        return self.sequences[place] + np.float32(1000 * view)


def store(counts: dict[int, int], features: int = 3, views: int = 1, seed: int = 0) -> Kept:
    rng = np.random.default_rng(seed)
    return Kept({place: rng.random((n, features), np.float32) + 5
                 for place, n in counts.items()}, views)


CHUNKS = [Chunk(0, 7, 0), Chunk(1, 2, 0), Chunk(2, 9, 0)]
COUNTS = {7: 3, 2: 5, 9: 1}


@pytest.mark.parametrize("backwards", [False, True])
def test_a_batch_is_padded_with_zeros(backwards: bool):
    kept = store(COUNTS)
    loader = SequenceLoader(kept, seed=0)
    batch = loader.load(CHUNKS, backwards=backwards)
    assert batch.shape == (3, 5, 3) and batch.dtype == np.float32
    for got, place in zip(batch, (7, 2, 9), strict=True):
        frames = kept.sequences[place]
        np.testing.assert_array_equal(got[: len(frames)], frames[::-1] if backwards else frames)
        assert not got[len(frames) :].any()


def test_lengths_go_with_the_batch():
    for loaded in (False, True):
        loader = SequenceLoader(store(COUNTS), seed=0)
        if loaded:
            loader.load(CHUNKS)
        arguments = loader.arguments(CHUNKS)
        assert list(arguments) == ["lengths"] and arguments["lengths"].dtype.kind == "i"
        assert arguments["lengths"].tolist() == [3, 5, 1]
        assert loader.arguments(CHUNKS[:0:-1])["lengths"].tolist() == [1, 5]


def test_a_chunk_stands_for_its_whole_video():
    loader = SequenceLoader(store(COUNTS), seed=0)
    chunks = [Chunk(3, 2, 0), Chunk(4, 2, 3)]
    first, second = loader.load(chunks)
    np.testing.assert_array_equal(first, second)
    assert loader.arguments(chunks)["lengths"].tolist() == [5, 5]


def test_an_epoch_draws_one_of_two_views():
    chunks = [Chunk(i, 2, 0) for i in range(64)]
    one = SequenceLoader(store(COUNTS, views=2), seed=0)

    def mirrored(loader: SequenceLoader, epoch: int | None) -> list[bool]:
        batch = loader.load(chunks, epoch)
        assert np.isin(batch[:, 0, 0] > 1000, (False, True)).all()
        return list(batch[:, 0, 0] > 1000)

    drawn = mirrored(one, 0)
    assert 16 < sum(drawn) < 48
    assert drawn == mirrored(one, 0) == mirrored(SequenceLoader(store(COUNTS, views=2), 0), 0)
    assert drawn != mirrored(one, 1)
    assert drawn != mirrored(SequenceLoader(store(COUNTS, views=2), seed=1), 0)
    # What is drawn depends on the chunk, not on its company.
    assert drawn[5] == (one.load(chunks[5:6], 0)[0, 0, 0] > 1000)
    # The view to evaluate on is the first.
    assert not any(mirrored(one, None))
    # A store of one view has nothing to draw.
    assert not any(mirrored(SequenceLoader(store(COUNTS), seed=0), 0))


def test_statistics_are_those_of_all_frames():
    kept = store({place: n for place, n in enumerate([1, 8, 3, 30])}, features=6)
    frames = np.concatenate([kept.sequences[p] for p in (3, 0, 2)]).astype(np.float64)
    mean, deviation = statistics(kept, (3, 0, 2))
    assert mean.dtype == deviation.dtype == np.float64
    np.testing.assert_allclose(mean, np.mean(frames, axis=0), rtol=1e-14)
    np.testing.assert_allclose(deviation, np.std(frames, axis=0), rtol=1e-13)


def test_statistics_are_of_both_views():
    kept = store(COUNTS, views=2)
    frames = np.concatenate([kept.sequence(p, view) for p in COUNTS for view in (0, 1)])
    mean, deviation = statistics(kept, COUNTS)
    np.testing.assert_allclose(mean, np.mean(frames, axis=0, dtype=np.float64), rtol=1e-14)
    np.testing.assert_allclose(deviation, np.std(frames, axis=0, dtype=np.float64), rtol=1e-13)


def test_statistics_far_from_zero_are_exact():
    """A spread of 1e-5 around 1e3, where a sum of squares in float64 would keep five digits."""
    noise = np.random.default_rng(0).standard_normal((40, 50, 2))
    kept = Kept({p: frames for p, frames in enumerate(1e3 + 1e-5 * noise)})  # float64
    _, deviation = statistics(kept, range(40))
    exact = 1e-5 * np.std(((noise * 1e-5 + 1e3) - 1e3) / 1e-5, axis=(0, 1))
    np.testing.assert_allclose(deviation, exact, rtol=1e-10)


@given(value=st.floats(0, 1e6, width=32), counts=st.lists(st.integers(1, 9), min_size=1))
def test_a_feature_that_never_varies_has_no_deviation(value: float, counts: list[int]):
    """Exactly none: what rounding leaves of it would be blown up by dividing by it."""
    kept = Kept({p: np.full((n, 1), value, np.float32) for p, n in enumerate(counts)})
    mean, deviation = statistics(kept, range(len(counts)))
    assert deviation == 0 and mean == np.float32(value)


@given(data=st.data())
def test_statistics_never_see_a_video_that_was_not_asked_for(data: st.DataObject):
    """Whatever the features of the test videos become, the statistics stay, to the last bit."""
    counts = data.draw(st.lists(st.integers(1, 6), min_size=2, max_size=8))
    places = range(len(counts))
    train = data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=len(counts) - 1,
                               unique=True))
    kept = store(dict(enumerate(counts)), seed=data.draw(st.integers(0, 99)))
    before = statistics(kept, train)
    kept.asked.clear()
    for place in set(places) - set(train):
        kept.sequences[place] = data.draw(st.sampled_from([
            kept.sequences[place] * 1e6, np.full((3, 3), np.nan, np.float32),
            np.zeros((50, 3), np.float32)]))
    np.testing.assert_array_equal(statistics(kept, train), before)
    assert {place for place, _ in kept.asked} == set(train)
    # And they do see those that were asked for.
    kept.sequences[train[0]] = kept.sequences[train[0]] + 1
    assert (statistics(kept, train)[0] > before[0]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite(value: float):
    kept = store(COUNTS)
    kept.sequences[2][1, 1] = value
    with pytest.raises(InputError, match="features of video 2: expected finite numbers"):
        statistics(kept, COUNTS)


def test_statistics_of_nothing():
    with pytest.raises(ValueError, match="places: expected at least one video, got none"):
        statistics(store(COUNTS), ())
