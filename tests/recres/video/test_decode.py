"""Decoding: the right frames of good files, one line for each kind of bad one."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import recres
from recres import limits
from recres.datasets import Video
from recres.errors import InputError
from recres.video import decode, frame_index
from recres.video.decode import VideoError, iter_frames, read_frames, sample_video
from recres.video.frame_index import Settings, differs
from recres.video.frame_store import FrameStore, FrameStoreWriter, encode_video


@pytest.fixture
def clip(tmp_path, write_video, numbered):
    return write_video(tmp_path / "clip.avi", numbered(30))


@pytest.mark.parametrize("step", [1, 4, 10, 29, 30, 100])
def test_every_step_th_frame(clip, number, step):
    frames = read_frames(clip, step)
    assert frames.dtype == np.uint8 and frames.shape[1:] == (32, 48, 3)
    assert number(frames) == list(range(0, 30, step))


def test_frames_one_at_a_time(clip, number):
    indices, frames = zip(*iter_frames(str(clip), 7), strict=True)
    assert indices == (0, 7, 14, 21, 28)
    assert number(frames) == list(indices)


def test_channels_are_red_green_blue(tmp_path, write_video):
    colour = np.array([200, 100, 20], np.uint8)
    clip = write_video(tmp_path / "clip.avi", np.broadcast_to(colour, (3, 32, 48, 3)).copy())
    assert np.abs(read_frames(clip).astype(int) - colour).max() <= 6  # JPEG


@pytest.mark.parametrize("declared", [3, 3000])
def test_the_frame_count_in_the_header_is_not_believed(clip, declared):
    data = bytearray(clip.read_bytes())
    for tag, offset in ((b"avih", 8 + 16), (b"strh", 8 + 32)):  # dwTotalFrames, dwLength
        place = data.index(tag) + offset
        assert int.from_bytes(data[place : place + 4], "little") == 30
        data[place : place + 4] = declared.to_bytes(4, "little")
    clip.write_bytes(data)
    assert len(read_frames(clip)) == 30


@pytest.mark.parametrize("length", [1, 2, 4, 9, 20, 21, 30])
@pytest.mark.parametrize("context", [1, 2, 3, 5])
def test_short_videos_are_sampled_more_finely(
    tmp_path, write_video, numbered, number, length, context
):
    clip = write_video(tmp_path / "clip.avi", numbered(length))
    expected = list(decode.sample_indices(length, 10, context))
    assert number(sample_video(clip, 10, context)) == expected


def test_frames_are_in_memory_once(numbered):
    """Twice, while they were put together."""
    frames = [frame.copy() for frame in numbered(5)]
    expected, there = np.stack(frames), [weakref.ref(frame) for frame in frames]
    seen = []

    class Frames(list):
        def __getitem__(self, place):
            seen.append([frame() is not None for frame in there])
            return super().__getitem__(place)

    watched = Frames(frames)
    del frames
    np.testing.assert_array_equal(decode._stack(watched), expected)
    assert watched == [] and seen[-1] == [True, False, False, False, False]


def test_a_frame_repeated_for_a_long_context_counts(tmp_path, write_video, numbered, monkeypatch):
    """A frame of a hundred megabytes, a context of a thousand: it took all memory."""
    clip = write_video(tmp_path / "clip.avi", numbered(2))
    nbytes = read_frames(clip)[0].nbytes
    monkeypatch.setattr(limits, "VIDEO_BYTES", 8 * nbytes)
    assert len(sample_video(clip, 10, 8)) == 8
    with pytest.raises(VideoError, match=f"too large: 9 frames have {9 * nbytes} bytes, more than"):
        sample_video(clip, 10, 9)
    monkeypatch.undo()
    video = Video(clip, 0, "g01", "v_A_g01_c01")
    with FrameStoreWriter(tmp_path / "store", Settings(10, 9)) as writer:
        line, data = encode_video(video, writer.settings)
        writer.add(replace(line, video=f"A/{video.name}.avi"), data)
    monkeypatch.setattr(limits, "VIDEO_BYTES", 8 * nbytes)
    store = FrameStore(tmp_path / "store")
    assert len(store.frames(video, 8)) == 8
    with pytest.raises(VideoError, match="too large: 9 frames"):
        store.frames(video, 9)


def test_a_file_that_is_too_large_is_not_read(clip, monkeypatch):
    """Of a terabyte, which takes no room on disk: it was read whole for its sha256."""
    most = clip.stat().st_size
    monkeypatch.setattr(limits, "VIDEO_FILE_BYTES", most)
    assert len(read_frames(clip)) == 30
    video, settings = Video(clip, 0, "g01", "v_A_g01_c01"), Settings(2, 2)
    whole, _ = encode_video(video, settings)
    with open(clip, "ab") as file:
        file.write(b"\0")
    monkeypatch.setattr(frame_index.hashlib, "file_digest", lambda *_: pytest.fail("it was read"))
    why = f"{most + 1} bytes, more than the {most} of recres.limits.VIDEO_FILE_BYTES"
    refuse(clip, why)
    line, data = encode_video(video, settings)
    assert (line.bad, line.sha256, data) == (why, None, b"")
    assert "VIDEO_FILE_BYTES" in str(differs(replace(whole, file_size=most + 1), clip))


def refuse(path, reason):
    with pytest.raises(VideoError) as caught:
        read_frames(path)
    assert str(caught.value) == f"{path}: {reason}"
    assert isinstance(caught.value, InputError)
    assert caught.value.path == Path(path) and caught.value.reason == reason


def test_missing_file(tmp_path):
    refuse(tmp_path / "none.avi", "no such file")
    refuse(str(tmp_path / "none" / "none.avi"), "no such file")


def test_folder(tmp_path):
    refuse(tmp_path, "a folder, expected a video file")


def test_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.avi")
    refuse(tmp_path / "pipe.avi", "not a regular file")


def test_empty_file(tmp_path):
    (tmp_path / "zero.avi").touch()
    refuse(tmp_path / "zero.avi", "empty (0 bytes)")


def test_no_permission(clip, monkeypatch):
    def denied(path, mode):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(decode, "open", denied, raising=False)  # root may open anything
    refuse(clip, "permission denied")


def test_text(tmp_path):
    path = tmp_path / "text.avi"
    path.write_text("It was a dark and stormy night. " * 100)
    refuse(path, "not a video that OpenCV can open")


def test_random_bytes(tmp_path):
    path = tmp_path / "noise.avi"
    path.write_bytes(np.random.default_rng(0).bytes(20_000))
    refuse(path, "not a video that OpenCV can open")


def test_still_image(tmp_path):
    path = tmp_path / "still.png"
    cv2.imwrite(str(path), np.zeros((32, 48, 3), np.uint8))
    refuse(path, "a still image, not a video")


def test_video_cut_short(clip):
    data = clip.read_bytes()
    clip.write_bytes(data[: len(data) // 2])
    refuse(clip, f"cut short: {len(data) // 2} bytes of {len(data)}")


def test_no_frame_can_be_decoded(clip):
    data = clip.read_bytes()
    start = data.index(b"movi") + 4
    clip.write_bytes(data[:start] + bytes(len(data) - start))
    refuse(clip, "corrupt: no frame can be decoded")


class Frames:
    """Stands in for cv2.VideoCapture: some versions let the size of frames change, some crop."""

    def __init__(self, *frames):
        self.frames = list(frames)

    def isOpened(self):  # noqa: N802
        return True

    def grab(self):
        return bool(self.frames)

    def retrieve(self):
        frame = self.frames.pop(0)
        return frame is not None, frame

    def get(self, which):
        return {cv2.CAP_PROP_FRAME_WIDTH: 48.0, cv2.CAP_PROP_FRAME_HEIGHT: 32.0}[which]

    def release(self):
        self.frames = None


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (
            np.zeros((64, 48, 3), np.uint8),
            "frames change size: frame 2 is 48x64, the first is 48x32",
        ),
        (None, "corrupt: frame 2 cannot be decoded"),
    ],
)
def test_what_goes_wrong_in_the_middle(clip, monkeypatch, last, reason):
    good = np.zeros((32, 48, 3), np.uint8)
    capture = Frames(good, good, last)
    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: capture)
    refuse(clip, reason)
    assert capture.frames is None  # released


def test_what_opencv_raises(clip, monkeypatch):
    def broken(*_):
        return cv2.resize(np.zeros((0, 0), np.uint8), (4, 4))

    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: Frames())
    monkeypatch.setattr(Frames, "grab", broken)
    with pytest.raises(VideoError, match="corrupt: OpenCV says [^\n]*empty[^\n]*$"):
        read_frames(clip)


def test_a_name_that_is_no_text(clip):
    name = os.fsdecode(os.fsencode(clip.parent) + b"/\xff.avi")
    clip.rename(name)
    with pytest.raises(VideoError, match="the name is not valid UTF-8"):
        read_frames(name)


def test_names_that_ffmpeg_would_read_otherwise(clip, monkeypatch):
    monkeypatch.chdir(clip.parent)
    for name in ("concat:clip.avi", "http:clip.avi", "clip %03d.avi", "Übung.avi"):
        os.replace(clip, name)
        clip = Path(name)
        assert len(read_frames(name)) == 30


def test_a_step_below_one_is_refused(clip):
    with pytest.raises(ValueError, match="step is 0"):
        read_frames(clip, 0)


@pytest.mark.parametrize(("level", "silent"), [(None, True), ("32", False)])
def test_nothing_else_is_printed(clip, level, silent):
    """FFmpeg does complain about this file when it may."""
    data = bytearray(clip.read_bytes())
    for i in range(data.index(b"movi") + 100, data.index(b"idx1"), 97):
        data[i] ^= 0xFF
    clip.write_bytes(data)
    (clip.parent / "text.avi").write_text("no video")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OPENCV_")}
    environment["PYTHONPATH"] = str(Path(recres.__file__).parents[1])
    if level is not None:
        environment["OPENCV_FFMPEG_LOGLEVEL"] = level
    code = (
        "import sys\n"
        "from recres.video.decode import VideoError, read_frames\n"
        "for path in sys.argv[1:]:\n"
        "    try: read_frames(path)\n"
        "    except VideoError: pass\n"
    )
    paths = [str(clip), str(clip.parent / "text.avi"), str(clip.parent / "none.avi")]
    command = [sys.executable, "-c", code, *paths]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0
    assert (run.stdout + run.stderr == "") is silent


def test_a_real_clip(shared):
    folder = shared / "ucf101-7" / "UCF-101"
    frames = read_frames(folder / "BabyCrawling/v_BabyCrawling_g01_c01.avi", 10)
    assert frames.shape == (17, 240, 320, 3)  # of 165
    assert frames.std() > 20  # a picture, not a blank


def test_a_real_clip_cut_short(shared, tmp_path):
    data = (shared / "ucf101-7/UCF-101/Lunges/v_Lunges_g01_c01.avi").read_bytes()
    path = tmp_path / "cut.avi"
    path.write_bytes(data[: len(data) // 2])
    refuse(path, f"cut short: {len(data) // 2} bytes of {len(data)}")
