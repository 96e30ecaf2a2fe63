"""Chunks, their order, their views, and the batches that updates are made of."""

from __future__ import annotations

import numpy as np
import pytest

from recres import build, config
from recres.datasets import figures
from recres.errors import InputError
from recres.loader import FrameLoader, Videos, describe_updates, plan_epoch
from recres.video.decode import VideoError


def options(root, **values):
    return config.resolve({"root": str(root), "image_size": 32, "holdout": 0.3, "threads": 1,
                           **values})


@pytest.fixture(scope="module")
def videos(figures_root):
    return Videos(figures.read(figures_root), options(figures_root))


def test_every_sampled_frame_is_in_a_chunk(videos):
    for side, places in videos.sides.items():
        seen = {place: set() for place in places}
        for chunk in videos.chunks(side):
            assert len(videos.source.frames(chunk.video)) == videos.counts[chunk.video]
            seen[chunk.video].update(range(chunk.start, chunk.start + 2))
        assert all(seen[p] == set(range(videos.counts[p])) for p in places)
    numbers = [c.number for side in videos.sides for c in videos.chunks(side)]
    assert len(set(numbers)) == len(numbers)


def test_no_group_is_on_two_sides(videos):
    groups = [{videos.source.videos[p].group for p in places} for places in videos.sides.values()]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]


@pytest.mark.parametrize("values", [{"batch": 7}, {"batch": 1000}, {"update_fraction": 0.01},
                                    {"update_fraction": 0.1, "batch": 4}, {"update_fraction": 1.0}])
def test_an_epoch_visits_every_chunk_once(figures_root, videos, values):
    chunks, chosen = videos.chunks("train"), options(figures_root, **values)
    plan = plan_epoch(chunks, chosen, epoch=3)
    flat = [chunk for update in plan for batch in update for chunk in batch]
    assert sorted(flat) == sorted(chunks)
    sizes = [sum(map(len, update)) for update in plan]
    assert max(sizes) - min(sizes) <= 1
    assert max(len(batch) for update in plan for batch in update) <= chosen.batch
    told = describe_updates(len(chunks), chosen)
    assert (told["updates"], told["chunks"]) == (len(plan), max(sizes))
    assert told["batches"] == max(map(len, plan))


def test_a_fraction_is_of_the_chunks_observed(figures_root, videos):
    chunks = videos.chunks("train")
    plan = plan_epoch(chunks, options(figures_root, update_fraction=0.2, batch=4), epoch=0)
    assert len(plan) == 5
    assert all(len(update) == -(-len(chunks) // 5 // 4) for update in plan)


def test_the_order_is_drawn_anew_each_epoch_from_the_seed(figures_root, videos):
    chunks = videos.chunks("train")
    orders = [plan_epoch(chunks, options(figures_root, seed=seed), epoch)
              for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] and orders[0] != orders[3]


def test_a_view_belongs_to_chunk_and_epoch_not_to_its_place_in_a_batch(figures_root, videos):
    loader = FrameLoader(videos.source, options(figures_root), "torch")
    chunks = videos.chunks("train")[:6]
    together = loader.load(chunks, epoch=2)
    np.testing.assert_array_equal(together[4:5], loader.load(chunks[4:5], epoch=2))
    assert not np.array_equal(together, loader.load(chunks, epoch=3))
    np.testing.assert_array_equal(loader.load(chunks), loader.load(chunks))


def test_one_view_a_chunk_unless_asked_otherwise(write_video, tmp_path, figures_root):
    rng = np.random.default_rng(0)
    still = np.repeat(rng.integers(0, 255, (1, 40, 60, 3), np.uint8), 8, axis=0)
    split = figures.read(figures_root)
    first = split.train[0]
    path = write_video(tmp_path / "still.avi", still)
    split = split._replace(train=(first._replace(path=path), *split.train[1:]))
    for per_frame in (False, True):  # the colour stays one draw a chunk
        chosen = options(figures_root, augment_per_frame=per_frame, holdout=0.0, frame_step=1)
        videos = Videos(split, chosen)
        loader = FrameLoader(videos.source, chosen, "torch")
        chunks = [c for c in videos.chunks("train") if c.video == 0]
        shown = loader.load(chunks, epoch=0)
        same = [np.allclose(one, two, atol=0.2) for one, two in shown]
        assert len(same) == 4 and (not all(same) if per_frame else all(same))


def test_backwards_is_the_sampled_frames_in_reverse(figures_root, videos):
    loader = FrameLoader(videos.source, options(figures_root), "torch")
    chunks = [c for c in videos.chunks("test") if c.video == videos.sides["test"][0]]
    assert videos.counts[chunks[0].video] == 2 * len(chunks)
    forwards, backwards = loader.load(chunks), loader.load(chunks, backwards=True)
    np.testing.assert_array_equal(backwards, forwards[::-1, ::-1])


def test_a_bad_video_is_fatal_or_skipped_and_counted(figures_root, tmp_path):
    split = figures.read(figures_root)
    bad = tmp_path / "bad.avi"
    bad.write_bytes(b"")
    broken = split._replace(test=(split.test[0]._replace(path=bad), *split.test[1:]))
    with pytest.raises(VideoError, match="bad.avi: empty"):
        Videos(broken, options(figures_root))
    videos = Videos(broken, options(figures_root, skip_bad=True))
    assert list(videos.skipped) == [split.test[0].name]
    assert len(videos.sides["test"]) == len(split.test) - 1
    again = Videos(broken, options(figures_root, skip_bad=True), videos.found)
    assert again.sides == videos.sides
    assert again.chunks("train") == videos.chunks("train")


def test_a_side_without_a_usable_video_is_refused(figures_root):
    split = figures.read(figures_root)
    found = {v.name: 8 for v in split.train} | {v.name: "broken" for v in split.test}
    with pytest.raises(InputError, match="no video of the test side can be used"):
        Videos(split, options(figures_root), found)


def test_a_video_that_was_not_there_before_is_refused(figures_root):
    split = figures.read(figures_root)
    found = {v.name: 8 for v in (*split.train, *split.test)}
    del found[split.train[3].name]
    with pytest.raises(InputError, match=f"{split.train[3].name}.*not in the data set when"):
        Videos(split, options(figures_root), found)


def test_figures_are_made_where_they_are_absent_and_taken_as_they_are_where_not(
        figures_root, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(figures, "generate", lambda root, *args, **more: made.append(root))
    build.read_split(options(figures_root))  # another size than the default: no complaint
    assert not made
    with pytest.raises(InputError):  # the stand-in made nothing to read
        build.read_split(options(tmp_path / "absent"), log=lambda text: None)
    assert made == [tmp_path / "absent"]
