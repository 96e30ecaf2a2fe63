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


def test_ten_kills_leave_no_trace(figures_root, capsys):
    assert kill.main(["--kills", "10", "--root", str(figures_root), "--budget", "120"]) == 0
    (line,) = capsys.readouterr().out.strip().splitlines()
    found = re.match(r"10 kills \((\d+) while a file was being written\) of 1-process runs in \d+ "
                     r"s: every resume succeeded, (\d+) runs ended bit-equal .*, all (\d+) files",
                     line)
    assert found and int(found[2]) >= 1 and int(found[3]) >= 20


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


def test_a_resume_that_fails_is_noticed(figures_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kill, "OPTIONS", (*kill.OPTIONS, "--lr", "1e30"))
    assert kill.main(["--kills", "1", "--root", str(figures_root)]) == 1
    assert "undisturbed: exit status 1: error: update 2: " in capsys.readouterr().err
    assert kill.main(["--kills", "-1"]) == 2
