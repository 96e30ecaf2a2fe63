"""Chunks, their order, their views, and the batches that updates are made of."""

from __future__ import annotations

import numpy as np
import pytest

from recres import build, config, limits, loader
from recres.datasets import figures
from recres.errors import InputError
from recres.loader import FrameLoader, Videos, describe_updates, plan_epoch
from recres.video import augment
from recres.video.decode import VideoError
from recres.video.frame_index import Settings
from recres.video.frame_store import FrameStoreWriter, encode_video


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


def test_a_fraction_that_is_next_to_nothing_is_a_chunk_an_update(videos):
    """1 / 5e-324 is infinite: OverflowError."""
    least = config.replace(videos.config, update_fraction=5e-324)
    assert len(plan_epoch(videos.chunks("train"), least, 0)) == len(videos.chunks("train"))


@pytest.mark.parametrize("values", [{}, {"backwards": True}, {"epoch": 1}])
def test_a_video_that_has_fewer_frames_than_when_they_were_counted(figures_root, videos, values):
    """IndexError."""
    place, found = videos.sides["train"][0], videos.found
    video = videos.source.videos[place]
    more = Videos(videos.split, videos.config, found | {video.name: found[video.name] + 40})
    loader = FrameLoader(more.source, videos.config, "torch")
    chunks = [chunk for chunk in more.chunks("train") if chunk.video == place]
    assert loader.load(chunks[:2], **values).shape[0] == 2
    with pytest.raises(VideoError) as caught:
        loader.load(chunks[-1:], **values)
    count = found[video.name]
    assert str(caught.value) == (f"{video.path}: has {count} sampled frames, but had at least "
                                 f"{count + 40} when they were counted (videos.json)")


def test_counts_that_are_more_than_those_of_the_store(figures_root, videos, tmp_path):
    """IndexError."""
    with FrameStoreWriter(tmp_path / "store", Settings(videos.config.frame_step, 2)) as writer:
        for video in (*videos.split.train, *videos.split.test):
            writer.add(*encode_video(video, writer.settings))
    stored = config.replace(videos.config, frames=str(tmp_path / "store"))
    assert Videos(videos.split, stored, videos.found).counts == videos.counts
    video = videos.source.videos[videos.sides["test"][0]]
    count = videos.found[video.name]
    with pytest.raises(VideoError, match=f"^{video.path}: has {count} sampled frames, but had "
                                         f"{count + 1} when they were counted"):
        Videos(videos.split, stored, videos.found | {video.name: count + 1})


