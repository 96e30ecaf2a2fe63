"""Frames of a data set, kept in bounded memory and shared by threads."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from recres.datasets import Video
from recres.errors import InputError
from recres.video import source as module
from recres.video.decode import VideoError
from recres.video.dynamic import sample_dynamic
from recres.video.flow import sample_flow
from recres.video.frame_index import Settings
from recres.video.frame_store import FrameStore, FrameStoreWriter, encode_video
from recres.video.source import FrameSource

LENGTHS = (30, 12, 3, 1)
FRAME = 32 * 48 * 3


@pytest.fixture
def videos(tmp_path, write_video, numbered):
    return tuple(
        Video(write_video(tmp_path / f"{n}.avi", numbered(n)), 0, "g01", f"{n}") for n in LENGTHS
    )


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files decoded so far."""
    names = []
    original = module.sample_video

    def sample_video(path, step, context):
        names.append(path.name)
        time.sleep(0.01)
        return original(path, step, context)

    monkeypatch.setattr(module, "sample_video", sample_video)
    return names


def test_sampled_frames(videos, number):
    source = FrameSource(videos, step=10, context=2, max_bytes=10**9)
    assert len(source) == 4
    expected = ([0, 10, 20], [0, 10], [0, 2], [0, 0])
    for index, frames in enumerate(expected):
        assert number(source.frames(index)) == frames
    with pytest.raises(ValueError, match="read-only"):
        source.frames(0)[0] = 0


def test_what_was_used_last_stays_in_memory(videos, decoded):
    source = FrameSource(videos, step=10, context=2, max_bytes=7 * FRAME)  # 3 + 2 + 2 frames
    for index in (0, 1, 2, 0, 1, 2, 0):
        source.frames(index)
    assert decoded == ["30.avi", "12.avi", "3.avi"]
    source.frames(3)  # for which the one not used for longest has to go
    source.frames(2), source.frames(0)
    assert decoded[3:] == ["1.avi"]
    source.frames(1)
    assert decoded[3:] == ["1.avi", "12.avi"]


def test_without_memory_every_use_decodes(videos, decoded):
    source = FrameSource(videos, step=10, context=2, max_bytes=FRAME)
    first, second = source.frames(0), source.frames(0)
    assert np.array_equal(first, second) and decoded == ["30.avi"] * 2


def test_threads_that_ask_for_the_same_video_decode_it_once(videos, decoded):
    source = FrameSource(videos, step=10, context=2, max_bytes=0)
    together = threading.Barrier(4)

    def ask(_):
        together.wait(timeout=10)
        return source.frames(0)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(ask, range(4)))
    assert decoded == ["30.avi"] and all(result is results[0] for result in results)


def test_threads_in_a_small_memory_get_the_right_frames(videos, number):
    source = FrameSource(videos, step=10, context=2, max_bytes=4 * FRAME)
    order = np.random.default_rng(0).integers(0, 4, 200)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda i: number(source.frames(i)), order))
    expected = ([0, 10, 20], [0, 10], [0, 2], [0, 0])
    assert results == [expected[i] for i in order]


def test_a_bad_video_is_an_error_each_time(videos):
    videos[1].path.write_text("no video")
    source = FrameSource(videos, step=10, context=2, max_bytes=10**9)
    for _ in range(2):
        with pytest.raises(VideoError, match="12.avi: not a video"):
            source.frames(1)


@pytest.mark.parametrize("workers", [1, 3])
def test_scan_counts_and_keeps(videos, decoded, workers):
    source = FrameSource(videos, step=10, context=2, max_bytes=10**9)
    calls = []
    counts = source.scan(workers, progress=lambda done, total: calls.append((done, total)))
    assert counts == [3, 2, 2, 2] and calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    source.frames(0), source.frames(3)
    assert sorted(decoded) == ["1.avi", "12.avi", "3.avi", "30.avi"]


def test_it_knows_how_much_is_yet_to_come_into_memory(videos, stored):
    """Of videos at most what there is room for: how large their frames are is not known."""
    source = FrameSource(videos, step=10, context=2, max_bytes=10 * FRAME)
    assert source.yet_to_keep == 10 * FRAME
    source.frames(0)
    assert source.yet_to_keep == 7 * FRAME
    source.scan()
    assert source.yet_to_keep == 0
    small = FrameSource(videos, step=10, context=2, max_bytes=4 * FRAME)
    small.scan()
    assert small.yet_to_keep == 0
    store = stored()
    large = FrameSource(videos, 10, 2, 10**9, store=store)
    whole = large.yet_to_keep
    assert whole == store.decoded_bytes(videos) > 0
    assert whole - large.frames(0).nbytes == large.yet_to_keep
    assert FrameSource(videos, 10, 2, FRAME, store=store).yet_to_keep == 0


