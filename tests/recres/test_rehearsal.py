"""`python -m recres.train … --check`: what it says of a run, and that it writes nothing."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from recres import config, rehearsal, train
from recres.build import scan_videos
from recres.loader import FrameLoader
from recres.rehearsal import Enough, duration, rehearse, side_of, some_videos
from recres.runs import MetricsLog, read_metrics
from tensorlite.io import load_safetensors


def files(*folders: Path) -> dict[Path, int]:
    """What is there, and when each file was written to."""
    return {path: 0 if path.is_dir() else path.stat().st_mtime_ns
            for folder in folders for path in folder.rglob("*")}


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Little is measured; the folders for temporary files and of the process are to be watched."""
    monkeypatch.setattr(rehearsal.rehearse, "__defaults__", (0.2,))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.mark.parametrize("more", [(), ("--freeze", "block2", "--mirror"),
                                  ("--features", "block3", "--model", "gru", "--z-norm"),
                                  ("--update-fraction", "1"), ("--holdout", "0")])
def test_it_says_what_there_is_to_say_and_writes_nothing(quick, tiny, figures_root, capsys, more):
    before = files(quick, figures_root)
    assert train.main([*tiny, *more, "--check"]) == 0
    assert files(quick, figures_root) == before
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert {"data", "model", "measured", "reading", "epoch", "whole", "memory",
            "disk"} <= set(lines)
    assert ("features" in lines) == ("--freeze" in more or "--features" in more)
    updates = {"--update-fraction": 1, "--features": 2}.get(more[0] if more else "", 4)
    assert f": {5 if '--holdout' in more else updates} updates" in lines["epoch"]
    assert "2 epochs" in lines["whole"]
    assert "are free in runs" in lines["disk"]


def test_it_counts_up_to_the_whole(quick, tiny, figures_root):
    """Twice the epochs, twice the time; an update of all chunks takes as long as the epoch."""
    options = config.resolve({"root": str(figures_root), "width": 4, "image_size": 32, "batch": 12,
                              "holdout": 0.3, "threads": 1, "epochs": 3})
    found = rehearse(options, str)
    assert found.updates == 4 and found.epochs == 3 and found.measured >= 3
    assert found.epoch == pytest.approx(4 * found.update)
    assert found.whole == pytest.approx(found.reading + 3 * found.an_epoch + found.test)
    assert found.gpu is None and found.memory > 50e6 and found.features == found.frames == 0
    found = rehearse(config.replace(options, workers=1), str, seconds=0)
    assert found.frames > 50e6  # a worker begins with nothing
    found = rehearse(config.replace(options, update_fraction=1.0), str)
    assert found.updates == 1 and found.epoch == found.update
    found = rehearse(config.replace(options, updates=10), str)
    assert found.epochs == 2.5


def test_it_predicts_the_time_of_an_epoch(quick, tiny, figures_root, monkeypatch):
    """Loading is slowed down so that the time does not depend on what else the machine does."""
    load = FrameLoader.load

    def slow(self, chunks, epoch=None, backwards=False):
        time.sleep(0.06 * len(chunks))
        return load(self, chunks, epoch, backwards)

    monkeypatch.setattr(FrameLoader, "load", slow)
    options = [*tiny, "--batch", "4"]
    args = train.parser().parse_args(options)
    found = rehearse(config.resolve(config.given(args)), str, 1.0)
    assert found.waited > 0.1
    folder = quick / "run"
    assert train.main(["--out", str(folder), *options]) == 0
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if line["epoch"] == 2]
    actual = sum(line["data_time"] + line["compute_time"] for line in lines)
    assert found.epoch == pytest.approx(actual, rel=0.3)
    size = (folder / "checkpoint.safetensors").stat().st_size
    # (a line more in the checkpoint's counters, where there was a best epoch already)
    assert 4 * (size - 500) < found.disk <= 4 * size


def test_features_are_made_of_a_few_and_the_store_is_left_alone(quick, tiny, figures_root, capsys):
    """Of a full store nothing is to be made; of none, as many bytes as the run writes."""
    options = [*tiny, "--freeze", "block2", "--store", str(quick / "store")]
    args = train.parser().parse_args(options)
    wanted = config.resolve(config.given(args))
    empty = rehearse(wanted, str)
    assert not (quick / "store").exists()
    assert train.main(["--out", str(quick / "run"), *options]) == 0
    size = sum(path.stat().st_size for path in (quick / "store").rglob("features.f16"))
    checkpoint = (quick / "run" / "checkpoint.safetensors").stat().st_size
    assert empty.disk - 4 * checkpoint == size > 0 and empty.features > 0
    before = files(quick / "store")
    full = rehearse(wanted, str)
    assert full.disk == 4 * checkpoint and full.features == 0
    assert files(quick / "store") == before


