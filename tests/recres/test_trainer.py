"""Training: what an update is, and that stopping and going on changes nothing."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tensorlite
from recres import checkpoint, config, train, trainer
from recres.build import build_model, open_videos
from recres.commands import Interrupts
from recres.files import read_json, write_json
from recres.loader import FrameLoader
from recres.models import recurrent_resnet
from recres.runs import MetricsLog, Run, read_metrics
from recres.trainer import Trainer
from tensorlite import Tensor, cross_entropy, optim
from tensorlite.io import load_safetensors


class Killed(BaseException):
    """Stands in for a process that ends without a word."""


def arrays(path: Path) -> dict[str, np.ndarray]:
    return load_safetensors(path)[0]


def assert_same_run(one: Path, two: Path) -> None:
    """Bit-equal parameters, buffers, optimiser and best model; equal logs and results."""
    for name in ("checkpoint.safetensors", "best.safetensors"):
        a, b = arrays(one / name), arrays(two / name)
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].tobytes() == b[key].tobytes(), f"{name}: {key}"
    for kind in ("update", "evaluation"):
        timeless = [[{k: v for k, v in line.items() if "time" not in k and "per_second" not in k}
                     for line in read_metrics(folder / "metrics.jsonl", kind)]
                    for folder in (one, two)]
        assert timeless[0] == timeless[1]
    results = [{k: v for k, v in read_json(folder / "result.json").items() if "seconds" not in k}
               for folder in (one, two)]
    assert results[0] == results[1]


def stop_at(monkeypatch: pytest.MonkeyPatch, number: int, action) -> None:
    """Call `action` when the line of update `number` is about to be written, once."""
    append, done = MetricsLog.append, []

    def stops(self, line):
        if line["kind"] == "update" and line["update"] == number and not done:
            done.append(True)
            action()
        append(self, line)

    monkeypatch.setattr(MetricsLog, "append", stops)


def test_train_6_is_train_3_and_resume_3(trained, tiny, tmp_path, monkeypatch, capsys):
    updates = read_metrics(trained / "metrics.jsonl")
    assert len(updates) >= 6
    folder = tmp_path / "run"
    stop_at(monkeypatch, 3, lambda: signal.raise_signal(signal.SIGINT))
    assert train.main(["--out", str(folder), *tiny]) == 130
    assert f"python -m recres.train --resume {folder}" in capsys.readouterr().err
    assert len(read_metrics(folder / "metrics.jsonl")) == 3
    assert not (folder / "result.json").exists()
    assert train.main(["--resume", str(folder)]) == 0
    assert len(read_metrics(folder / "metrics.jsonl")) == len(updates)
    assert_same_run(folder, trained)


@pytest.mark.parametrize("seconds", [0, 1e9])
def test_a_run_that_ends_without_a_word_goes_on(trained, tiny, tmp_path, monkeypatch, seconds):
    """Whether the checkpoint is of an update shortly before or of the epoch's beginning."""
    folder, last = tmp_path / "run", len(read_metrics(trained / "metrics.jsonl"))

    def die():
        raise Killed

    stop_at(monkeypatch, last - 1, die)
    with pytest.raises(Killed):
        train.main(["--out", str(folder), *tiny, "--save-seconds", str(seconds)])
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"kind": "upd')
    assert train.main(["--resume", str(folder)]) == 0
    assert_same_run(folder, trained)


@pytest.mark.parametrize("freeze", [(), ("--freeze", "block2", "--mirror")])
def test_sigkill_at_any_moment(tiny, tmp_path, freeze):
    """A process is killed in each phase of a run, and the run gone on with each time."""
    options = [*tiny, *freeze]
    assert train.main(["--out", str(tmp_path / "whole"), *options]) == 0
    whole, folder = read_metrics(tmp_path / "whole" / "metrics.jsonl"), tmp_path / "killed"
    half = len(whole) // 2
    phases = [lambda: (folder / "config.json").exists(),
              lambda: (folder / "videos.json").exists(),
              lambda: len(read_metrics(folder / "metrics.jsonl")) >= 2,
              lambda: len(read_metrics(folder / "metrics.jsonl")) > half,
              lambda: len(read_metrics(folder / "metrics.jsonl", "evaluation")) == 2]
    arguments = ["--out", str(folder), *options]
    for phase in phases:
        process = subprocess.Popen([sys.executable, "-m", "recres.train", *arguments],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while not phase() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        _, complaint = process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0), complaint.decode()
        arguments = ["--resume", str(folder)]
    assert train.main(arguments) == 0
    assert_same_run(folder, tmp_path / "whole")
    names = {p.name for p in folder.iterdir()}
    assert names == {p.name for p in (tmp_path / "whole").iterdir()}
    assert not any(name.startswith(".") or name.startswith("features") for name in names)


