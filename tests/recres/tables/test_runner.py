"""The runner's bookkeeping: what cells are given, what is shared, and what is left after failures.

The runs themselves are played by `Quick`, which writes what a run leaves.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from recres import build
from recres.errors import InputError
from recres.files import write_json
from recres.runs import Run
from recres.scores import SavedScores, write_scores
from recres.tables import __main__ as tables
from recres.tables import runner
from recres.tables.runner import Runner
from tensorlite.io import load_safetensors, save_safetensors

SMALL = {"width": 4, "image_size": 32, "threads": 1}


class Quick:
    """In the place of `recres.train.Job`."""

    failing: set[str] = set()

    def __init__(self, run, interrupts, log, source=None):
        self.run, self.source = run, source

    def do(self):
        path, config = self.run.path, self.run.config
        if path.name.partition("-split")[0] in self.failing:
            raise OSError(28, "No space left on device")
        split = build.read_split(config, log=str)
        labels = np.array([video.label for video in split.test])
        answers = np.random.default_rng(len(path.name)).integers(10, size=len(labels))
        scores = SavedScores(tuple(video.name for video in split.test), labels,
                             np.eye(10)[answers], np.ones(len(labels), int), split.classes)
        write_scores(path / "scores.npz", scores, split.classes, config.data, config.split)
        (path / "best.safetensors").touch()
        self.source = "frames"
        write_json(path / "result.json", {"video_error": scores.video_error, "chunk_error": 0.5,
                                          "training_seconds": 1.0})


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(runner, "Job", Quick)
    monkeypatch.setattr(Quick, "failing", set())
    return Quick


@pytest.fixture
def call(figures_root):
    """call(out, *arguments): the command's exit status."""
    options = ["--root", str(figures_root), "--width", "4", "--image-size", "32", "--threads", "1"]
    return lambda out, number, *given: tables.main([number, "--out", str(out), *options, *given])


def make(root, out, numbers, seeds=1, splits=(1,), budget=None, **options):
    made = Runner(out, numbers, {"root": str(root), **SMALL, **options}, "data", splits, seeds,
                  budget)
    return made


def entries(out, number):
    table = json.loads((out / f"table-{number}.json").read_text())
    return {run["cell"]: run for row in table["rows"] for entry in row["entries"]
            for run in entry["runs"]}


def test_nothing_starts_from_a_backbone_that_failed(quick, call, tmp_path, capsys):
    """Not even from a model that it saved before it did."""
    out = tmp_path / "out"
    quick.failing = {"none-frames"}
    assert call(out, "1", "--updates", "1") == 1
    found = entries(out, 1)
    assert all(run["status"] == "failed" for run in found.values())
    assert "not complete" in found["block3-gru"]["reason"]
    quick.failing = set()
    assert call(out, "1", "--updates", "1") == 0
    assert all(run["status"] == "complete" for run in entries(out, 1).values())


@pytest.mark.parametrize(("numbers", "options"), [
    ([1], {"colour_jitter": 0.3}), ([5], {"colour_jitter": 0.3}), ([1], {"truncate": "block3"}),
    ([1, 5], {"mirror": True, "freeze": "block1"}), ([1, 5], {"chunks_per_video": 1}),
    ([1, 5], {"flow_length": 3}), ([1, 3], {"update_fraction": 0.5, "freeze": "block2"}),
    ([2, 3, 4], {"truncate": "block3", "freeze": "block2"})])
def test_options_go_to_the_cells_that_they_mean_something_to(figures_root, tmp_path, numbers,
                                                             options):
    made = make(figures_root, tmp_path, numbers, **options)
    for task in made.tasks:
        config = made.config(task, ready=False)
        if "chunks_per_video" in options and task.cell.name == "none-frames":
            assert config.chunks_per_video == 2  # of one frame: as many as in a chunk of two
        if "flow_length" in options:
            assert config.flow_length == (3 if task.cell.name == "flow" else 5)


def test_a_store_of_frames_is_for_the_cells_that_see_frames(figures_root, tmp_path):
    made = make(figures_root, tmp_path, [1, 3, 5], frames="store")
    without = {task.cell.name for task in made.tasks
               if made.config(task, ready=False).frames is None}
    assert without == {task.cell.name for task in made.tasks
                       if task.cell.options.get("input") in ("flow", "dynamic")} != set()


def test_frozen_stages_that_are_drawn_are_not_shared_between_seeds(figures_root, tmp_path):
    made = make(figures_root, tmp_path, [2], seeds=2, freeze="block1")
    stores = {(task.seed, made.config(task, ready=False).store) for task in made.tasks}
    assert len(stores) == len({store for _, store in stores}) == 2


