"""`python -m recres.predict RUN --camera`: a file stands for the camera, or a camera is faked."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from recres import build, camera, predict, train
from recres.camera import Camera
from recres.datasets import Video
from recres.errors import InputError
from recres.evaluation import predict_logits
from recres.loader import Chunk, FrameLoader
from recres.predict import Live, follow
from recres.runs import Run
from recres.video.decode import iter_frames, read_frames
from recres.video.source import FrameSource

import cv2  # isort: skip


class Fake:
    """A camera of `count` frames of one level each, one every `pause` seconds."""

    count, pause, stalls, opens, opened = 30, 0.0, 0.0, True, []

    def __init__(self, source, *_):
        Fake.opened.append(source)
        self.given, self.released = 0, False

    def isOpened(self):  # noqa: N802
        return self.opens

    def get(self, _):
        return 30.0

    def read(self):
        assert not self.released
        time.sleep(self.pause)
        if self.given == self.count:
            time.sleep(self.stalls)
            return False, None
        self.given += 1
        return True, np.full((48, 64, 3), self.given, np.uint8)

    def release(self):
        self.released = True


@pytest.fixture
def fake(monkeypatch):
    """fake(count=…): the camera from here on."""
    def fake(**values):
        for name, value in {"count": 30, "pause": 0.0, "stalls": 0.0, "opens": True, "opened": [],
                            **values}.items():
            monkeypatch.setattr(Fake, name, value)
        monkeypatch.setattr(camera, "cv2", SimpleNamespace(**{**vars(cv2), "VideoCapture": Fake}))

    return fake


@pytest.fixture
def video(figures_root) -> Path:
    return next((figures_root).rglob("*.avi"))


def test_a_file_as_a_camera_says_what_a_stream_says(trained, video, capsys):
    """All frames are there, and the last answer is that of the last chunk."""
    assert predict.main([str(trained), "--camera", str(video)]) == 0
    out = capsys.readouterr().out
    n = len(list(iter_frames(video)))
    run = Run.open(trained)
    model, classes, convention = build.open_model(run, run.config)
    answers = [posterior for _, posterior in follow(model, run.config, convention, video)]
    assert re.search(rf"--camera {re.escape(str(video))}: {n} frames in [\d.]+ s, [\d.]+ frames/s; "
                     rf"looked at {len(answers)}\n", out)
    label = int(answers[-1].argmax())
    assert f"last: {answers[-1][label]:.2f} {classes[label]}" in out


def test_a_line_a_second(trained, video, monkeypatch, capsys):
    now = [0.0]

    def clock():
        now[0] += 0.05  # two calls a frame and more
        return now[0]

    monkeypatch.setattr(predict.time, "perf_counter", clock)
    assert predict.main([str(trained), "--camera", str(video)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " s  " in line]
    n = len(list(iter_frames(video)))
    assert len(lines) == int((0.05 * n) / 1.0)
    for line in lines:
        assert re.fullmatch(r" +[\d.]+ s +[\d.]+ frames/s  ([\d.]+ \w+|…)", line)


def test_the_labelled_video(trained, video, tmp_path, capsys):
    target = tmp_path / "seen.avi"
    assert predict.main([str(trained), "--camera", str(video), "--write", str(target)]) == 0
    assert f"written to {target}" in capsys.readouterr().out
    before, after = read_frames(video), read_frames(target)
    assert len(after) == len(before) and after.shape[2] >= 320
    assert [p.name for p in tmp_path.iterdir()] == ["seen.avi"]
    assert predict.main([str(trained), "--camera", str(target), "--write", str(target)]) == 2
    assert "is the video itself" in capsys.readouterr().err
    assert predict.main([str(trained), "--camera", str(video), "--write", str(tmp_path)]) == 2
    assert "expected an .avi file" in capsys.readouterr().err


def test_a_very_narrow_video_is_enlarged_only_to_what_can_be_read(tmp_path):
    target = tmp_path / "narrow.avi"
    with predict.labelled(target, 25.0) as write:
        write(np.full((500, 2, 3), 200, np.uint8), "0.50 Walk")
    assert read_frames(target).shape[1] >= 500
    assert predict.label_frame(np.zeros((30000, 2, 3), np.uint8), "0.50 Walk").shape[1] == 4


def test_a_camera(fake, trained, capsys):
    """Every frame is seen or counted as dropped."""
    fake(count=60)
    assert predict.main([str(trained), "--camera", "3"]) == 0
    assert Fake.opened == [3]
    found = re.search(r"--camera 3: (\d+) frames in [\d.]+ s, [\d.]+ frames/s"
                      r"(?:, (\d+) more dropped)?; looked at (\d+)", capsys.readouterr().out)
    assert int(found[1]) + int(found[2] or 0) == 60 and int(found[3]) >= 1


def test_frames_are_numbered_by_the_camera_and_late_ones_dropped(fake):
    fake(count=40)
    with Camera("0") as source:
        assert source.rate == 30.0
        seen = []
        for index, frame in source.frames():
            assert frame.shape == (48, 64, 3)
            seen.append((index, int(frame[0, 0, 0])))
            time.sleep(0.02)
        assert len(seen) + source.dropped == 40 and source.dropped > 20
        assert seen[-1][1] == 40  # the latest is never given up
        assert all(level == index + 1 for index, level in seen)
    assert threading.active_count() < 10


def test_a_camera_that_keeps_up_drops_nothing(fake):
    fake(count=12, pause=0.01)
    with Camera("0") as source:
        seen = [(index, int(frame[0, 0, 0])) for index, frame in source.frames()]
    assert seen == [(i, i + 1) for i in range(12)] and source.dropped == 0


@pytest.mark.parametrize(("values", "text"), [
    ({"opens": False}, "--camera 7: no camera that OpenCV can open"),
    ({"count": 0}, "--camera 7: it was opened, but gives no frame")])
def test_no_camera_is_one_line(fake, trained, tmp_path, capsys, values, text):
    fake(**values)
    for more in ([], ["--write", str(tmp_path / "x.avi")]):
        assert predict.main([str(trained), "--camera", "7", *more]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line == f"error: {text}"
    assert not list(tmp_path.iterdir())


def test_a_camera_that_stalls_is_given_up_and_said(fake, trained, tmp_path, monkeypatch, capsys):
    """What was written until then is whole."""
    fake(count=5, pause=0.03, stalls=1.0)
    for module in (camera, predict):
        monkeypatch.setattr(module, "PATIENCE", 0.2)
    target = tmp_path / "seen.avi"
    assert predict.main([str(trained), "--camera", "0", "--write", str(target)]) == 1
    out, err = capsys.readouterr()
    count = int(re.search(r"--camera 0: (\d+) frames in", out)[1])
    assert 1 <= count <= 5 and f"written to {target}" in out
    assert err == "error: --camera 0: no frame for 0.2 s, given up\n"
    assert len(read_frames(target)) == count


def test_a_labelled_video_that_has_no_room(trained, video, tmp_path, capfd):
    """OpenCV says nothing of it. What was there before stays."""
    target, disk = tmp_path / "seen.avi", tmp_path / "disk"
    assert predict.main([str(trained), "--camera", str(video), "--write", str(target)]) == 0
    disk.mkdir()
    room = target.stat().st_size // 4096 * 4096
    command = ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    capfd.readouterr()
    try:
        target = disk / "seen.avi"
        target.touch()
        assert predict.main([str(trained), "--camera", str(video), "--write", str(target)]) == 1
        assert capfd.readouterr().err == (f"error: {target}: not written, there was no room for "
                                          "all of it: is the disk full?\n")
        assert [(path.name, path.stat().st_size) for path in disk.iterdir()] == [("seen.avi", 0)]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("kept", [0, 6, 100, -1])
def test_a_video_that_is_cut_short_is_not_whole(video, tmp_path, kept):
    path = tmp_path / "cut.avi"
    predict.write_labelled(video, path, "text")
    assert predict._is_whole(path)
    data = path.read_bytes()
    path.write_bytes(data + data)
    assert predict._is_whole(path)  # as large ones are: one after the other
    path.write_bytes(data[:kept])
    assert not predict._is_whole(path)


def test_ctrl_c_is_how_it_ends(fake, trained, tmp_path, capsys):
    """And what was written until then is whole."""
    fake(count=10**6, pause=0.005)
    timer = threading.Timer(1.0, lambda: signal.raise_signal(signal.SIGINT))
    timer.start()
    target = tmp_path / "seen.avi"
    assert predict.main([str(trained), "--camera", "0", "--write", str(target)]) == 0
    timer.join()
    out = capsys.readouterr().out
    count = int(re.search(r"--camera 0: (\d+) frames", out)[1])
    assert target.stat().st_size > 1000 and count > 3


def test_segments_go_by_sliding_chunks(tiny, tmp_path, video, monkeypatch):
    """The last T sampled frames, each chunk by itself."""
    folder = tmp_path / "run"
    assert train.main(["--out", str(folder), *tiny, "--sampling", "segments", "--model", "avgpool",
                       "--context", "3", "--epochs", "1"]) == 0
    run = Run.open(folder)
    model, _, convention = build.open_model(run, run.config)
    live = Live(model, run.config, convention)
    for index, frame in iter_frames(video):
        live.look(index, frame)
    options = run.config
    source = FrameSource([Video(video, 0, "", video.stem)], options.frame_step, 3, 1 << 30)
    n = len(source.frames(0))
    assert live.seen == n
    loader = FrameLoader(source, train.config.replace(options, sampling="chunks"), convention)
    logits = predict_logits(model, loader.load([Chunk(0, 0, n - 3)]))[0].astype(np.float64)
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert live.posterior == pytest.approx(expected, abs=1e-5)


def test_what_cannot_be(trained, video, tmp_path, capsys):
    shutil.copy(trained / "config.json", tmp_path / "no_video.avi")
    for arguments, text in (([], "expected videos, or --camera"),
                            ([str(video), "--camera", "0"], "looks at no other videos"),
                            (["--camera", "0", "--stream"], "is live anyway"),
                            (["--camera", "9999999999"], "9: no camera has such a number"),
                            (["--camera", str(tmp_path / "none.avi")], "there is no such file"),
                            (["--camera", str(tmp_path / "no_video.avi")], "that OpenCV can open")):
        assert predict.main([str(trained), *arguments]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert text in line
    with pytest.raises(InputError, match="--camera x: expected a camera's number or a file"):
        Camera("x")