@pytest.mark.parametrize("workers", [1, 3])
def test_scan_stops_at_the_first_bad_video_or_notes_them(videos, workers):
    videos[1].path.unlink()
    videos[3].path.write_bytes(b"")
    source = FrameSource(videos, step=10, context=2, max_bytes=10**9)
    with pytest.raises(VideoError, match="12.avi: no such file"):
        source.scan(workers)
    counts = source.scan(workers, skip_bad=True)
    assert [counts[0], counts[2]] == [3, 2]
    assert [str(counts[i]) for i in (1, 3)] == [
        f"{videos[1].path}: no such file",
        f"{videos[3].path}: empty (0 bytes)",
    ]


def test_flow_and_dynamic_images_are_sampled_as_frames_are(videos, write_video):
    for video, n in zip(videos, LENGTHS, strict=True):
        noise = np.random.default_rng(n).integers(0, 256, (n, 32, 48, 3), dtype=np.uint8)
        write_video(video.path, noise)
    arguments = {"step": 10, "context": 2, "max_bytes": 10**9}
    frames, flow, dynamic = (FrameSource(videos, **arguments, input=name, flow_length=3)
                             for name in ("frames", "flow", "dynamic"))
    assert (frames.channels, flow.channels, dynamic.channels) == (3, 6, 3)
    for index, video in enumerate(videos):
        n = len(frames.frames(index))
        for backwards in (False, True):
            stacks, image = (s.frames(index, backwards) for s in (flow, dynamic))
            assert stacks.shape == (n, 32, 48, 6) and image.shape == (1, 32, 48, 3)
            assert not stacks.flags.writeable and not image.flags.writeable
            np.testing.assert_array_equal(stacks, sample_flow(video.path, 10, 2, 3, backwards))
            np.testing.assert_array_equal(image, sample_dynamic(video.path, backwards))


def test_frames_backwards_are_the_same_frames_in_reverse(videos, decoded):
    source = FrameSource(videos, step=10, context=2, max_bytes=10**9)
    backwards = source.frames(0, backwards=True)
    np.testing.assert_array_equal(backwards, source.frames(0)[::-1])
    assert decoded == ["30.avi"]
    with pytest.raises(ValueError, match="read-only"):
        backwards[0] = 0


def test_flow_of_both_directions_stays_in_the_same_bounded_memory(videos, monkeypatch):
    calls = []

    def sample(path, step, context, length, backwards):
        calls.append((path.name, backwards))
        return sample_flow(path, step, context, length, backwards)

    monkeypatch.setattr(module, "sample_flow", sample)
    stack = 32 * 48 * 4
    source = FrameSource(videos, step=10, context=2, max_bytes=5 * stack, input="flow",
                         flow_length=2)  # room for 3 + 2
    for index, backwards in ((0, False), (1, False), (0, False), (1, False), (1, True)):
        source.frames(index, backwards)
    assert calls == [("30.avi", False), ("12.avi", False), ("12.avi", True)]
    source.frames(1, False), source.frames(1, True)
    assert len(calls) == 3
    source.frames(0, False)
    assert calls[3:] == [("30.avi", False)]


def test_scanning_flow_counts_without_computing_it(videos, monkeypatch):
    monkeypatch.setattr(module, "sample_flow", None)
    source = FrameSource(videos, 10, 2, 10**9, input="flow", flow_length=2)
    assert source.scan() == [3, 2, 2, 2]
    videos[2].path.write_bytes(b"")
    assert str(source.scan(skip_bad=True)[2]).endswith("3.avi: empty (0 bytes)")
    assert FrameSource(videos[:2], 10, 2, 10**9, input="dynamic").scan() == [1, 1]


@pytest.fixture
def stored(videos, tmp_path):
    """stored(**settings): a store of the videos, made at step 10 for context 3, in raw frames."""

    def make(**settings):
        made = Settings(**{"frame_step": 10, "context": 3, "codec": "raw", "quality": None}
                        | settings)
        with FrameStoreWriter(tmp_path / "store", made) as writer:
            for video in writer.missing(videos):
                writer.add(*encode_video(video, made))
        return FrameStore(tmp_path / "store")

    return make


