"""A store of frames: what is in it, stopping and going on, and every way in which it is refused."""

from __future__ import annotations

import json
import os
import shutil
import struct
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recres.data_check import check_store
from recres.datasets import Video
from recres.errors import InputError
from recres.video import frame_store
from recres.video.decode import VideoError, sample_video
from recres.video.frame_index import Line, Settings, kept_indices
from recres.video.frame_store import FrameStore, FrameStoreWriter, encode_video
from recres.video.sample import sample_indices

LENGTHS = (30, 12, 3, 1)
RAW = Settings(10, 4, codec="raw", quality=None)
JPEG = Settings(10, 4)


@pytest.fixture
def videos(tmp_path, write_video):
    rng = np.random.default_rng(0)
    result = []
    for i, n in enumerate(LENGTHS):
        path = tmp_path / "videos" / f"v_{n}.avi"
        coarse = rng.integers(0, 256, (n, 4, 6, 3), dtype=np.uint8)
        write_video(path, coarse.repeat(8, 1).repeat(8, 2))
        result.append(Video(path, i, "g01", path.stem))
    return tuple(result)


def fill(path, videos, settings, **options):
    with FrameStoreWriter(path, settings, **options) as writer:
        missing = writer.missing(videos)
        for video in missing:
            writer.add(*encode_video(video, settings))
    return [video.name for video in missing]


@pytest.mark.parametrize("context", [1, 2, 3, 4])
def test_raw_frames_are_those_of_the_videos_for_every_context(tmp_path, videos, context):
    fill(tmp_path / "s", videos, RAW)
    store = FrameStore(tmp_path / "s")
    for video in videos:
        expected = sample_video(video.path, 10, context)
        np.testing.assert_array_equal(store.frames(video, context), expected)
        assert store.count(video, context) == len(expected)
        some = [len(expected) - 1, 0]
        np.testing.assert_array_equal(store.frames(video, context, some), expected[some])


