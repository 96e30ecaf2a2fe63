"""What commands are asked to write never goes onto the files that a run is made of, nor onto what
it was made from."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from recres import flow, fuse, lr_finder, replay, report
from recres.errors import InputError
from recres.runs import refuse_own


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.mark.parametrize(("main", "arguments", "option", "name"), [
    (report.main, ["RUN"], "--out", "best.safetensors"),
    (report.main, ["RUN"], "--out", "config.json"),
    (fuse.main, ["RUN", "RUN"], "--out", "scores.npz"),
    (lr_finder.main, [], "--out", "result.json"),
    (lr_finder.main, [], "--out", "curves.json"),  # whose picture is curves.png
    (replay.main, ["RUN/nonfinite-3.json"], "--html", "metrics.jsonl"),
    (flow.main, ["RUN"], "--html", "checkpoint-1.safetensors"),
    (flow.main, ["RUN", "--no-check"], "--json", "videos.json"),
])
def test_no_file_of_a_run_is_replaced(run: Path, capsys, main, arguments, option, name):
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    words = [word.replace("RUN", str(run)) for word in arguments]
    assert main([*words, option, str(run / name)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.endswith(": the name of a file that the run there is made of, expected another")
    assert {path: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_every_file_that_a_run_leaves_is_known(run: Path):
    for path in run.iterdir():
        if path.is_file():
            with pytest.raises(InputError, match="the name of a file that the run there"):
                refuse_own(path)


def test_other_names_and_other_folders_are_free(run: Path, tmp_path: Path):
    for name in ("report.html", "flow.html", "lr_finder.json", "scores-fused.npz",
                 "nonfinite-3.html"):
        refuse_own(run / name)
    refuse_own(tmp_path / "config.json")


def test_fused_scores_do_not_replace_those_that_went_in(run: Path, tmp_path: Path, capsys):
    scores = shutil.copy(run / "scores.npz", tmp_path / "one.npz")
    before = scores.read_bytes()
    assert fuse.main([str(scores), str(run), "--out", str(tmp_path / "run/../one.npz")]) == 2
    assert "one of the score files that are fused" in capsys.readouterr().err
    assert scores.read_bytes() == before
    assert fuse.main([str(scores), str(run), "--out", str(tmp_path / "fused.npz")]) == 0
    with np.load(tmp_path / "fused.npz") as fused, np.load(scores) as one:
        assert np.allclose(fused["posteriors"], one["posteriors"])
