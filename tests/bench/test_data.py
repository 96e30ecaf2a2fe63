"""`python -m bench.data` on a few real clips: sides are compared before they are timed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bench import batches, data
from recres.commands import RunFailed
from recres.datasets import Video


def test_every_row_has_a_figure(shared, monkeypatch, capsys):
    monkeypatch.setattr(data, "TURNS", 1)
    arguments = ["--root", str(shared / "ucf101-7"), "--clips", "2", "--image-size", "32"]
    assert data.main([*arguments, "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    names = [f"{entry['group']}: {entry['name']}" for entry in entries]
    for name in ("whole videos: decoded (recres)", "whole videos: decoded (OpenCV alone)",
                 "whole videos: store, raw", "whole videos: store, jpeg of size 128",
                 "chunks: store, jpeg", "batches: videos, 0 workers",
                 "batches: videos, 2 workers", "batches: store, jpeg, 1 workers"):
        assert name in names
    assert all(entry["frames_s"] > 0 and entry["ratio"] > 0 for entry in entries)
    assert entries[names.index("whole videos: store, raw")]["difference"] == 0
    assert data.main([*arguments[:2], "--clips", "0"]) == 2


def test_batches_that_differ_are_not_timed():
    class Side:
        in_flight = 1

        def __init__(self, value):
            self.value = value

        def load(self, chunks, epoch=None, backwards=False):
            return np.full((len(chunks), 2), self.value, np.float32)

    same, other = {"a": Side(1), "b": Side(1)}, {"a": Side(1), "b": Side(2)}
    batches.refuse_difference(same, [[1, 2]])
    with pytest.raises(RunFailed, match="batches: b: other bits than a"):
        batches.refuse_difference(other, [[1, 2]])
    assert [entry["name"] for entry in batches.time_all(same, [[1, 2]], 2)] == ["a", "b"]


def test_sides_that_disagree_are_not_timed(tmp_path):
    video = Video(tmp_path / "v.avi", 0, "g01", "v")
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    ours = data.Row("g", "ours", lambda video: frames, 0.0)
    assert data.difference(ours, ours, [video]) == 0
    for other, text in ((frames + 3, "other: frames differ from ours by 3.00 levels"),
                        (frames[:1], r"other: v has frames \(1, 4, 4, 3\), expected \(2,")):
        row = data.Row("g", "other", lambda video, other=other: other, 2.0)
        with pytest.raises(RunFailed, match=text):
            data.difference(row, ours, [video])
    # Of several frames that are accepted the nearest counts, for each frame by itself.
    mixed = frames + np.array([8, 1], np.uint8)[:, None, None, None]
    accepted = np.stack([frames, frames + 8], axis=1)
    row = data.Row("g", "other", lambda video: mixed, 2.0, lambda video: accepted)
    assert data.difference(row, ours, [video]) == 0.5


def test_a_side_that_finds_its_package_but_not_its_libraries_is_left_out(tmp_path):
    def read(video, step):
        raise OSError("Could not load this library")

    assert not data.installed(read, Video(tmp_path / "v.avi", 0, "g01", "v"))
