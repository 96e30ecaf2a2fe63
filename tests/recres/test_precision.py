"""--precision, training with the host ahead of the device, and what is said without a GPU or when
it is full. The kernels for GPUs run on their emulator."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recres import config, evaluate, predict, summary, train, trainer
from recres.build import build_model, open_videos
from recres.commands import Interrupted, Interrupts, RunFailed
from recres.config import Config
from recres.errors import InputError
from recres.files import read_json
from recres.loader import FrameLoader
from recres.runs import Run, read_metrics
from recres.trainer import Trainer
from tensorlite import kernels, optim, precision
from tensorlite.io import load_safetensors
from tensorlite.kernels import cuda
from tensorlite.kernels.cuda.launch import running_on
from tests.cuda_on_cpu.emulator import Emulator, require_compiler

ROOT = Path(__file__).resolve().parents[2]
NO_CUPY = importlib.util.find_spec("cupy") is None


@pytest.fixture
def emulated(monkeypatch):
    require_compiler()
    monkeypatch.setattr(kernels, "of", lambda array: cuda)
    with running_on(Emulator(guard=False)):
        yield


def open_trainer(folder: Path, root: Path, precision: str = "float32", chunks: int | None = None,
                 **values) -> Trainer:
    """A trainer of a tiny network, of so many chunks; on the CPU, whatever the precision."""
    options = config.resolve({"root": str(root), "width": 4, "image_size": 32, "holdout": 0.0,
                              "threads": 1, "batch": 12, "epochs": 1, **values})
    options = replace(options, precision=precision)
    run = Run.open(folder) if (folder / "config.json").exists() else Run.create(folder, options, {})
    videos = open_videos(options, folder)
    job = Trainer(build_model(options, 10), FrameLoader(videos.source, options, "torch"), videos,
                  run, {"classes": "[]"}, Interrupts())
    job.chunks = job.chunks[:chunks]
    return job


def train_all(job: Trainer) -> list[dict]:
    with precision.using(job.config.precision):
        job.train()
    job.run.unlock()
    return read_metrics(job.run.path / "metrics.jsonl")


def same_numbers(a: Path, b: Path) -> bool:
    one, two = (load_safetensors(folder / "checkpoint.safetensors")[0] for folder in (a, b))
    return one.keys() == two.keys() and all(one[k].tobytes() == two[k].tobytes() for k in one)


def timeless(lines: list[dict]) -> list[dict]:
    return [{k: v for k, v in line.items() if "time" not in k and "per_second" not in k}
            for line in lines]


# The option

@pytest.mark.parametrize("kind", ["tf32", "float16"])
def test_the_cpu_refuses(tiny, tmp_path, capsys, kind):
    assert train.main(["--out", str(tmp_path / "run"), *tiny, "--precision", kind]) == 2
    complaint = capsys.readouterr().err
    assert complaint == f"error: --precision {kind} needs --device cuda\n"
    assert not (tmp_path / "run").exists()


@pytest.fixture
def any_device(monkeypatch):
    monkeypatch.setattr(config, "require_cuda", lambda device: None)


def test_it_is_recorded_and_cannot_change(any_device, tmp_path, tiny, capsys):
    options = config.resolve({"device": "cuda", "precision": "tf32", "root": str(tmp_path)})
    assert Config.from_json(options.to_json(), "here") == options
    Run.create(tmp_path / "run", options, {}).unlock()
    assert Run.open(tmp_path / "run").config.precision == "tf32"
    assert train.main(["--resume", str(tmp_path / "run"), "--precision", "float32"]) == 2
    assert "has tf32, and that cannot change" in capsys.readouterr().err


def test_a_run_from_before_the_option_was_in_float32():
    values = config.resolve({}).to_json()
    del values["precision"]
    assert Config.from_json(values, "here").precision == "float32"


@pytest.mark.parametrize(("given", "expected"), [
    ([], "float16"), (["--device", "cpu"], "float32"), (["--precision", "tf32"], "tf32"),
    (["--device", "cuda:1"], "float16")])
def test_using_a_run_is_as_it_was_trained_but_on_the_cpu(any_device, given, expected):
    parser = evaluate.parser()
    options = config.resolve({"device": "cuda", "precision": "float16"})
    assert config.override(options, parser.parse_args(["run", *given])).precision == expected
    with pytest.raises(InputError, match="--precision tf32 needs --device cuda"):
        config.override(options, parser.parse_args(
            ["run", "--device", "cpu", "--precision", "tf32"]))


def test_it_is_printed_at_the_start(figures_root, tmp_path):
    job = open_trainer(tmp_path / "run", figures_root)
    for name in precision.PRECISIONS:
        heading = summary.heading(replace(job.config, precision=name), job.model, job.videos, None)
        (line,) = [line for line in heading.splitlines() if line.startswith("precision ")]
        assert name in line.lower()
    job.run.unlock()


@pytest.mark.parametrize("module", ["train", "evaluate", "predict"])
@pytest.mark.skipif(not NO_CUPY, reason="CuPy is installed")
def test_without_a_gpu_a_command_says_what_is_missing(module, trained, tmp_path):
    arguments = {"train": [], "evaluate": [str(trained)], "predict": [str(trained), "a.avi"]}
    done = subprocess.run([sys.executable, "-m", f"recres.{module}", *arguments[module],
                           "--device", "cuda", "--precision", "float16"],
                          cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == ("error: --device 'cuda:0': CuPy is not installed; install it with: "
                           "pip install 'recres[cuda]'\n")
    assert not any(tmp_path.iterdir())


# The host ahead of the device

def test_running_ahead_changes_nothing(figures_root, tmp_path):
    one = open_trainer(tmp_path / "one", figures_root, epochs=2, holdout=0.3)
    two = open_trainer(tmp_path / "two", figures_root, epochs=2, holdout=0.3)
    two.ahead = True
    lines = [timeless(train_all(job)) for job in (one, two)]
    assert len(lines[0]) >= 4 and lines[0] == lines[1]
    assert same_numbers(tmp_path / "one", tmp_path / "two")
    assert two.progress.seconds > 0


def test_an_update_is_read_when_the_next_was_queued(figures_root, tmp_path, monkeypatch):
    """Its gradients, that is; and the last one before the checkpoint is written."""
    events = []
    job = open_trainer(tmp_path / "run", figures_root)
    job.ahead = True
    step, append, save = job.optimizer.guarded_step, trainer.MetricsLog.append, Trainer.save
    accumulate = Trainer.accumulate

    def queued(*arguments):
        events.append("queued")
        return accumulate(*arguments)

    def guarded_step(*arguments):
        events.append("stepped")
        return step(*arguments)

    def logged(self, line):
        events.append("read" if line["kind"] == "update" else "evaluated")
        append(self, line)

    monkeypatch.setattr(Trainer, "accumulate", queued)
    monkeypatch.setattr(job.optimizer, "guarded_step", guarded_step)
    monkeypatch.setattr(trainer.MetricsLog, "append", logged)
    monkeypatch.setattr(Trainer, "save", lambda self: (save(self), events.append("saved")))
    updates = len(train_all(job))
    assert updates >= 3
    assert events == ["queued", "stepped", *["queued", "read", "stepped"] * (updates - 1), "read",
                      "saved", "evaluated", "saved"]


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_is_said_one_update_late(figures_root, tmp_path, monkeypatch, what):
    job = open_trainer(tmp_path / "run", figures_root)
    job.ahead = True
    original = Trainer.accumulate

    def accumulate(self, inputs, batch, size):
        with np.errstate(all="ignore"):
            if self.progress.update == 1 and what == "loss":
                inputs = inputs * np.nan
            value = original(self, inputs, batch, size)
        if self.progress.update == 1 and what == "gradient":
            next(iter(self.optimizer.params.values())).grad[:] = np.inf
        return value

    monkeypatch.setattr(Trainer, "accumulate", accumulate)
    expected = "the loss is nan" if what == "loss" else "the gradient's norm is inf"
    with pytest.raises(RunFailed, match=f"^update 2: {expected}; the chunks were of .*avi"):
        train_all(job)
    job.run.unlock()
    assert [line["update"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1]
    state = load_safetensors(tmp_path / "run" / "checkpoint.safetensors")[0]
    assert state["optimizer/step"] == 0  # nothing was saved after it


# float16

def test_mixed_precision_follows_float32(emulated, figures_root, tmp_path, monkeypatch):
    options = {"chunks": 16, "batch": 8, "lr": 1e-4}
    mixed = open_trainer(tmp_path / "mixed", figures_root, "float16", **options)
    mixed.ahead = True
    lines = train_all(mixed)
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "of", lambda array: kernels.cpu)
        full = train_all(open_trainer(tmp_path / "full", figures_root, **options))
    assert len(lines) == len(full) == 2
    for one, other in zip(lines, full, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.01)
        assert not one["skipped"] and one["loss_scale"] == 2.0**16
    assert all(p.dtype == np.float32 for p in mixed.model.parameters())


def test_overflows_are_skipped_and_a_resumed_run_is_the_same(emulated, figures_root, tmp_path,
                                                             monkeypatch):
    """The loss scale begins too high. The run is stopped while it falls, and gone on with."""
    monkeypatch.setattr(optim, "LossScaler", functools.partial(optim.LossScaler, 2.0**18, 2))
    options = {"precision": "float16", "chunks": 24, "batch": 8, "lr": 1e-4}
    whole = open_trainer(tmp_path / "whole", figures_root, **options)
    whole.ahead = True
    lines = train_all(whole)
    skipped = [line["skipped"] for line in lines]
    assert skipped[0] and not skipped[-1]
    for before, line in zip(lines, lines[1:], strict=False):
        if before["skipped"]:
            assert line["loss_scale"] == before["loss_scale"] / 2
            assert before["gradient_norm"] is None
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert whole.optimizer.steps == skipped.count(False)

    part = open_trainer(tmp_path / "part", figures_root, **options)
    part.ahead, update = True, Trainer._update

    def stops(self, batches, inputs):
        update(self, batches, inputs)
        self.interrupts.requested = self.progress.update == 1

    monkeypatch.setattr(Trainer, "_update", stops)
    with pytest.raises(Interrupted):
        train_all(part)
    part.run.unlock()
    rest = open_trainer(tmp_path / "part", figures_root, **options)
    rest.ahead = True
    assert rest.progress.update == 1 and rest.scaler.scale == lines[1]["loss_scale"]
    assert timeless(train_all(rest)) == timeless(lines)
    assert same_numbers(tmp_path / "whole", tmp_path / "part")


def test_gradients_that_overflow_at_any_scale_end_a_run(figures_root, tmp_path, monkeypatch):
    job = open_trainer(tmp_path / "run", figures_root)
    job.scaler = optim.LossScaler(2.0)
    original = Trainer.accumulate

    def accumulate(self, *arguments):
        value = original(self, *arguments)
        next(iter(self.optimizer.params.values())).grad[:] = np.inf
        return value

    monkeypatch.setattr(Trainer, "accumulate", accumulate)
    with pytest.raises(RunFailed, match="update 3: the gradient's norm is inf"):
        train_all(job)
    job.run.unlock()


def test_pictures_of_a_run_with_skipped_updates(trained, tmp_path):
    pytest.importorskip("matplotlib")
    from recres import pictures

    lines = (trained / "metrics.jsonl").read_text().splitlines()
    text = "\n".join(lines).replace('"gradient_norm": ', '"gradient_norm": null, "was": ', 1)
    (tmp_path / "metrics.jsonl").write_text(text + "\n")
    pictures.curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_pictures_of_a_run_whose_log_has_lost_its_best_epoch(trained, tmp_path):
    pytest.importorskip("matplotlib")
    from recres import pictures

    lines = (trained / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(lines.replace('"best": true', '"best": false'))
    pictures.curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


# A GPU that is full

@pytest.mark.parametrize("module", [train, evaluate, predict])
def test_out_of_memory_is_one_line_that_says_what_helps(module, tiny, trained, tmp_path,
                                                        monkeypatch, capsys):
    class OutOfMemoryError(MemoryError):
        __module__ = "cupy.cuda.memory"

    def full(*arguments, **options):
        raise OutOfMemoryError("Out of memory allocating 3,000,000,000 bytes (…).")

    cupy = types.ModuleType("cupy")
    cupy.cuda = types.SimpleNamespace(
        runtime=types.SimpleNamespace(memGetInfo=lambda: (10**9, 8 * 10**10)))
    cupy.get_default_memory_pool = lambda: types.SimpleNamespace(used_bytes=lambda: 7 * 10**10)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(Trainer, "accumulate", full)
    monkeypatch.setattr(module, "assess" if module is evaluate else "predict_logits", full,
                        raising=False)
    video = next(Path(read_json(trained / "config.json")["options"]["root"]).rglob("*.avi"))
    arguments = {train: ["--out", str(tmp_path / "run"), *tiny], evaluate: [str(trained)],
                 predict: [str(trained), str(video)]}
    assert module.main(arguments[module]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: out of memory on the GPU: no 3.00 GB for an array; 70.00 GB in "
                           "use by this process, 1.00 of 80.00 free; ")
    assert line.endswith("a smaller --batch or --precision float16 needs less" if module is train
                         else "--precision float16 needs less, --device cpu none there")
