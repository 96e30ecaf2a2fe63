"""Event files for TensorBoard."""

from __future__ import annotations

import errno
import os
import signal
import struct
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from recres import train
from recres.runs import MetricsLog, read_metrics
from recres.tensorboard import scalars


def events(folder: Path) -> list[tuple[int, str, float, float]]:
    """(step, tag, value, time) of all event files, in the order in which they stand there."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = []
    for path in sorted((folder / "tensorboard").glob("events.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
            at += length + 16
            found += [(event.step, value.tag, value.simple_value, event.wall_time)
                      for value in event.summary.value]
    return found


def expected(folder: Path) -> Counter:
    log = folder / "metrics.jsonl"
    return Counter((line["update"], name) for kind in ("update", "evaluation")
                   for line in read_metrics(log, kind) for name, _ in scalars(line))


def test_all_that_is_logged_is_there(tiny, tmp_path):
    pytest.importorskip("tensorboardX")
    assert train.main(["--out", str(tmp_path / "run"), *tiny, "--tensorboard"]) == 0
    found = events(tmp_path / "run")
    assert Counter((step, tag) for step, tag, *_ in found) == expected(tmp_path / "run")
    tags = {tag for _, tag, *_ in found}
    assert {"training/loss", "training/learning_rate", "gradient/norm", "gradient/block4",
            "time/data", "time/compute", "holdout/video_error", "holdout/loss"} <= tags
    line = read_metrics(tmp_path / "run" / "metrics.jsonl")[2]
    (value,) = [value for step, tag, value, _ in found if (step, tag) == (3, "training/loss")]
    assert value == pytest.approx(line["loss"])


def test_a_resumed_run_has_no_step_twice_and_none_missing(tiny, tmp_path, monkeypatch):
    """After an interrupt, and after a process that ended without a word past its checkpoint."""
    pytest.importorskip("tensorboardX")
    folder, append = tmp_path / "run", MetricsLog.append
    options = [*tiny, "--tensorboard"]

    class Killed(BaseException):
        pass

    def stops(number, action):
        done = []

        def appends(self, line):
            append(self, line)
            if line["kind"] == "update" and line["update"] == number and not done:
                done.append(True)
                action()

        monkeypatch.setattr(MetricsLog, "append", appends)

    def die():
        raise Killed

    stops(2, lambda: signal.raise_signal(signal.SIGINT))
    assert train.main(["--out", str(folder), *options]) == 130
    stops(7, die)
    with pytest.raises(Killed):
        train.main(["--resume", str(folder)])
    assert train.main(["--resume", str(folder)]) == 0
    found = events(folder)
    counted = Counter((step, tag) for step, tag, *_ in found)
    assert counted == expected(folder) and set(counted.values()) == {1}
    assert max(step for step, *_ in found) == 8
    times = [moment for *_, moment in found]
    assert times == sorted(times)


def test_a_full_disk_ends_the_run_and_nothing_is_lost(tiny, tmp_path, monkeypatch, capsys):
    """Not so that the run waits for a writer that is no more."""
    record_writer = pytest.importorskip("tensorboardX.record_writer")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    folder, write, times = tmp_path / "run", record_writer.RecordWriter.write, []

    def full(self, data):
        times.append(len(data))
        if len(times) > 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(record_writer.RecordWriter, "write", full)
        assert train.main(["--out", str(folder), *tiny, "--tensorboard"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "cannot be written: No space left on device; the state after update 1 is saved" in line
    assert train.main(["--resume", str(folder)]) == 0
    assert Counter((step, tag) for step, tag, *_ in events(folder)) == expected(folder)


def test_without_the_package_it_is_one_line(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert train.main(["--out", str(tmp_path / "run"), *tiny, "--tensorboard"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "--tensorboard: needs tensorboardX (pip install 'recres[tensorboard]')" in line
    assert not (tmp_path / "run").exists()


def test_only_what_is_asked_for(trained):
    assert not (trained / "tensorboard").exists()
    assert not list(scalars({"kind": "nonfinite", "update": 1, "epoch": 1}))
    assert dict(scalars({"kind": "evaluation", "update": 1, "epoch": 1, "training_loss": 2.0})) == {
        "epoch/training_loss": 2.0}


