"""A run is killed ten times and ends as if it had not been; and the bench notices where not."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from bench import kill
from recres import checkpoint
from recres.commands import RunFailed
from tensorlite import distributed
from tests.tensorlite.test_distributed import mpiexec


def test_ten_kills_leave_no_trace(figures_root, capsys):
    mpiexec()  # or skip
    assert kill.main(["--kills", "10", "--root", str(figures_root), "--budget", "240"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    midst = 0
    for processes, line in zip((1, 2), lines, strict=True):
        found = re.match(
            rf"5 kills of {processes}-process runs in \d+ s \((.*); (\d+) between the first and "
            r"the last update, \d+ while a file was being written\): every resume succeeded, from "
            r"the last checkpoint, (\d+) runs ended bit-equal .*, all (\d+) files", line)
        assert found and int(found[3]) >= 1 and int(found[4]) >= 15, line
        assert sum(map(int, re.findall(r" (\d+)(?:,|$)", found[1]))) == 5
        midst += int(found[2])
    assert midst >= 1, lines


@pytest.fixture
def copy(trained, tmp_path) -> Path:
    """A run that may be harmed."""
    return shutil.copytree(trained, tmp_path / "run")


def test_a_run_is_like_itself(trained, copy):
    assert kill.check_folder(copy) == 7
    kill.compare(trained, copy)


@pytest.mark.parametrize("name", ["best.safetensors", "checkpoint-1.safetensors", "scores.npz",
                                  "config.json", "result.json", "videos.json"])
def test_a_file_that_is_half_written_is_named(copy, name):
    data = (copy / name).read_bytes()
    (copy / ".tmp-1-other.json").write_bytes(data[:3])  # not under its final name
    assert kill.check_folder(copy)
    (copy / name).write_bytes(data[:len(data) // 2])
    with pytest.raises(RunFailed, match=f"^half written: .*{name}: "):
        kill.check_folder(copy)


def test_lines_that_the_log_lacks_are_noticed(copy):
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(RunFailed, match="metrics.jsonl: lacks lines of the 8 updates"):
        kill.check_folder(copy)


@pytest.mark.parametrize("name", ["best.safetensors", "checkpoint.safetensors"])
def test_a_bit_that_differs_is_noticed(trained, copy, name):
    arrays, metadata = checkpoint.read(copy / name)
    key = next(key for key in arrays if key.endswith("fc.weight"))
    arrays[key] = np.nextafter(arrays[key], np.inf, dtype=arrays[key].dtype)
    checkpoint.write(copy / name, arrays, metadata)
    with pytest.raises(RunFailed, match=f"{name}: 1 of .* {re.escape(key)} first"):
        kill.compare(trained, copy)


def test_another_result_is_noticed(trained, copy):
    path = copy / "result.json"
    path.write_text(path.read_text().replace('"video_error": ', '"video_error": 1'))
    with pytest.raises(RunFailed, match="result.json: is another result"):
        kill.compare(trained, copy)


def test_another_loss_is_noticed(trained, copy):
    path = copy / "metrics.jsonl"
    path.write_text(path.read_text().replace('"loss": ', '"loss": 1', 1))
    with pytest.raises(RunFailed, match="metrics.jsonl: has another update than"):
        kill.compare(trained, copy)


def test_a_run_that_does_not_go_on_from_its_checkpoint_is_noticed(copy):
    kill.check_resumed(copy, "resumed   after update 8, in epoch 3\n", 8, must=True)
    kill.check_resumed(copy, "", 8, must=False)  # killed before it could say so
    for said, saved, must in (("resumed   after update 7, in epoch 2\n", 8, False),
                              ("epoch   1/2\n", 8, True), ("", 9, False)):
        with pytest.raises(RunFailed, match=f"but the checkpoint had {saved}"):
            kill.check_resumed(copy, said, saved, must)


@pytest.mark.parametrize(("before", "says"), [
    ("", "was trained by 1 processes, not 2"),
    ("sleep 9 &", "after the end there was still: helper")])
def test_a_launcher_that_starts_one_process_or_leaves_one_is_noticed(
        before, says, figures_root, tmp_path, monkeypatch, capsys):
    launcher = tmp_path / "mpiexec"
    launcher.write_text(f'#!/bin/sh\nshift 2\n{before}\nexec "$@"\n')
    launcher.chmod(0o755)
    monkeypatch.setattr(distributed, "mpiexec", lambda: str(launcher))
    monkeypatch.setattr(kill, "ORPHANS_END", 0.5)
    assert kill.main(["--kills", "1", "--processes", "2", "--root", str(figures_root)]) == 1
    assert says in capsys.readouterr().err


def test_a_resume_that_fails_is_noticed(figures_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kill, "OPTIONS", (*kill.OPTIONS, "--lr", "1e30"))
    assert kill.main(["--kills", "1", "--root", str(figures_root)]) == 1
    assert "undisturbed: exit status 1: error: update 2: " in capsys.readouterr().err
    assert kill.main(["--kills", "-1"]) == 2
