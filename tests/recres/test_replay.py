"""`python -m recres.replay`: the update is made again, and where it begins is found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recres import config, replay, train
from recres.files import read_json, write_json
from recres.guard import Found
from recres.loader import FrameLoader
from recres.replay import Dump
from recres.trainer import Trainer
from tensorlite import Tensor, trace
from tensorlite.io import load_safetensors, save_safetensors


@pytest.fixture(scope="module")
def dump(tiny, tmp_path_factory) -> Path:
    """Of a run whose second update has a NaN in its inputs."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    load = FrameLoader.load

    def loads(self, chunks, epoch=None, backwards=False):
        out = load(self, chunks, epoch, backwards)
        if any(chunk.number == 30 for chunk in chunks) and epoch == 0:
            out[3, 1, 5, 6, 2] = np.nan
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrameLoader, "load", loads)
        assert train.main(["--out", str(folder), *tiny]) == 1
    return folder / "nonfinite-2.json"


def changed(dump: Path, folder: Path, **arrays: np.ndarray) -> Path:
    """A copy of a dump with other arrays."""
    found, about = load_safetensors(dump.with_suffix(".safetensors"))
    path = folder / "nonfinite-2.json"
    save_safetensors(path.with_suffix(".safetensors"), {**found, **arrays}, about)
    write_json(path, read_json(dump))
    return path


def test_inputs_that_are_not_finite(dump, capsys):
    """By either of the two files."""
    for path in (dump, dump.with_suffix(".safetensors")):
        assert replay.main([str(path)]) == 0
        out = capsys.readouterr().out
        assert "update 2 of epoch 1: the loss is nan" in out
        assert "the first that is not finite is that of conv1.weight" in out
        assert "first     the input" in out and "1 of 61440 values not finite" in out
        assert "read by reshape in the model itself" in out
        assert out.count(".avi") >= 8


def test_an_overflow_forwards_is_found_where_it_arises(dump, tmp_path, capsys):
    """In the stem's convolution, on good inputs and parameters."""
    arrays, _ = load_safetensors(dump.with_suffix(".safetensors"))
    good = np.nan_to_num(arrays["inputs/0"])
    path = changed(dump, tmp_path, **{
        "inputs/0": good, "model/conv1.weight": np.full_like(arrays["model/conv1.weight"], 3e38)})
    assert replay.main([str(path)]) == 0
    (first,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("first")]
    assert "forwards: conv2d in conv1 (Conv2d)" in first
    assert "|weight| <= 3e+38" in first and "resnet.py:" in first


def test_an_overflow_backwards_is_found_where_it_arises():
    """log and sqrt are finite at tiny numbers, their derivatives are not."""
    with np.errstate(all="ignore"), trace.record() as tape:
        x = Tensor(np.array([1.0, 1e-40], np.float32), requires_grad=True)
        loss = x.log().sum()
        loss.backward()
    assert "backwards: log" in replay.first_event(tape)
    assert "1 of 2 values not finite" in replay.first_event(tape)
    with trace.record() as tape:
        (x * x).sum().backward()
    assert replay.first_event(tape) is None


def test_an_update_that_is_finite_this_time(dump, tmp_path, capsys):
    arrays, _ = load_safetensors(dump.with_suffix(".safetensors"))
    path = changed(dump, tmp_path, **{"inputs/0": np.nan_to_num(arrays["inputs/0"])})
    assert replay.main([str(path)]) == 1
    out = capsys.readouterr().out
    assert "every gradient is finite" in out and "first" not in out.split("again")[1]


def test_the_loss_is_the_one_of_the_run(tiny, tmp_path, monkeypatch, capsys):
    """Bit for bit: a gradient is spoilt in the run alone; what is replayed is its update."""
    accumulate, seen = Trainer.accumulate, []

    def accumulates(self, inputs, batch, size):
        value = accumulate(self, inputs, batch, size)
        if self.progress.update == 2:
            seen.append(value)
            self.optimizer.params["fc.bias"].grad[:] = np.nan
        return value

    monkeypatch.setattr(Trainer, "accumulate", accumulates)
    assert train.main(["--out", str(tmp_path / "run"), *tiny]) == 1
    assert "run again, it was finite" in capsys.readouterr().err
    assert replay.main([str(tmp_path / "run" / "nonfinite-3.json")]) == 1
    assert f"the loss is {seen[0]:.6g} and every gradient is finite" in capsys.readouterr().out


@pytest.mark.parametrize(("fused", "plain", "file"), [
    (Found(1.0, None, 2), Found(np.nan, "a", 1), "one.avi"),  # one batch is finite, as it is run
    (Found(np.nan, "a", 2), Found(1.0, None, 2), "two.avi"),
    (Found(1.0, "a", 1), Found(1.0, "a", 1), "one.avi"),
])
def test_the_files_are_those_of_the_batch_that_is_not_finite(fused, plain, file):
    """Where only the plain ops make what is not finite, of the batch where they do."""
    about = {"batches": [[{"file": "/x/one.avi"}], [{"file": "/x/two.avi"}]]}
    dump = Dump(Path("x.json"), about, config.resolve({"root": "x"}), {}, [])
    lines = dict(replay._lines(dump, dump.config, fused, plain, None))
    assert lines["files"] == file
    assert ("plain ops" in lines) == (fused.finite != plain.finite)


def test_the_page(dump, tmp_path, capsys):
    assert replay.main([str(dump), "--html", str(tmp_path / "flow.html")]) == 0
    assert "page" in capsys.readouterr().out
    text = (tmp_path / "flow.html").read_text()
    assert "Update 2: the loss is nan" in text


def test_what_is_no_dump(dump, trained, tmp_path, capsys):
    (tmp_path / "x.json").write_text("[1]")
    (tmp_path / "part.json").write_text(json.dumps({"format": "recres-nonfinite-1"}))
    save_safetensors(tmp_path / "part.safetensors", {"a": np.zeros(1)})
    for path, text in ((tmp_path / "none.json", "no such file"),
                       (tmp_path / "x.json", "not an update that a run has written down"),
                       (trained / "config.json", "not an update"),
                       (trained, "a folder, expected a run's nonfinite-<update>.json"),
                       (tmp_path / "part.json", "not whole, 'options' is not there")):
        assert replay.main([str(path)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert text in line
    assert replay.main([str(dump), "--html", str(tmp_path / "no" / "x.html")]) == 2
    assert replay.main([str(dump), "--threads", "0"]) == 2


def test_the_command_line(dump):
    done = subprocess.run([sys.executable, "-m", "recres.replay", str(dump)], capture_output=True,
                          text=True)
    assert done.returncode == 0 and not done.stderr
    assert "first     the input" in done.stdout