@pytest.mark.parametrize("size", [1, 2, 3])
def test_evaluation_is_measured_in_batches_as_large_as_the_runs(size, figures_root, monkeypatch):
    """A batch costs as much as a full one here, however few chunks are in it; of each round,
    processes make one each."""
    videos = scan_videos(config.resolve({"root": str(figures_root), "threads": 1, "context": 2,
                                         "frame_step": 1}), str)
    now, measured = [0.0], []
    processes = SimpleNamespace(rank=0, size=size)

    def score(model, loader, part, side, processes):
        measured.append(len(part.chunks(side)))
        now[0] += 0.32 * -(-measured[-1] // (32 * processes.size))

    monkeypatch.setattr(rehearsal, "score", score)
    monkeypatch.setattr(rehearsal.time, "perf_counter", lambda: now[0])
    found = rehearsal._evaluation(SimpleNamespace(model=None, processes=processes),
                                  side_of(videos, "holdout", []), None)
    found *= rehearsal._own_chunks(videos, "test", processes)
    whole = len(videos.chunks("test"))
    two = len(side_of(videos, "test", videos.sides["test"][:2]).chunks("test"))
    assert measured[-1] >= min(64 * size, whole) > two
    assert found == pytest.approx(0.32 * -(-whole // (32 * size)), rel=0.3)


def test_a_few_videos(figures_root):
    options = config.resolve({"root": str(figures_root), "holdout": 0.3, "threads": 1})
    videos = scan_videos(options, str)
    few = some_videos(videos, 5, 4)
    assert 5 <= len(few.chunks("train")) < 8
    assert len(few.sides["holdout"]) == len(few.sides["test"]) == 4
    assert some_videos(videos, 10**9, 4).sides["train"] == videos.sides["train"]
    assert len(videos.sides["test"]) == 10


def test_what_cannot_be_checked(quick, tiny, trained, capsys, monkeypatch):
    for arguments, status, text in (
            (["--resume", str(trained)], 2, "--check: is of a run to be begun"),
            (["--out", str(trained)], 2, "not empty"),
            (["--root", str(quick / "none")], 2, "no figures there"),
            (["--lr", "-1"], 2, "--lr -1.0: expected more than 0")):
        assert train.main([*tiny, *arguments, "--check"]) == status
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert text in line
    monkeypatch.setattr(FrameLoader, "load", lambda self, chunks, *_: np.full(
        (len(chunks), 2, 32, 32, 3), np.nan, np.float32))
    assert train.main([*tiny, "--check"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: update 1: the loss is nan") and "replay" not in line
    assert not list((quick / "tmp").iterdir())


def test_a_check_does_not_change_a_run(quick, tiny, trained):
    assert train.main([*tiny, "--check"]) == 0
    assert train.main(["--out", str(quick / "run"), *tiny]) == 0
    one, two = (load_safetensors(folder / "checkpoint.safetensors")[0]
                for folder in (trained, quick / "run"))
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)


def test_enough(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(rehearsal.time, "monotonic", lambda: now[0])
    stop, asked = Enough(seconds=5.0, least=3), []
    for _ in range(7):
        now[0] += 2.0
        stop.updated()
        asked.append(stop.requested)
    assert asked == [False] * 3 + [True] * 4  # so many at least, and so many seconds
    stop, asked = Enough(seconds=0.0, least=3), []
    for _ in range(5):
        now[0] += 2.0
        stop.updated()
        asked.append(stop.requested)
    assert asked == [False] * 2 + [True] * 3


def test_a_signal_ends_it_at_once(quick, tiny, monkeypatch, capsys):
    """It is not taken for the end of the updates."""
    append = MetricsLog.append

    def appends(self, line):
        append(self, line)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(MetricsLog, "append", appends)
    assert train.main([*tiny, "--check"]) == 130
    said = capsys.readouterr()
    assert said.err.strip() == "interrupted" and "measured" not in said.out
    assert not list((quick / "tmp").iterdir())


def test_durations():
    assert [duration(s) for s in (0.0042, 3.21, 59.9, 60, 250.4, 3600, 7500, 273600)] == [
        "4 ms", "3.2 s", "59.9 s", "1 min", "4 min 10 s", "1 h", "2 h 5 min", "3 d 4 h"]


@pytest.mark.long
def test_an_epoch_of_real_clips(shared, tmp_path):
    """Predicted within 30 %; once more where the machine was busy with something else."""
    options = ["--data", "ucf101", "--root", str(shared / "ucf101-7"), "--image-size", "64",
               "--backbone", "resnet18", "--width", "8", "--batch", "8", "--context", "2",
               "--chunks-per-video", "5", "--epochs", "2", "--threads", "1"]
    if not (shared / "ucf101-7").is_dir():
        pytest.skip("no real clips")
    wanted = config.resolve(config.given(train.parser().parse_args(options)))
    errors = []
    for attempt in range(3):
        before = rehearse(wanted, str, 4.0).epoch
        folder = tmp_path / str(attempt)
        assert train.main(["--out", str(folder), *options]) == 0
        after = rehearse(wanted, str, 4.0).epoch
        lines = [line for line in read_metrics(folder / "metrics.jsonl") if line["epoch"] == 2]
        actual = sum(line["data_time"] + line["compute_time"] for line in lines)
        if abs(before / actual - 1) < 0.3:
            return
        errors.append(before / actual - 1)
        # Had the machine other things to do meanwhile? Then it says so of two checks as well.
        assert abs(before / after - 1) > 0.15, f"off by {errors}, load {os.getloadavg()[0]:.1f}"
    pytest.skip(f"the machine is too busy for its times to be compared: off by {errors}")
