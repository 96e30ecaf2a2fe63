"""Training by several processes: the same updates, the same bits again, and an end for all."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from recres import checkpoint, config, data, evaluate, evaluation, lr_finder, predict, train
from recres.checkpoints import NEWEST
from recres.datasets.figures import __main__ as figures
from recres.loader import Chunk, describe_updates, plan_epoch, share
from recres.runs import read_metrics
from recres.scores import read_scores
from recres.tables import __main__ as tables
from tests.recres.test_trainer import assert_same_run
from tests.recres.test_workers import alive, wait_until
from tests.tensorlite.test_distributed import mpiexec

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("train_rank.py")


def run(processes: int, what: str, *options: str,
        **environment: str) -> tuple[subprocess.CompletedProcess, float]:
    """Train by so many processes; how it ended, and after how many seconds."""
    began = time.monotonic()
    ended = subprocess.run(
        [mpiexec(), "-n", str(processes), sys.executable, str(SCRIPT), what, *options],
        capture_output=True, text=True, timeout=90, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment})
    return ended, time.monotonic() - began


def errors(ended: subprocess.CompletedProcess) -> list[str]:
    return [line for line in ended.stderr.splitlines() if line.startswith("error:")]


@pytest.fixture(scope="module")
def options(tiny) -> list[str]:
    """Of 2 processes that take as much together as one does in `trained`."""
    return [*tiny, "--batch", "6"]


@pytest.fixture(scope="module")
def undisturbed(options, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "two"
    ended, _ = run(2, "nothing", "--out", str(folder), *options)
    assert ended.returncode == 0, ended.stderr
    return folder


def test_every_chunk_is_seen_once_by_one_rank():
    chunks = [Chunk(i, i, 0) for i in range(23)]
    for processes, batch in ((2, 4), (3, 1), (3, 8)):
        chosen = config.resolve({"processes": processes, "batch": batch, "root": "x"})
        plan = plan_epoch(chunks, chosen, epoch=1)
        assert len(plan) == describe_updates(len(chunks), chosen)["updates"]
        shares = [[share(update, rank, chosen) for update in plan] for rank in range(processes)]
        seen = [chunk for rank in shares for update in rank for b in update for chunk in b]
        assert sorted(seen) == chunks
        assert all(0 < len(b) <= batch for rank in shares for update in rank for b in update)


def test_with_synchronised_norms_all_ranks_have_every_batch():
    chunks = [Chunk(i, i, 0) for i in range(4)]
    chosen = config.resolve({"processes": 3, "batch": 1, "sync_norm": True, "root": "x"})
    (update, _) = plan_epoch(chunks, chosen, epoch=0)
    shares = [share(update, rank, chosen) for rank in range(3)]
    assert [[len(batch) for batch in rank] for rank in shares] == [[1], [1], [0]]


@pytest.mark.parametrize("processes", [2, 3])
def test_training_together_is_training_alone(processes, trained, tiny, tmp_path):
    """With synchronised norms, as far as rounding grows in a few updates of Adam's."""
    folder = tmp_path / "run"
    ended, _ = run(processes, "nothing", "--out", str(folder), *tiny, "--sync-norm",
                   "--batch", str(12 // processes))
    assert ended.returncode == 0, ended.stderr
    one, several = (read_metrics(run / "metrics.jsonl") for run in (trained, folder))
    assert [line["chunks"] for line in one] == [line["chunks"] for line in several]
    for name in ("loss", "gradient_norm"):
        assert np.allclose(*([line[name] for line in run[:2]] for run in (one, several)),
                           rtol=1e-5, atol=0)


def test_evaluating_together_is_evaluating_alone(undisturbed, monkeypatch):
    """The test of the run, which two made of the best model, bit for bit."""
    monkeypatch.setattr(evaluation, "CHUNKS_AT_ONCE", 8)  # as in train_rank
    assert evaluate.main([str(undisturbed), "--threads", "1"]) == 0
    alone, together = (read_scores(undisturbed / name)
                       for name in ("scores-test.npz", "scores.npz"))
    assert len(alone.names) > 8
    assert alone.names == together.names and alone.posteriors.tobytes() == (
        together.posteriors.tobytes())


@pytest.mark.parametrize(("what", "says"), [
    ("kill:4", r"rank 1 of 2 \(process \d+ on \S+\) has died, and the others stop; the last "
               r"checkpoint is of update 0, go on with: mpiexec -n 2 python -m recres.train "
               r"--resume {}"),
    ("raise:4", "rank 1 of 2: ValueError: planted.*"),
    ("sentinel:4", "the process that watches over the others has died, and all stop"),
])
def test_a_rank_that_dies_ends_the_run_and_it_can_go_on(what, says, undisturbed, options, tmp_path):
    """To the same bits, as the same number of processes gives them each time."""
    folder = tmp_path / "run"
    ended, seconds = run(2, what, "--out", str(folder), *options)
    assert ended.returncode != 0 and seconds < 30
    (line,) = errors(ended)
    assert re.fullmatch("error: " + says.format(re.escape(str(folder))), line)
    with open(folder / "lock") as lock:  # nobody is left who could write
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    checkpoint.read_checkpoint(folder / NEWEST)
    assert len(read_metrics(folder / "metrics.jsonl")) == 3
    if what.startswith("kill"):
        ended, _ = run(2, "nothing", "--resume", str(folder))
        assert ended.returncode == 0, ended.stderr
        assert_same_run(folder, undisturbed)


@pytest.mark.parametrize(("what", "says"), [
    ("kill:2", r"rank 1 of 2 \(process \d+ on \S+\) has died, and the others stop; .*"),
    ("loader:2", r"rank 1 of 2: WorkerDied: loader process \d+ was killed by signal 9 \(SIGKILL\); "
                 r"it held .*")])
def test_no_loader_process_outlives_its_rank(what, says, options, tmp_path):
    """Of the rank that has died, nor of the one that is ended for it."""
    folder, ranks = tmp_path / "run", tmp_path / "ranks"
    ranks.mkdir()
    ended, seconds = run(2, what, "--out", str(folder), *options, "--workers", "1",
                         RANKS=str(ranks))
    assert ended.returncode != 0 and seconds < 30
    (line,) = errors(ended)
    resume = re.escape(f"go on with: mpiexec -n 2 python -m recres.train --resume {folder}")
    assert re.fullmatch(f"error: {says}[;,] {resume}", line)
    assert {file.name for file in ranks.iterdir()} == {"0", "1", "0-loader-0", "1-loader-0"}
    wait_until(lambda: not any(alive(int(file.read_text())) for file in ranks.iterdir()), 2)


def test_all_stop_after_the_same_update_and_where_nothing_can_be_written(undisturbed, options,
                                                                         tmp_path):
    """Rank 1 is asked to stop; then rank 0 finds the folder full. Both times the run goes on as it
    says, and ends as if nothing had been."""
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    ended, _ = run(2, "stop:2", "--out", str(folder), *options)
    assert ended.returncode == 130 and not errors(ended), ended.stderr
    resume = f"mpiexec -n 2 python -m recres.train --resume {folder}"
    assert f"stopped; to go on: {resume}" in ended.stderr.splitlines()
    assert checkpoint.read_checkpoint(folder / NEWEST)[1].update == 2

    ended, seconds = run(2, "full:1", "--resume", str(folder), "--save-seconds", "0",
                         TMPDIR=str(elsewhere))
    assert ended.returncode == 1 and seconds < 30
    (line,) = errors(ended)
    (place,) = elsewhere.glob("recres-*")
    assert line.startswith(f"error: {folder}: cannot be written: No space left on device; the "
                           "state after update ")
    assert line.endswith(f"go on with: mv {place}/* {folder} && {resume}")
    assert checkpoint.read_checkpoint(place / NEWEST)[1].update > 2
    (place / NEWEST).replace(folder / NEWEST)
    ended, _ = run(2, "nothing", "--resume", str(folder))
    assert ended.returncode == 0, ended.stderr
    assert_same_run(folder, undisturbed)


def test_a_loss_that_is_not_finite_ends_all_or_is_left_out_by_all(options, tmp_path):
    ended, _ = run(2, "nan:2", "--out", str(tmp_path / "stop"), *options)
    (line,) = errors(ended)
    assert ended.returncode == 1 and line.startswith("error: update 2: the loss is nan; ")
    folder = tmp_path / "skip"
    ended, _ = run(2, "nan:2", "--out", str(folder), *options, "--on-nonfinite", "skip")
    assert ended.returncode == 0, ended.stderr
    updates = [line["update"] for line in read_metrics(folder / "metrics.jsonl")]
    assert updates == [1, *range(3, updates[-1] + 1)]


def test_another_number_of_processes_cannot_go_on(undisturbed, tmp_path, capsys):
    assert train.main(["--resume", str(undisturbed)]) == 0
    assert "complete, video error" in capsys.readouterr().out
    begun = tmp_path / "begun"
    shutil.copytree(undisturbed, begun)
    (begun / "result.json").unlink()
    assert train.main(["--resume", str(begun)]) == 2
    assert "a run of 2 processes, and that cannot change" in capsys.readouterr().err
    ended, _ = run(2, "nothing", "--out", str(tmp_path), "--bogus")
    assert ended.returncode == 2
    assert errors(ended) == ["error: unrecognized arguments: --bogus"]


def test_a_check_is_by_all_processes_and_writes_nothing(options, figures_root, tmp_path):
    before = sorted(figures_root.rglob("*"))
    ended, _ = run(2, "nothing", *options, "--check", "--freeze", "block2", TMPDIR=str(tmp_path))
    assert ended.returncode == 0 and not ended.stderr, ended.stderr
    said = dict(line.split(maxsplit=1) for line in ended.stdout.splitlines())
    assert said["processes"].startswith("2, of ") and " in 4 updates of " in said["training"]
    assert {"measured", "features", "epoch", "whole"} <= set(said)
    assert "GB in 2 processes, of " in said["memory"]
    assert sorted(figures_root.rglob("*")) == before and not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [data, evaluate, lr_finder, predict, tables, figures])
def test_what_works_in_one_process_refuses_to_be_several(command, monkeypatch, capsys):
    monkeypatch.setenv("PMI_SIZE", "2")
    for rank, status in (("0", 2), ("1", 0)):
        monkeypatch.setenv("PMI_RANK", rank)
        assert command.main(["--out", "x"]) == status
    (line,) = capsys.readouterr().err.splitlines()
    name = command.__name__.removesuffix(".__main__")
    assert line == (f"error: python -m {name}: works in one process, and mpiexec has started 2: "
                    "start it without mpiexec")


def test_without_mpi4py_one_rank_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    for rank, status in (("0", 2), ("1", 0)):
        monkeypatch.setenv("PMI_RANK", rank)
        assert train.main(["--out", str(tmp_path / "run")]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "pip install 'recres[distributed]'" in line
    assert not (tmp_path / "run").exists()
