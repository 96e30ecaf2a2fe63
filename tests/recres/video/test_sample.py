"""Which frames are sampled, and how chunks tile them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recres.video.sample import chunk_starts, sample_indices, segment_indices

counts = st.integers(1, 400)
steps = st.integers(1, 30)
contexts = st.integers(1, 12)


@given(counts, steps, contexts)
def test_sampled_frames(n_frames, step, context):
    indices = sample_indices(n_frames, step, context)
    assert len(indices) >= context
    assert indices[0] == 0 and all(0 <= i < n_frames for i in indices)
    distances = {b - a for a, b in zip(indices, indices[1:], strict=False)}
    if n_frames >= context:
        assert len(distances) <= 1 and 0 not in distances  # evenly spaced, none repeated
    else:  # all frames, the last one repeated just often enough
        assert indices == (*range(n_frames), *[n_frames - 1] * (context - n_frames))
    if len(range(0, n_frames, step)) >= context:
        assert indices == tuple(range(0, n_frames, step))
    elif n_frames >= context > 1:  # no coarser sampling would have been enough
        (distance,) = distances
        assert len(range(0, n_frames, distance + 1)) < context


@given(counts, steps, contexts)
def test_chunks_tile_the_sampled_frames(n_frames, step, context):
    n_sampled = len(sample_indices(n_frames, step, context))
    starts = chunk_starts(n_sampled, context)
    assert len(starts) == -(-n_sampled // context)
    assert list(starts) == sorted(set(starts)) and starts[0] == 0
    assert all(start + context <= n_sampled for start in starts)
    assert {s + k for s in starts for k in range(context)} == set(range(n_sampled))
    assert all(start % context == 0 for start in starts[:-1])


@pytest.mark.parametrize(
    ("n_frames", "step", "context", "indices"),
    [
        (165, 10, 2, tuple(range(0, 165, 10))),
        (21, 10, 3, (0, 10, 20)),
        (20, 10, 3, (0, 9, 18)),
        (5, 10, 5, (0, 1, 2, 3, 4)),
        (4, 10, 6, (0, 1, 2, 3, 3, 3)),
        (1, 10, 1, (0,)),
    ],
)
def test_sampled_frames_by_example(n_frames, step, context, indices):
    assert sample_indices(n_frames, step, context) == indices


@pytest.mark.parametrize(
    ("n_sampled", "context", "starts"),
    [(6, 2, (0, 2, 4)), (7, 2, (0, 2, 4, 5)), (3, 3, (0,)), (5, 3, (0, 2)), (3, 1, (0, 1, 2))],
)
def test_chunk_starts_by_example(n_sampled, context, starts):
    assert chunk_starts(n_sampled, context) == starts


@pytest.mark.parametrize("arguments", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_counts_below_one_are_refused(arguments):
    with pytest.raises(ValueError, match="is 0, expected at least 1"):
        sample_indices(*arguments)


def test_a_video_shorter_than_a_chunk_is_refused():
    with pytest.raises(ValueError, match="n_sampled is 2, expected at least the context, 3"):
        chunk_starts(2, 3)
    with pytest.raises(ValueError, match="context is 0"):
        chunk_starts(2, 0)


@given(counts, contexts, st.integers(0, 10**6))
def test_segments_have_one_frame_each(n_sampled, segments, seed):
    if n_sampled < segments:
        with pytest.raises(ValueError, match=f"n_sampled is {n_sampled}, expected at least one a"):
            segment_indices(n_sampled, segments)
        return
    for rng in (None, np.random.default_rng(seed)):
        indices = segment_indices(n_sampled, segments, rng)
        assert len(indices) == segments and all(type(i) is int for i in indices)
        assert list(indices) == sorted(set(indices))
        for part, index in enumerate(indices):  # in its part: index / n in [part, part + 1) / K
            assert part * n_sampled < (index + 1) * segments
            assert index * segments < (part + 1) * n_sampled
            assert part * n_sampled // segments <= index < (part + 1) * n_sampled // segments


@pytest.mark.parametrize(
    ("n_sampled", "segments", "middles"),
    [(9, 3, (1, 4, 7)), (3, 3, (0, 1, 2)), (10, 3, (1, 4, 8)), (5, 1, (2,)), (8, 2, (2, 6))],
)
def test_middles_of_segments_by_example(n_sampled, segments, middles):
    assert segment_indices(n_sampled, segments) == middles


def test_every_frame_of_a_segment_is_drawn_as_often():
    rng = np.random.default_rng(0)
    drawn = np.array([segment_indices(11, 2, rng) for _ in range(3000)])
    assert set(drawn[:, 0]) == set(range(5)) and set(drawn[:, 1]) == set(range(5, 11))
    for column, size in ((0, 5), (1, 6)):
        counted = np.bincount(drawn[:, column])[-size:]
        assert np.abs(counted / 3000 - 1 / size).max() < 0.035  # five standard errors


def test_no_segments_are_refused():
    with pytest.raises(ValueError, match="segments is 0, expected at least 1"):
        segment_indices(3, 0)