@given(total=st.integers(1, 200), step=st.integers(1, 20), most=st.integers(1, 12))
def test_what_is_kept_is_what_some_context_needs(total, step, most):
    kept = kept_indices(total, Settings(step, most))
    needed = [set(sample_indices(total, step, c)) for c in range(1, most + 1)]
    assert set(kept) == set().union(*needed) and list(kept) == sorted(kept)
    if -(-total // step) >= most:  # why the total of a longer video need not be known
        assert all(need == set(range(0, total, step)) for need in needed)


def test_jpeg_frames_are_near_the_videos_and_smaller(tmp_path, videos):
    fill(tmp_path / "s", videos, JPEG)
    fill(tmp_path / "r", videos, RAW)
    store = FrameStore(tmp_path / "s")
    for video in videos:
        expected = sample_video(video.path, 10, 4).astype(int)
        found = store.frames(video, 4)
        assert found.shape == expected.shape
        error, swapped = abs(found - expected).mean(), abs(found[..., ::-1] - expected).mean()
        assert 0 < error < swapped / 4  # (the colours are noise, which JPEG does not keep well)
        np.testing.assert_array_equal(found[[1]], store.frames(video, 4, [1]))
    assert store.nbytes < FrameStore(tmp_path / "r").nbytes / 2


def test_size_is_of_the_shorter_side_and_never_enlarges(tmp_path, videos):
    for size, shape in ((16, (16, 24)), (32, (32, 48)), (64, (32, 48))):
        path = tmp_path / str(size)
        fill(path, videos[:1], replace(RAW, size=size))
        assert FrameStore(path).frames(videos[0], 2).shape == (3, *shape, 3)


def test_again_there_is_nothing_to_do_and_changed_videos_are_made_again(tmp_path, videos,
                                                                        write_video):
    path = tmp_path / "s"
    assert len(fill(path, videos, RAW)) == 4
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    assert fill(path, videos, RAW) == []
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before
    write_video(videos[1].path, np.full((7, 32, 48, 3), 9, np.uint8))
    with pytest.raises(InputError, match="made of another .*v_12.avi: it had"):
        FrameStore(path).match(videos)
    assert fill(path, videos, RAW) == ["v_12"]
    store = FrameStore(path)
    store.match(videos)
    np.testing.assert_array_equal(store.frames(videos[1], 2), sample_video(videos[1].path, 10, 2))


def test_a_copy_of_a_video_is_the_same_video(tmp_path, videos):
    fill(tmp_path / "s", videos, RAW)
    os.utime(videos[0].path, ns=(1, 1))
    FrameStore(tmp_path / "s").match(videos)
    assert fill(tmp_path / "s", videos, RAW) == []
    assert FrameStore(tmp_path / "s").lines["v_30"].modified == 1
    data = bytearray(videos[0].path.read_bytes())
    data[-1] ^= 1
    videos[0].path.write_bytes(data)
    with pytest.raises(InputError, match="has other bytes now, of the same number"):
        FrameStore(tmp_path / "s").match(videos)


@pytest.mark.parametrize("settings", [RAW, JPEG])
def test_stopped_after_any_byte_it_goes_on_to_the_same_store(tmp_path, videos, settings):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    fill(whole, videos, settings, shard_bytes=9000)
    names = sorted(p.name for p in whole.iterdir())
    assert "frames-00001.bin" in names
    index = (whole / "videos.jsonl").read_bytes()
    ends = np.cumsum([len(line) + 1 for line in index.split(b"\n")[:-1]])
    for cut in {0, 5, int(ends[0]), int(ends[1]) - 1, int(ends[1]), int(ends[2]) + 30}:
        shutil.copytree(whole, torn)  # with frames that have no line: the line comes after them
        os.truncate(torn / "videos.jsonl", cut)
        assert len(fill(torn, videos, settings, shard_bytes=9000)) == 4 - sum(ends <= cut)
        for name in names:
            assert (torn / name).read_bytes() == (whole / name).read_bytes(), (cut, name)
        shutil.rmtree(torn)


def test_behind_a_shard_that_lost_its_end_comes_a_new_one(tmp_path, videos):
    path = tmp_path / "s"
    fill(path, videos[:2], RAW)
    os.truncate(path / "frames-00000.bin", 5000)
    with pytest.raises(InputError, match="frames of videos/v_12.avi are damaged: they end at"):
        FrameStore(path).frames(videos[1], 2)
    # What the shard has lost is made again.
    assert fill(path, videos[:3], RAW) == ["v_30", "v_12", "v_3"]
    (path / "frames-00001.bin").unlink()
    assert fill(path, videos[:3], RAW) == ["v_30", "v_12", "v_3"]
    assert fill(path, videos[:3], RAW) == []
    store = FrameStore(path)
    assert {line.shard for line in store.lines.values()} == {2}
    for video in videos[:3]:
        np.testing.assert_array_equal(store.frames(video, 2), sample_video(video.path, 10, 2))
    assert check_store(store) == []


@pytest.mark.parametrize("name", ["frames-00000.bin", "frames-00003.bin", "videos.jsonl"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_a_store_links_to_is_not_written_to(tmp_path, videos, name, kind):
    """A link among the shards of a store from elsewhere: the file that it led to was emptied."""
    fill(tmp_path / "s", videos[:1], RAW)
    mine, path = tmp_path / "mine", tmp_path / "s" / name
    mine.write_text("precious, and no line of an index")
    path.unlink(missing_ok=True)
    path.symlink_to(mine) if kind == "link" else os.mkfifo(path)
    with pytest.raises(InputError, match=f"{name}: not a"):
        fill(tmp_path / "s", videos[:2], RAW)
    assert mine.read_text() == "precious, and no line of an index"


def test_frames_that_no_jpeg_can_be_of_are_a_bad_video(tmp_path, monkeypatch):
    """OpenCV's refusal ended the command, with --skip-bad too."""
    monkeypatch.setattr(frame_store, "iter_frames",
                        lambda path, step: iter([(0, np.zeros((16, 65501, 3), np.uint8))]))
    video = Video(tmp_path / "wide.mkv", 0, "g01", "wide")
    line, data = encode_video(video, replace(JPEG, context=1))
    assert line.bad.startswith("frames of 65501x16, a JPEG has no side of more than") and not data
    assert encode_video(video, replace(RAW, context=1))[0].bad is None
    assert frame_store._compressed(np.zeros((16, 65500, 3), np.uint8), JPEG)


def test_an_index_of_long_videos_and_many_contexts_is_read_at_once():
    """Each line took a tenth of a second: hours for an index as large as one may be."""
    settings = Settings(10**6, 1024)
    kept = kept_indices(500, settings)
    assert kept == tuple(range(500))
    line = LINE | {"total": 500, "frames": 500, "sizes": [12] * 500}
    text = json.dumps(line).encode()
    began = time.process_time()
    for _ in range(30):
        assert Line.parse(text, settings).frames == 500
    lines = [LINE | {"total": total, "frames": 1, "sizes": [12]} for total in (2**40, 999_999)]
    for line in 50 * lines:
        with pytest.raises(ValueError, match="1 frames of .* are not those kept"):
            Line.parse(json.dumps(line).encode(), settings)
    assert time.process_time() - began < 1


@pytest.mark.parametrize("step, context, size, text", [
    (5, 4, None, "made with --frame-step 10, wanted is 5"),
    (10, 5, None, "made for --context up to 4, wanted is 5"),
    (10, 2, 33, "made with --size 32, wanted are images of 33"),
])
def test_runs_with_other_settings_are_refused_by_name(tmp_path, videos, step, context, size, text):
    fill(tmp_path / "s", videos, replace(RAW, size=32))
    store = FrameStore(tmp_path / "s")
    store.require(10, 4, 32)
    with pytest.raises(InputError, match=text):
        store.require(step, context, size)


@pytest.mark.parametrize("name, value", [("frame_step", 5), ("context", 3), ("size", 16),
                                         ("quality", 50)])
def test_a_store_with_other_settings_is_not_added_to(tmp_path, videos, name, value):
    fill(tmp_path / "s", videos, JPEG)
    option = f"--{name.replace('_', '-')}"
    wanted = f"made with {option} .*, wanted is {value}; another --out"
    with pytest.raises(InputError, match=wanted):
        fill(tmp_path / "s", videos, replace(JPEG, **{name: value}))


def test_how_frames_differ_from_the_videos():
    assert RAW.pixels is None and JPEG.pixels == "jpeg of quality 90"
    assert replace(RAW, size=128).pixels == "shorter side 128"
    assert replace(JPEG, size=128).pixels == "shorter side 128, jpeg of quality 90"


@pytest.mark.parametrize("change, text", [
    ({"codec": "png"}, "codec is 'png', expected one of jpeg, raw"),
    ({"codec": "raw"}, "quality is 90, but raw frames have none"),
    ({"quality": 101}, "quality is 101, expected 1 to 100"),
    ({"quality": None}, "quality is None, expected 1 to 100"),
    ({"frame_step": 0}, "frame_step is 0, expected 1 to"),
    ({"context": True}, "context is True, expected 1 to 1024"),
    ({"size": 8}, "size is 8, expected 16 to"),
])
def test_settings_that_cannot_be(tmp_path, change, text):
    with pytest.raises(InputError, match=text):
        FrameStoreWriter(tmp_path / "s", replace(JPEG, **change))
    assert not (tmp_path / "s").exists()


def test_a_bad_video_has_its_reason(tmp_path, videos):
    videos[1].path.write_bytes(b"no video")
    videos[2].path.unlink()
    assert len(fill(tmp_path / "s", videos, RAW)) == 4
    # What could not be read may be readable the next time.
    assert fill(tmp_path / "s", videos, RAW) == ["v_3"]
    store = FrameStore(tmp_path / "s")
    for video, reason in ((videos[1], "not a video that"), (videos[2], "no such file")):
        for ask in (store.count, store.frames):
            with pytest.raises(VideoError, match=f"{video.path.name}: {reason}"):
                ask(video, 2)


def test_frames_of_a_video_that_is_gone_are_kept(tmp_path, videos):
    """Unless they are damaged, and that is looked for."""
    fill(tmp_path / "s", videos, RAW)
    videos[0].path.unlink()
    before = (tmp_path / "s" / "videos.jsonl").read_bytes()
    assert fill(tmp_path / "s", videos, RAW, repair=True) == []
    assert (tmp_path / "s" / "videos.jsonl").read_bytes() == before
    FrameStore(tmp_path / "s").frames(videos[0], 2)
    shard = tmp_path / "s" / "frames-00000.bin"
    shard.write_bytes(bytes(9) + shard.read_bytes()[9:])
    assert fill(tmp_path / "s", videos, RAW) == []
    assert fill(tmp_path / "s", videos, RAW, repair=True) == ["v_30"]


def test_a_changed_byte_is_noticed(tmp_path, videos):
    fill(tmp_path / "s", videos, RAW)
    shard = tmp_path / "s" / "frames-00000.bin"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    store = FrameStore(tmp_path / "s")
    with pytest.raises(InputError, match="v_30.avi are damaged: CRC-32 is .*, expected"):
        store.frames(videos[0], 2, [2])  # whichever frame is asked for
    store.frames(videos[1], 2)
    shard.unlink()
    with pytest.raises(InputError, match="frames-00000.bin: No such file"):
        store.frames(videos[2], 2)


def test_videos_that_are_lacking_are_named(tmp_path, videos):
    fill(tmp_path / "s", videos[:2], RAW)
    with pytest.raises(InputError, match=r"lacks 2 of 4 videos \(the first is v_3\)"):
        FrameStore(tmp_path / "s").match(videos)


def test_another_writer_and_other_folders_are_refused(tmp_path, videos):
    with (FrameStoreWriter(tmp_path / "s", RAW), FrameStoreWriter(tmp_path / "other", RAW),
          pytest.raises(InputError, match="s: another process is writing")):
        FrameStoreWriter(tmp_path / "s", RAW).__enter__()
    with pytest.raises(InputError, match="videos: no store of frames .it has v_1.avi., and not em"):
        fill(videos[0].path.parent, videos, RAW)
    with pytest.raises(InputError, match="videos: no store of frames there"):
        FrameStore(videos[0].path.parent)


LINE = asdict(Line("A/v_A_g01_c01.avi", "g01", 0, 4, None, 2, 2, 0, 0, (12,) * 4, 1, 9, 9, "ab"))


@pytest.mark.parametrize("change, text", [
    ({"sizes": [12, 12, 12]}, "4 frames, but the sizes of 3"),
    ({"sizes": [12, 12, 12, 13]}, "raw frames of 2x2 have 12 bytes each"),
    ({"frames": 3, "sizes": [12] * 3}, "3 frames of an unknown number are not those kept for a"),
    ({"total": 3}, "4 frames of 3 are not those kept for a context of 4"),
    ({"total": 2**62}, "4 frames of"),
    ({"height": 2**40}, "none, or more than"),
    ({"height": 8192, "width": 4321, "sizes": [8192 * 4321 * 3] * 4}, "none, or more than"),
    ({"height": 0}, "none, or more than"),
    ({"offset": -1}, "a number in it is none that can be"),
    ({"shard": 2**63}, "a number in it is none that can be"),
    ({"checksum": "../x"}, "a number in it is none that can be"),
    ({"frames": True}, "a number in it is none that can be"),
    ({"video": 3}, "video is no text"),
    ({"sha256": 3}, "sha256 is no text"),
    ({"bad": "corrupt"}, "there are frames of a bad video"),
    ({"more": 1}, "it has other entries"),
    ({"sizes": 12}, "it is no line of an index"),
])
def test_a_line_that_cannot_be_is_refused(change, text):
    assert Line.parse(json.dumps(LINE).encode(), RAW).end == 48
    with pytest.raises(ValueError, match=text):
        Line.parse(json.dumps(LINE | change).encode(), RAW)


@pytest.mark.parametrize("text", [b"{", b"[" * 100_000, b"\xff", b"[]", b"3"])
def test_a_damaged_index_is_one_line(tmp_path, videos, text):
    fill(tmp_path / "s", videos, RAW)
    with open(tmp_path / "s" / "videos.jsonl", "ab") as file:
        file.write(text + b"\n")
    with pytest.raises(InputError, match="videos.jsonl: line 5 is damaged: it is no"):
        FrameStore(tmp_path / "s")
    assert [n for n, _ in FrameStore(tmp_path / "s", tolerant=True).damage] == [5]


@pytest.mark.parametrize("text, reason", [
    ("{", "cannot be read as JSON"),
    ("[]", "format is None, expected 'recres-frames-1'"),
    ('{"format": "recres-frames-1", "settings": {"frame_step": 1}}', "does not say with which"),
    ('{"format": "recres-frames-1", "settings": {"frame_step": 1, "context": 0}}', "context is 0"),
])
def test_a_damaged_about_is_one_line(tmp_path, text, reason):
    (tmp_path / "about.json").write_text(text)
    with pytest.raises(InputError, match=reason):
        FrameStore(tmp_path)


def test_an_image_of_another_format_is_no_frame(tmp_path, videos):
    """A bitmap whose first numbers read like a JPEG's frame header; its size stands elsewhere."""
    fill(tmp_path / "s", videos[:1], JPEG)
    store = FrameStore(tmp_path / "s")
    bitmap = bytearray(frame_store.cv2.imencode(".bmp", np.zeros((32, 48, 3), np.uint8))[1])
    # where its pixels begin is read as the width
    bitmap[54:54] = bytes(250)
    bitmap[2:4], bitmap[7:14] = b"\xff\xc0", struct.pack(">Hx", 32) + struct.pack("<I", 304)
    assert frame_store.cv2.imdecode(np.frombuffer(bitmap, np.uint8), 1).shape == (32, 48, 3)
    count = store.lines["v_30"].frames
    line = replace(store.lines["v_30"], sizes=(len(bitmap),) * count)
    store.shard(0).write_bytes(bitmap * count)
    store.note(replace(line, checksum=frame_store.zlib.crc32(bitmap * count)))
    with pytest.raises(InputError, match="frame 0 is no JPEG of 48x32"):
        store.frames(videos[0], 2)


def test_an_image_that_claims_to_be_huge_is_not_decoded(tmp_path, videos, monkeypatch):
    """Before memory is asked for: the size stands in the JPEG's header."""
    fill(tmp_path / "s", videos[:1], JPEG)
    store = FrameStore(tmp_path / "s")
    shard = store.shard(0)
    data = bytearray(shard.read_bytes())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = b"\xff\xff\xff\xff"
    shard.write_bytes(data)
    line = store.lines["v_30"]
    store.note(replace(line, checksum=frame_store.zlib.crc32(bytes(data[: line.end]))))
    monkeypatch.setattr(frame_store.cv2, "imdecode", None)
    with pytest.raises(InputError, match="frame 0 is no JPEG of 48x32"):
        store.frames(videos[0], 2)
