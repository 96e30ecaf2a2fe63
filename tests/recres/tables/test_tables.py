"""`recres.tables` on videos as small as they get: what runs, what is kept, and what is shown."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from recres.errors import InputError
from recres.scores import read_scores
from recres.tables import __main__ as tables
from recres.tables import runner
from recres.tables.budget import Cost, parse_duration, updates_within

ROOT = Path(__file__).parents[3]
SMALL = ["--width", "4", "--image-size", "32", "--threads", "1"]


def arguments(root: Path, out: Path, *numbers: str, updates: str = "2") -> list[str]:
    return [*numbers, "--root", str(root), "--out", str(out), *SMALL, "--updates", updates]


@pytest.fixture(scope="module")
def done(figures_root, tmp_path_factory):
    """Tables 1 and 5, complete."""
    out = tmp_path_factory.mktemp("tables") / "out"
    assert tables.main(arguments(figures_root, out, "1", "5")) == 0
    return out


def test_every_cell_has_a_number(done):
    for number in (1, 5):
        table = json.loads((done / f"table-{number}.json").read_text())
        for row in table["rows"]:
            for entry in row["entries"]:
                if entry["runs"]:
                    assert 0 <= entry["video_error"] <= 1, row["name"]
        for ending in ("md", "csv", "png"):
            assert (done / f"table-{number}.{ending}").stat().st_size > 100


def test_a_table_shows_what_its_runs_say(done):
    (row,) = [row for row in json.loads((done / "table-5.json").read_text())["rows"]
              if row["name"] == "two-stream"]
    appearance, motion, both = row["entries"]
    cells = [done / "cells" / f"{name}-split1-seed0" for name in ("none-frames", "flow")]
    for entry, cell in zip((appearance, motion), cells, strict=True):
        assert entry["video_error"] == json.loads((cell / "result.json").read_text())["video_error"]
    scores = [read_scores(cell / "scores.npz") for cell in cells]
    assert scores[0].names == scores[1].names
    mean = (scores[0].posteriors + scores[1].posteriors) / 2
    assert both["video_error"] == pytest.approx((mean.argmax(axis=1) != scores[0].labels).mean())


def test_the_frozen_backbone_is_the_network_that_was_trained_on_single_frames(done):
    config = json.loads((done / "cells/block3-gru-split1-seed0/config.json").read_text())
    backbone = done / "cells/none-frames-split1-seed0"
    assert config["options"]["weights"] == str((backbone / "best.safetensors").absolute())
    assert config["model"]["weights"]["initialised"] == []
    assert {path.name for path in (backbone / "features").iterdir()} == {
        "block2-pooled", "block3-pooled", "block4-pooled"}


def test_what_is_complete_is_not_run_again(done, figures_root, monkeypatch, capsys):
    def run(*args, **kwargs):
        raise AssertionError("ran again")

    monkeypatch.setattr(runner, "Job", run)
    before = (done / "table-1.json").read_bytes()
    capsys.readouterr()
    assert tables.main(arguments(figures_root, done, "1", "5")) == 0
    assert (done / "table-1.json").read_bytes() == before


@pytest.mark.parametrize(("more", "message"), [
    (["--lr", "0.5"], "--lr: "), (["--image-size", "48"], "--image-size: "),
    (["--budget", "1h", "--updates", "2"], "--updates 2: --budget says how many"),
    (["--budget", "soon"], "expected a time such as 90s"), (["--seeds", "0"], "--seeds 0: "),
    (["--budget", "1h"], "--budget: "), (["--updates", "9"], "--updates 9: "),
    (["--skip", "conv"], "unrecognized arguments: --skip conv"),
])
def test_refused(done, figures_root, capsys, more, message):
    """Other options than those that the tables in the folder were made with, and nonsense."""
    given = arguments(figures_root, done, "1")
    given = given[:-2] if "--budget" in more or "--updates" in more else given
    assert tables.main([*given, *more]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_dry_run_lists_and_trains_nothing(figures_root, tmp_path, capsys):
    out = tmp_path / "out"
    assert tables.main([*arguments(figures_root, out, "2"), "--dry-run", "--seeds", "2"]) == 0
    text = capsys.readouterr().out
    assert "12 runs of 6 cells, 2 updates a network" in text
    assert "conv-mid_block4-split1-seed1" in text and not (out / "cells").exists()


def test_a_cell_that_fails_does_not_lose_the_others(figures_root, tmp_path, monkeypatch, capsys):
    job = runner.Job

    class Failing(job):
        def do(self):
            if self.config.skip == "conv":
                raise InputError("no conv today")
            super().do()

    out = tmp_path / "out"
    given = [*arguments(figures_root, out, "3", updates="1")]
    monkeypatch.setattr(runner, "Job", Failing)
    assert tables.main(given) == 1
    assert "no conv today" in capsys.readouterr().err
    table = json.loads((out / "table-3.json").read_text())
    status = {run["cell"]: run["status"] for row in table["rows"] for entry in row["entries"]
              for run in entry["runs"]}
    assert status["conv-block4"] == status["conv-same-frame"] == "failed"
    assert status["identity"] == status["none-last"] == status["conv_nonlinear"] == "complete"
    assert "failed: no conv today" in (out / "table-3.md").read_text()
    monkeypatch.undo()
    assert tables.main(given) == 0  # what failed is tried again


def test_a_disk_too_small_for_the_features_is_refused_before_anything_runs(
        figures_root, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    monkeypatch.setattr(runner, "free_bytes", lambda folder: 1000)
    given = [*arguments(figures_root, out, "2"), "--freeze", "block1"]
    assert tables.main(given) == 2
    captured = capsys.readouterr()
    # 40 videos of 4 frames; block1: 8 x 8 x 4 numbers of 2 bytes, stem the same
    assert "features  0.00 GB in all" in captured.out
    assert "the features need 0.00 GB more, the disk has 0.00 GB free" in captured.err
    assert not (out / "cells").exists()


def test_the_size_that_is_said_is_the_size_that_they_have(figures_root, tmp_path, capsys):
    out = tmp_path / "out"
    given = [*arguments(figures_root, out, "2", updates="1"), "--freeze", "block1"]
    assert tables.main(given) == 0
    made = {path.parent.name: path.stat().st_size for path in out.rglob("features.f16")}
    # Clips of four frames, of each 8 x 8 x 4 numbers of 2 bytes after either stage.
    assert made == dict.fromkeys(("stem-maps", "block1-maps"), 40 * 4 * 8 * 8 * 4 * 2)
    options = {"root": str(figures_root), "width": 4, "image_size": 32, "freeze": "block1"}
    again = runner.Runner(out, [2], options, "data", [1], 1, None)
    features = again._features(again._count_frames(print))
    assert {each.name: each.nbytes for each in features} == made


def results(out: Path) -> dict[str, object]:
    """What must not depend on interruptions: posteriors, and the tables but for the times."""
    found: dict[str, object] = {}
    for path in sorted(out.glob("cells/*/scores.npz")):
        found[path.parent.name] = read_scores(path).posteriors.tobytes()
    for path in sorted(out.glob("table-*.json")):
        table = json.loads(path.read_text())
        found[path.name] = [[(entry["video_error"], entry["chunk_error"], entry["difference"])
                             for entry in row["entries"]] for row in table["rows"]]
    return found


def test_killed_at_any_moment_the_tables_end_with_the_same_numbers(figures_root, tmp_path):
    given = [sys.executable, "-m", "recres.tables"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run([*given, *arguments(figures_root, whole, "1")], check=True, cwd=ROOT,
                   capture_output=True)
    rng = np.random.default_rng(0)
    for kill in range(4):
        process = subprocess.Popen([*given, *arguments(figures_root, cut, "1")], cwd=ROOT,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # In the middle of a run, each time of another.
        while not (begun := unfinished(cut)) or len(list(cut.glob("cells/*"))) <= 2 * kill:
            assert process.poll() is None, "the tables were complete before they could be killed"
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert begun
    subprocess.run([*given, *arguments(figures_root, cut, "1")], check=True, cwd=ROOT,
                   capture_output=True)
    assert results(cut) == results(whole) and len(results(whole)) == 14


def unfinished(out: Path) -> list[str]:
    """The cells that have begun and have no result."""
    return [path.name for path in out.glob("cells/*") if not (path / "result.json").exists()]


def test_a_budget_becomes_updates():
    costs = [Cost(update=0.1, rest=1.0), Cost(update=0.3, rest=2.0)]
    updates = updates_within(100.0, costs, 3, fixed=10.0)
    seconds = 10 + 3 * sum(cost.seconds(updates) for cost in costs)
    assert seconds <= 100 < seconds + 3 * sum(c.seconds(1) - c.seconds(0) for c in costs)
    with pytest.raises(InputError, match="--budget 20 s: too little, one update of every cell"):
        updates_within(20.0, costs, 3, fixed=10.0)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("15m", 900), ("1.5h", 5400)])
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "15", "m", "-3m", "0s", "1d", "1e3s"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(InputError, match="--budget"):
        parse_duration(text)