def test_more_chunks_than_can_be_listed(videos, monkeypatch):
    """Counts of a million for each of many videos took all memory."""
    chunks = sum(-(-count // 2) for count in videos.counts.values())
    monkeypatch.setattr(limits, "CHUNKS", chunks)
    Videos(videos.split, videos.config, videos.found)
    monkeypatch.setattr(limits, "CHUNKS", chunks - 1)
    with pytest.raises(InputError, match=f": {chunks} chunks, more than the {chunks - 1} of "):
        Videos(videos.split, videos.config, videos.found)
    Videos(videos.split, config.replace(videos.config, sampling="segments"), videos.found)


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


def test_temporal_segments_are_one_chunk_a_video_drawn_anew_each_epoch(figures_root):
    chosen = options(figures_root, sampling="segments", context=3, frame_step=1)
    videos = Videos(figures.read(figures_root), chosen)
    for side, places in videos.sides.items():
        assert [(c.video, c.start) for c in videos.chunks(side)] == [(p, 0) for p in places]
    chunks = videos.chunks("train")
    assert {videos.counts[c.video] for c in chunks} == {16}
    assert all(videos.frame_indices(c) == (2, 7, 13) for c in chunks)
    drawn = [videos.frame_indices(c, epoch) for c in chunks for epoch in range(4)]
    assert drawn == [videos.frame_indices(c, epoch) for c in chunks for epoch in range(4)]
    assert len(set(drawn)) > len(drawn) // 3  # of 5 · 5 · 6 there are
    for k, part in enumerate((range(5), range(5, 10), range(10, 16))):
        assert {indices[k] for indices in drawn} == set(part)

    loader = FrameLoader(videos.source, chosen, "torch")
    everything = next(loader.fixed(chunks[0].video))
    np.testing.assert_array_equal(loader.load(chunks[:1])[0], everything[[2, 7, 13]])
    backwards = loader.load(chunks[:1], backwards=True)[0]
    np.testing.assert_array_equal(backwards, everything[::-1][[2, 7, 13]])


def test_the_frames_of_a_drawn_chunk_are_those_of_its_segments(numbered, number, write_video,
                                                              tmp_path, figures_root):
    split = figures.read(figures_root)
    path = write_video(tmp_path / "numbered.avi", numbered(40, 32, 32))
    split = split._replace(train=(split.train[0]._replace(path=path), *split.train[1:]))
    chosen = options(figures_root, sampling="segments", context=4, frame_step=1, holdout=0.0,
                     colour_jitter=0.0)
    videos = Videos(split, chosen)
    loader, chunk = FrameLoader(videos.source, chosen, "torch"), videos.chunks("train")[0]
    for epoch in (None, 0, 1):
        pixels = (loader.load([chunk], epoch)[0] * 0.225 + 0.45) * 255  # near enough: 6 a frame
        assert tuple(number(pixels)) == videos.frame_indices(chunk, epoch)


@pytest.mark.parametrize("most", [1, 2, 3, 100])
def test_chunks_per_video_are_of_the_training_side_alone_and_spread(figures_root, most):
    split = figures.read(figures_root)
    everything = Videos(split, options(figures_root, frame_step=1))
    fewer = Videos(split, options(figures_root, frame_step=1, chunks_per_video=most),
                   everything.found)
    for side in ("holdout", "test"):
        assert fewer.chunks(side) == everything.chunks(side)
    chunks, before = fewer.chunks("train"), everything.chunks("train")
    assert set(chunks) <= set(before)  # their numbers, by which they are drawn, are the same
    for place in fewer.sides["train"]:
        starts = [c.start for c in chunks if c.video == place]
        assert starts == {1: [8], 2: [4, 12], 3: [2, 6, 12]}.get(most, list(range(0, 16, 2)))


def test_on_features_a_video_is_one_chunk(figures_root):
    split = figures.read(figures_root)
    chosen = options(figures_root, features="block2", model="gru")
    videos = Videos(split, chosen)
    numbers = []
    for side, places in videos.sides.items():
        chunks = videos.chunks(side)
        assert [(c.video, c.start) for c in chunks] == [(p, 0) for p in places]
        assert all(videos.frame_indices(c, 0) == range(videos.counts[c.video]) for c in chunks)
        numbers += [c.number for c in chunks]
    assert sorted(numbers) == list(range(len(split.train) + len(split.test)))


@pytest.mark.parametrize("values", [{}, {"sampling": "segments"}])
def test_flow_is_loaded_in_pixels_and_mirrored_with_its_sign(figures_root, values):
    values = {"input": "flow", "flow_length": 2, "frame_step": 4} | values
    videos = Videos(figures.read(figures_root), options(figures_root, **values))
    loader = FrameLoader(videos.source, videos.config, "caffe")
    assert loader.arguments([]) == {}
    chunks = videos.chunks("train")[:40]
    seen = loader.load(chunks)
    assert seen.shape == (len(chunks), 2, 32, 32, 4) and seen.dtype == np.float32
    stacks = videos.source.frames(chunks[0].video)
    indices = videos.frame_indices(chunks[0])
    whole = (stacks[list(indices)].astype(float) - 128) * 20 / 127
    # The centre of 80 pixels, made smaller: about the mean of what it was.
    np.testing.assert_allclose(seen[0].mean((0, 1, 2)), whole[:, 5:75, 5:75].mean((0, 1, 2)),
                               atol=0.05)
    drawn = loader.load(chunks, epoch=0)
    np.testing.assert_array_equal(drawn[3:4], loader.load(chunks[3:4], epoch=0))
    flips = [next(loader.views(80, 80, c, 0)).flip for c in chunks]
    assert any(flips) and not all(flips)
    for chunk, flip in list(zip(chunks, flips, strict=True))[:8]:
        frames = videos.source.frames(chunk.video)
        one = (frames[videos.frame_indices(chunk, 0)[0]].astype(np.float32) - 128) * 20 / 127
        view = next(loader.views(80, 80, chunk, 0))
        square = one[view.top : view.top + view.side, view.left : view.left + view.side]
        expected = square.mean((0, 1)) * ([-1, 1, -1, 1] if flip else 1)
        found = loader.load([chunk], epoch=0)[0, 0].mean((0, 1))
        np.testing.assert_allclose(found, expected, atol=0.05)


def test_fixed_views_of_flow_and_their_mirror_images(figures_root):
    chosen = options(figures_root, input="flow", flow_length=3, freeze="block1", mirror=True)
    videos = Videos(figures.read(figures_root), chosen)
    loader = FrameLoader(videos.source, chosen, "torch")
    one, two = loader.fixed(videos.sides["train"][0])
    assert one.shape == (videos.counts[videos.sides["train"][0]], 32, 32, 6)
    turned = one[:, :, ::-1] * np.tile(np.float32([-1, 1]), 3)
    np.testing.assert_allclose(two, turned, rtol=0, atol=0.16)  # a rounding of the value apart
    np.testing.assert_array_equal(loader.load(videos.chunks("train")[:1])[0], one[:2])


def test_dynamic_images_are_images_and_chunks_of_one(figures_root):
    chosen = options(figures_root, input="dynamic", model="avgpool")
    videos = Videos(figures.read(figures_root), chosen)
    assert set(videos.counts.values()) == {1}
    chunks = videos.chunks("test")
    assert [c.video for c in chunks] == list(videos.sides["test"])
    loader = FrameLoader(videos.source, chosen, "torch")
    for backwards in (False, True):
        image = videos.source.frames(chunks[0].video, backwards)
        view = augment.evaluation_view(80, 80)
        expected = augment.normalise(augment.apply(image, view, 32), "torch")
        np.testing.assert_array_equal(loader.load(chunks[:1], backwards=backwards)[0], expected)
    assert loader.load(chunks[:3], epoch=0).shape == (3, 1, 32, 32, 3)


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


def test_the_memory_of_a_machine_is_for_all_processes(monkeypatch):
    monkeypatch.setattr(loader.os, "sysconf", lambda name: 2**35 if name == "SC_PHYS_PAGES" else 1)
    assert [loader._frame_bytes(n) for n in (1, 4, 8)] == [2**31, 2**31, 2**30]
