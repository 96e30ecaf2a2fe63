"""Updates that are not finite: what is said, what is kept of them, and leaving them out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from recres import guard, train
from recres.files import read_json
from recres.guard import Batch, again
from recres.loader import FrameLoader
from recres.models import recurrent_resnet
from recres.runs import read_metrics
from recres.trainer import Trainer
from tensorlite.io import load_safetensors

BAD = 30  # a chunk that `tiny` trains on in the second update of the first epoch


@pytest.fixture
def spoil(monkeypatch):
    """spoil(chunks): the inputs of these of an epoch, by their numbers, hold a NaN."""
    load = FrameLoader.load

    def spoil(wanted) -> None:
        def loads(self, chunks, epoch=None, backwards=False):
            out = load(self, chunks, epoch, backwards)
            for place, chunk in zip(out, chunks, strict=True):
                if epoch is not None and wanted(epoch, chunk):
                    place[0, 3, 4, 1] = np.nan
            return out

        monkeypatch.setattr(FrameLoader, "load", loads)

    return spoil


def lines(folder: Path, kind: str) -> list[dict]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def test_again_finds_batch_and_parameter():
    """The first batch is finite, the second is not; only behind the place of the NaN."""
    model = recurrent_resnet(18, classes=3, context=2, width=4, rng=0)
    rng = np.random.default_rng(0)
    batches = [Batch(rng.standard_normal((2, 2, 32, 32, 3)).astype(np.float32), {},
                     np.array([0, 1])) for _ in range(3)]
    assert again(model, batches, 6) == again(model, batches, 6)
    found = again(model, batches, 6)
    assert found.finite and found.batches == 3
    batches[1].inputs[0, 0, 0, 0, 0] = np.inf
    with np.errstate(all="ignore"):
        found = again(model, batches, 6)
    assert not found.finite and found.batches == 2 and found.parameter == "conv1.weight"
    batches[1] = batches[0]
    dict(model.named_parameters())["fc.weight"].data[:] = 3e38
    with np.errstate(all="ignore"):
        found = again(model, batches, 6)
    assert not found.finite and found.batches == 1


def test_a_line_names_a_few_files_of_many():
    assert guard.shown(["a", "b"]) == "a, b"
    assert guard.shown([str(i) for i in range(10)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"


def test_a_stop_names_parameter_and_files_and_leaves_a_dump(spoil, tiny, tmp_path, capsys):
    spoil(lambda epoch, chunk: epoch == 0 and chunk.number == BAD)
    folder = tmp_path / "run"
    assert train.main(["--out", str(folder), *tiny]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    (path,) = folder.glob("nonfinite-*.json")
    number = int(path.stem.rpartition("-")[2])
    assert line.startswith(f"error: update {number}: the loss is nan; the chunks were of ")
    assert "the first gradient that is not finite is that of conv1.weight" in line
    assert line.endswith(f"python -m recres.replay {path}")
    about = read_json(path)
    files = [Path(chunk["file"]).name for chunk in about["batches"][0]]
    assert BAD in [chunk["number"] for chunk in about["batches"][0]]
    assert all(name in line for name in files)
    arrays, _ = load_safetensors(path.with_suffix(".safetensors"))
    assert np.isnan(arrays["inputs/0"]).sum() == 1
    assert arrays["labels/0"].shape == (len(about["batches"][0]),)
    assert int(arrays["optimizer/step"]) == number - 1
    assert all(np.isfinite(array).all() for name, array in arrays.items()
               if name.startswith(("model/conv", "model/block", "optimizer/first")) and
               "running" not in name)


def test_the_dump_is_of_the_parameters_that_the_update_began_with(spoil, tiny, tmp_path,
                                                                   monkeypatch, capsys):
    """Those that a run without the bad video has after the update before."""
    spoil(lambda epoch, chunk: epoch == 0 and chunk.number == BAD)
    assert train.main(["--out", str(tmp_path / "run"), *tiny]) == 1
    (path,) = (tmp_path / "run").glob("nonfinite-*.safetensors")
    number = int(path.stem.rpartition("-")[2])
    arrays, _ = load_safetensors(path)
    kept: dict[str, np.ndarray] = {}
    update = Trainer._update

    def updates(self, *arguments):
        if self.progress.update == number - 1:
            kept.update(self.model.state_dict())
        update(self, *arguments)

    monkeypatch.setattr(Trainer, "_update", updates)
    spoil(lambda epoch, chunk: False)
    assert train.main(["--out", str(tmp_path / "good"), *tiny, "--epochs", "2"]) == 0
    for name, array in kept.items():
        if "running" not in name:
            assert arrays[f"model/{name}"].tobytes() == array.tobytes(), name


def test_skip_leaves_the_update_out_and_nothing_else(spoil, tiny, tmp_path, monkeypatch, capsys):
    """Parameters, moments and running statistics go on as if there had been no such update."""
    spoil(lambda epoch, chunk: epoch == 0 and chunk.number == BAD)
    folder = tmp_path / "run"
    states: list[dict[str, np.ndarray]] = []
    update = Trainer._update

    def updates(self, *arguments):
        states.append({**self.model.state_dict(), **self.optimizer.state_dict()})
        update(self, *arguments)
        states.append({**self.model.state_dict(), **self.optimizer.state_dict()})

    monkeypatch.setattr(Trainer, "_update", updates)
    assert train.main(["--out", str(folder), *tiny, "--on-nonfinite", "skip"]) == 0
    (skipped,) = lines(folder, "nonfinite")
    assert skipped["what"] == "the loss is nan" and skipped["parameter"] == "conv1.weight"
    assert len(skipped["files"]) > 1 and all(name.endswith(".avi") for name in skipped["files"])
    number = skipped["update"]
    before, after = states[2 * number - 2 : 2 * number]
    for name in before:
        if name != "lr":
            assert before[name].tobytes() == after[name].tobytes(), name
    updates_made = [line["update"] for line in read_metrics(folder / "metrics.jsonl")]
    assert number not in updates_made and updates_made[-1] == len(states) // 2
    assert f"left out  update {number}: the loss is nan" in capsys.readouterr().out
    assert len(list(folder.glob("nonfinite-*.json"))) == 1
    assert np.isfinite(read_json(folder / "result.json")["loss"])


def test_a_gradient_alone_is_enough(tiny, tmp_path, monkeypatch):
    """The loss is finite; the gradient is not, once, and running the update again is fine."""
    backward = Trainer.accumulate

    def accumulate(self, inputs, batch, size):
        value = backward(self, inputs, batch, size)
        if self.progress.update == 1:
            self.optimizer.params["fc.weight"].grad[0, 0] = np.inf
        return value

    monkeypatch.setattr(Trainer, "accumulate", accumulate)
    folder = tmp_path / "run"
    assert train.main(["--out", str(folder), *tiny, "--on-nonfinite", "skip"]) == 0
    (skipped,) = lines(folder, "nonfinite")
    assert skipped["update"] == 2 and "gradient's norm is inf" in skipped["what"]
    assert read_json(folder / "nonfinite-2.json")["again"] is False


def test_skip_gives_up(spoil, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(guard, "IN_A_ROW", 2)
    spoil(lambda epoch, chunk: True)
    assert train.main(["--out", str(tmp_path / "run"), *tiny, "--on-nonfinite", "skip"]) == 1
    out = capsys.readouterr()
    (line,) = out.err.strip().splitlines()
    assert "update 2: the loss is nan" in line and "2 updates in a row were left out" in line
    assert {p.name for p in (tmp_path / "run").glob("nonfinite-*.json")} == {
        "nonfinite-1.json", "nonfinite-2.json"}


def test_an_epoch_without_any_update_ends_the_run(spoil, tiny, tmp_path, capsys):
    spoil(lambda epoch, chunk: True)
    assert train.main(["--out", str(tmp_path / "run"), *tiny, "--on-nonfinite", "skip"]) == 1
    assert "epoch 1: all its updates were left out" in capsys.readouterr().err


def test_a_dump_that_cannot_be_written_says_so(spoil, tiny, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(guard, "save_safetensors", full)
    spoil(lambda epoch, chunk: True)
    assert train.main(["--out", str(tmp_path / "run"), *tiny]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "it could not be written down: No space left on device" in line