def test_frozen_stages_of_weights_are_shared(figures_root, trained, tmp_path):
    made = make(figures_root, tmp_path, [2], seeds=2, freeze="block1",
                weights=str(trained / "best.safetensors"))
    assert made.pretrained == "block4"
    assert len({made.config(task, ready=False).store for task in made.tasks}) == 1


@pytest.mark.parametrize(("last", "found"), [("block4", "block4"), ("block3", "block3"),
                                             ("block2", "block2"), ("block1", None)])
def test_how_far_weights_reach(figures_root, trained, tmp_path, last, found):
    arrays, about = load_safetensors(trained / "best.safetensors")
    kept = {name: array for name, array in arrays.items()
            if not name.startswith("block") or name.partition(".")[0] <= last}
    save_safetensors(tmp_path / "some.safetensors", kept, about)
    options = {"weights": str(tmp_path / "some.safetensors")}
    if found is None:
        with pytest.raises(InputError, match="do not fill block1 and block2"):
            make(figures_root, tmp_path, [1], **options)
    else:
        made = make(figures_root, tmp_path, [1], **options)
        assert made.pretrained == found
        assert {name.partition("-")[0] for name in made.plan.cells} == {
            stage for stage in ("block2", "block3", "block4") if stage <= found}


def test_a_budget_for_models_on_features_alone_makes_no_updates(quick, call, trained, tmp_path,
                                                                capsys):
    weights = ["--weights", str(trained / "best.safetensors"), "--budget", "5m"]
    assert call(tmp_path / "out", "1", *weights) == 0
    assert json.loads((tmp_path / "out/plan.json").read_text())["updates"] is None
    assert call(tmp_path / "out", "2", *weights) == 0
    assert json.loads((tmp_path / "out/plan.json").read_text())["updates"] > 10


def test_a_dry_run_binds_nobody(quick, call, tmp_path, capsys):
    out = tmp_path / "out"
    assert call(out, "2", "--updates", "3", "--dry-run") == 0
    assert call(out, "2", "--updates", "4", "--frame-step", "3", "--dry-run") == 0
    first = json.loads((out / "frames.json").read_text())
    assert call(out, "2", "--updates", "4") == 0
    second = json.loads((out / "frames.json").read_text())
    assert first["sampling"]["frame_step"] == 3 and second["sampling"]["frame_step"] == 5
    assert set(first["found"].values()) != set(second["found"].values())
    assert call(out, "2", "--updates", "3") == 2


def test_a_run_whose_folder_was_begun_and_no_more_is_begun_again(quick, call, tmp_path):
    """Killed while it wrote its first file."""
    path = tmp_path / "out/cells/none-last-split1-seed0"
    path.mkdir(parents=True)
    (path / ".tmp-123-config.json").write_text("{")
    (path / "lock").touch()
    assert call(tmp_path / "out", "2", "--updates", "1") == 0


def test_scores_that_are_lost_do_not_lose_the_table(quick, call, tmp_path, capsys):
    out = tmp_path / "out"
    assert call(out, "5", "--updates", "1") == 0
    (out / "cells/flow-split1-seed0/scores.npz").unlink()
    call(out, "5", "--updates", "1")
    found = entries(out, 5)
    assert found["none-frames+flow"]["status"] == "failed"
    assert "scores.npz" in found["none-frames+flow"]["reason"]
    assert found["identity"]["status"] == "complete"


def test_splits_and_seeds(quick, call, figures_root, tmp_path):
    out = tmp_path / "out"
    assert call(out, "2", "--updates", "1", "--split", "all") == 0
    assert call(out, "2", "--updates", "1", "--split", "all", "--seeds", "2") == 0
    table = json.loads((out / "table-2.json").read_text())
    for row in table["rows"]:
        (entry,) = row["entries"]
        assert len(entry["runs"]) == 6 and entry["splits"] == [1, 2, 3]
        assert len(entry["by_seed"]) == 2
    assert table["about"]["videos"].count("split") == 3


def test_where_a_run_computes_may_change(quick, call, tmp_path, monkeypatch):
    out = tmp_path / "out"
    quick.failing = {"none-last"}
    assert call(out, "2", "--updates", "1") == 1
    quick.failing = set()
    assert call(out, "2", "--updates", "1", "--threads", "2") == 0
    run = Run.open(out / "cells/none-last-split1-seed0")
    assert run.config.threads == 2