@pytest.mark.parametrize("context", [1, 2, 3])
@pytest.mark.parametrize("max_bytes", [0, 6 * FRAME, 10**9])
def test_raw_frames_of_a_store_are_those_of_the_videos(videos, decoded, stored, context, max_bytes):
    expected = FrameSource(videos, 10, context, 10**9)
    source = FrameSource(videos, 10, context, max_bytes, store=stored())
    counts = expected.scan()
    decoded.clear()
    assert source.scan(2) == counts and source.channels == 3 and len(source) == 4
    for index, count in enumerate(counts):
        for backwards in (False, True):
            whole = expected.frames(index, backwards)
            np.testing.assert_array_equal(source.frames(index, backwards), whole)
            assert not source.frames(index).flags.writeable
            for places in ([count - 1, 0], range(count)):
                for each in (source, expected):
                    some = each.some(index, {count: places}.__getitem__, backwards)
                    np.testing.assert_array_equal(some, whole[list(places)])
    assert decoded == []


def test_of_a_store_too_big_for_the_memory_only_what_is_asked_for_is_decoded(videos, stored,
                                                                             monkeypatch):
    store, images = stored(codec="jpeg", quality=90), []
    original = FrameStore._decode_image

    def decode(self, line, place, data, out):
        images.append(place)
        original(self, line, place, data, out)

    monkeypatch.setattr(FrameStore, "_decode_image", decode)
    small, large = (FrameSource(videos, 10, 2, size, store=store) for size in (FRAME, 10**9))
    for _ in range(2):
        first = small.some(0, lambda count: [count - 1])
    assert images == [2, 2]
    images.clear()
    for _ in range(2):
        np.testing.assert_array_equal(large.some(0, lambda count: [2]), first)
    assert images == [0, 1, 2]


def test_threads_get_the_same_frames_of_jpeg(videos, stored):
    store = stored(codec="jpeg", quality=80)
    expected = [FrameSource(videos, 10, 2, 0, store=store).frames(i) for i in range(4)]
    source = FrameSource(videos, 10, 2, 4 * FRAME, store=store)
    order = np.random.default_rng(0).integers(0, 4, 100)
    with ThreadPoolExecutor(4) as pool:
        for i, frames in zip(order, pool.map(source.frames, order), strict=True):
            np.testing.assert_array_equal(frames, expected[i])


def test_a_store_that_does_not_fit_is_refused(videos, stored):
    store = stored()
    for arguments, text in (
        ((videos, 5, 2, 0), "made with --frame-step 10, wanted is 5"),
        ((videos, 10, 4, 0), "made for --context up to 3, wanted is 4"),
        ((videos, 10, 2, 0, "flow"), "has sampled frames alone, but input flow is made of all"),
        ((videos, 10, 2, 0, "dynamic"), "has sampled frames alone, but input dynamic is"),
        (((*videos, videos[0]._replace(name="new")), 10, 2, 0), "lacks 1 of 5 videos"),
    ):
        with pytest.raises(InputError, match=text):
            FrameSource(*arguments, store=store)
    videos[1].path.write_bytes(b"another")
    with pytest.raises(InputError, match="made of another .*12.avi"):
        FrameSource(videos, 10, 2, 0, store=store)
    videos[1].path.unlink()  # a store can be used where the videos are not
    FrameSource(videos, 10, 2, 0, store=store).frames(1)


def test_scan_of_a_store_notes_bad_videos_as_of_videos(videos, stored):
    videos[1].path.write_bytes(b"no video")
    source = FrameSource(videos, 10, 2, 0, store=stored())
    with pytest.raises(VideoError, match="12.avi: not a video"):
        source.scan()
    counts = source.scan(skip_bad=True)
    assert isinstance(counts.pop(1), VideoError) and counts == [3, 2, 2]


def test_what_is_refused():
    with pytest.raises(ValueError, match="input is 'audio', expected one of frames, flow, dynam"):
        FrameSource((), 1, 1, 0, input="audio")
    with pytest.raises(ValueError, match="flow_length is 0, expected at least 1"):
        FrameSource((), 1, 1, 0, input="flow", flow_length=0)
    with pytest.raises(ValueError, match="step is 0, expected at least 1"):
        FrameSource((), 0, 1, 0)
    with pytest.raises(ValueError, match="max_bytes is -1, expected at least 0"):
        FrameSource((), 1, 1, -1)