def open_trainer(folder: Path, root: Path, **values) -> Trainer:
    options = config.resolve({"root": str(root), "width": 4, "image_size": 32, "holdout": 0.3,
                              "threads": 1, **values})
    run = Run.create(folder, options, {})
    videos = open_videos(options, folder)
    model = build_model(options, 10)
    return Trainer(model, FrameLoader(videos.source, options, "torch"), videos, run,
                   {"classes": "[]"}, Interrupts())


def test_gradients_added_up_over_batches_are_those_of_one_batch(figures_root, tmp_path):
    """The loss of an update is a mean over its chunks however they are cut; norms frozen, since
    otherwise each batch is normalised by its own statistics."""
    job = open_trainer(tmp_path / "run", figures_root)
    job.model.train()
    for module in job.model.modules():
        if hasattr(module, "freeze") and hasattr(module, "running_mean"):
            module.freeze()
    chunks = job.chunks[:9]
    found = []
    for cuts in ([9], [4, 7, 9], [1, 2, 9]):
        job.optimizer.zero_grad()
        loss, start = 0.0, 0
        for stop in cuts:
            batch = chunks[start:stop]
            loss += job.accumulate(job.loader.load(batch), batch, len(chunks))
            start = stop
        found.append((loss, {n: p.grad.copy() for n, p in job.optimizer.params.items()}))
    for loss, grads in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        for name, grad in grads.items():
            scale = np.abs(found[0][1][name]).max()
            assert np.abs(grad - found[0][1][name]).max() <= 1e-4 * scale + 1e-6, name
    job.run.unlock()


def test_every_trainable_parameter_moves_and_no_frozen_one(figures_root, tmp_path):
    job = open_trainer(tmp_path / "run", figures_root, freeze="block1", epochs=1, holdout=0.0,
                       skip="conv", batch=64)
    before = job.model.state_dict()
    job.train()
    after = job.model.state_dict()
    for name, parameter in job.model.named_parameters():
        moved = not np.array_equal(before[name], after[name])
        assert moved == parameter.requires_grad, name
    frozen = [n for n in before if n.startswith(("norm1.running", "block1")) and "running" in n]
    assert frozen and all(np.array_equal(before[n], after[n]) for n in frozen)
    assert not np.array_equal(before["block2.0.norm1.running_mean"],
                              after["block2.0.norm1.running_mean"])
    assert job.progress.best["epoch"] == 1
    job.run.unlock()


def test_a_run_goes_on_with_the_threads_it_was_begun_with(tiny, tmp_path, monkeypatch, capsys):
    """Unless told otherwise; then it says so, and that is what the run goes on with from there."""
    folder, counts = tmp_path / "run", []
    original = Trainer.accumulate

    def accumulate(self, *arguments):
        counts.append(tensorlite.get_num_threads())
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "accumulate", accumulate)
    cores = tensorlite.get_num_threads()
    for last, arguments in enumerate((["--out", str(folder), *tiny, "--threads", "3"],
                                      ["--resume", str(folder)],
                                      ["--resume", str(folder), "--threads", "3"],
                                      ["--resume", str(folder), "--threads", "2"],
                                      ["--resume", str(folder)])):
        counts.clear()
        capsys.readouterr()
        with monkeypatch.context() as patch:
            if last < 4:
                stop_at(patch, last + 1, lambda: signal.raise_signal(signal.SIGINT))
            assert train.main(arguments) == (130 if last < 4 else 0)
        expected = 3 if last < 3 else 2
        assert set(counts) == {expected}
        assert read_json(folder / "config.json")["options"]["threads"] == expected
        notices = [line for line in capsys.readouterr().out.splitlines() if "as before" in line]
        assert len(notices) == (last == 3), notices
        assert all("2, not 3 as before" in line for line in notices)
        tensorlite.set_num_threads(cores)


def test_a_run_from_before_the_option_goes_on(trained, tmp_path):
    """A config.json without `threads`: with those of this process, which it has from then on."""
    folder = shutil.copytree(trained, tmp_path / "run")
    (folder / "result.json").unlink()
    about = read_json(folder / "config.json")
    del about["options"]["threads"]
    write_json(folder / "config.json", about)
    tensorlite.set_num_threads(1)
    assert train.main(["--resume", str(folder)]) == 0
    assert read_json(folder / "config.json")["options"]["threads"] == 1
    assert_same_run(folder, trained)


@pytest.mark.parametrize("skip", ["identity", "conv_nonlinear"])
def test_results_depend_on_the_threads_by_rounding_only(skip):
    """An update twice at one thread and twice at two, in float64: at a number of threads the same
    bits, between the two numbers what rounding leaves."""
    def update(threads: int) -> dict[str, np.ndarray]:
        tensorlite.set_num_threads(threads)
        model = recurrent_resnet(18, classes=5, context=3, skip=skip, width=8, rng=1)
        model.to(dtype=np.float64)
        optimizer = optim.Adam(model.named_parameters(), lr=1e-3)
        x = np.random.default_rng(2).standard_normal((6, 3, 64, 64, 3))
        loss = cross_entropy(model(Tensor(x)), np.array([0, 1, 2, 3, 4, 0]))
        loss.backward()
        found = {f"gradient of {name}": p.grad.copy() for name, p in model.named_parameters()}
        found["loss"] = loss.numpy().copy()
        optimizer.step()
        return found | model.state_dict()

    runs = {threads: [update(threads) for _ in range(2)] for threads in (1, 2)}
    for one, two in runs.values():
        assert one.keys() == two.keys()
        assert all(one[name].tobytes() == two[name].tobytes() for name in one)
    for name, expected in runs[1][0].items():
        if name.startswith("gradient") or "running" in name or name == "loss":
            scale = np.abs(expected).max()
            assert np.abs(runs[2][0][name] - expected).max() <= 1e-10 * scale, name


def test_the_same_seed_gives_the_same_run_however_often_it_is_saved(trained, tiny, tmp_path):
    assert train.main(["--out", str(tmp_path / "run"), *tiny, "--seed", "0",
                       "--save-seconds", "0"]) == 0
    assert_same_run(tmp_path / "run", trained)


def test_another_seed_gives_another_run(trained, tiny, tmp_path):
    assert train.main(["--out", str(tmp_path / "run"), *tiny, "--epochs", "1", "--seed", "1"]) == 0
    one, other = (arrays(folder / "best.safetensors")["fc.weight"]
                  for folder in (trained, tmp_path / "run"))
    assert not np.array_equal(one, other)


def test_a_line_an_update(trained):
    lines = read_metrics(trained / "metrics.jsonl")
    assert [line["update"] for line in lines] == list(range(1, len(lines) + 1))
    for line in lines:
        assert line.keys() == {"kind", "update", "epoch", "loss", "learning_rate", "gradient_norm",
                               "gradient_norms", "chunks", "data_time", "compute_time",
                               "frames_per_second"}
        stages = line["gradient_norms"]
        assert list(stages) == ["stem", "block1", "block2", "block3", "block4", "fc"]
        assert np.linalg.norm(list(stages.values())) == pytest.approx(line["gradient_norm"])
        assert line["gradient_norm"] > 0 and line["compute_time"] > 0
    rates = [line["learning_rate"] for line in lines]
    assert rates[0] == config.resolve({}).lr and rates == sorted(rates, reverse=True)
    evaluations = read_metrics(trained / "metrics.jsonl", "evaluation")
    assert [line["epoch"] for line in evaluations] == [1, 2]


def test_the_best_epoch_is_chosen_on_held_out_videos(trained):
    lines = read_metrics(trained / "metrics.jsonl", "evaluation")
    best = min(lines, key=lambda line: (line["video_error"], line["loss"]))
    result = read_json(trained / "result.json")
    assert result["best"]["epoch"] == best["epoch"]
    assert load_safetensors(trained / "best.safetensors")[1]["epoch"] == str(best["epoch"])


def test_a_loss_that_is_not_finite_stops_the_run(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(FrameLoader, "load",
                        lambda self, chunks, epoch=None, backwards=False: np.full(
                            (len(chunks), 2, 32, 32, 3), np.nan, np.float32))
    assert train.main(["--out", str(tmp_path / "run"), *tiny]) == 1
    complaint = capsys.readouterr().err.strip().splitlines()
    assert len(complaint) == 1
    assert complaint[0].startswith("error: update 1: the loss is nan; the chunks were of ")
    assert complaint[0].count(".avi") >= 8


def test_numbers_that_overflow_are_one_line(tiny, tmp_path, capsys):
    assert train.main(["--out", str(tmp_path / "run"), *tiny, "--lr", "1e30"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "update 2: the " in line


def test_clipping_and_the_norm_that_is_logged(tiny, tmp_path):
    assert train.main(["--out", str(tmp_path / "run"), *tiny, "--epochs", "1",
                       "--clip-norm", "0.001"]) == 0
    norms = [line["gradient_norm"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert min(norms) > 0.001  # as it was before


def test_a_checkpoint_of_another_run_is_refused(trained, tmp_path):
    options = Run.open(trained).config
    model = build_model(config.replace(options, width=5), 10)
    optimizer = trainer.optim.Adam(model.named_parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"checkpoint.safetensors: state of .* has shape"):
        checkpoint.load(trained / "checkpoint.safetensors", model, optimizer)
    with pytest.raises(ValueError, match="not a checkpoint to go on from"):
        checkpoint.load(trained / "best.safetensors", model, optimizer)
