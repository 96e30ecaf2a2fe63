"""Every kind of run is exported and checked on real frames, or refused before anything is written.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from recres import build, checkpoint, export
from recres.config import resolve
from recres.runs import Run
from recres.torch_weights import SUFFIXES
from tensorlite import nn
from tensorlite.io import load_safetensors

CHUNKS = ({}, {"skip": "conv", "position": "mid_block4", "context": 3, "readout": "mean"},
          {"skip": "conv_nonlinear", "backbone": "resnet50", "width": 2},
          {"skip": "pure_temporal", "context": 4, "truncate": "block3", "version": "v1.5"},
          {"skip": "none", "context": 3}, {"context": 1}, {"model": "avgpool", "context": 3},
          {"freeze": "block3"}, {"mirror": True, "freeze": "block2"})
OTHERS = ({"sampling": "segments", "context": 3}, {"input": "dynamic"},
          {"input": "flow", "flow_length": 2}, {"model": "avgpool", "sampling": "segments"},
          {"model": "avgpool", "input": "flow", "flow_length": 1},
          {"model": "avgpool", "input": "dynamic"})
FEATURES = tuple({"model": model, "features": "block3"} for model in ("avgpool", "gru", "lstm"))
WORDS = {"segments": "3 equal parts", "dynamic": "one dynamic image",
         "flow": "fields of optical flow"}


def named(options) -> str:
    return " ".join(f"{name} {value}" for name, value in options.items()) or "default"


@pytest.fixture
def run(request, figures_root: Path, tmp_path: Path) -> Path:
    """A run with these options, as if trained; its network wants caffe input if it can."""
    options = {"root": str(figures_root), "width": 4, "image_size": 32, "threads": 1, "holdout": 0,
               **request.param}
    config = resolve(options)
    made = Run.create(tmp_path / "run", config, {})
    made.unlock()
    classes = [f"class {i}" for i in range(10)]
    model = build.build_model(config, len(classes))
    rng = np.random.default_rng(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean[:] = 0.1 * rng.standard_normal(module.c)
            module.running_var[:] = rng.uniform(0.5, 1.5, module.c)
    checkpoint.save_model(made.path / "best.safetensors", model, {
        "classes": json.dumps(classes), "input_convention": "caffe"})
    return made.path


@pytest.mark.parametrize("run", CHUNKS + OTHERS, indirect=True, ids=named)
def test_chunks(run: Path, tmp_path: Path, capsys):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    assert export.main([str(run), str(path), "--check", "3", "--threads", "1"]) == 0
    assert "on 3 chunks of test videos" in capsys.readouterr().out
    config = Run.open(run).config
    about = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert about["input_convention"] == ("flow" if config.input == "flow" else "caffe")
    for kind in {config.sampling, config.input} & set(WORDS):
        assert WORDS[kind].replace("3", str(config.context)) in about["frames"]


@pytest.mark.parametrize("run", CHUNKS, indirect=True, ids=named)
def test_streams(run: Path, tmp_path: Path, capsys):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    argv = [str(run), str(tmp_path / "model.onnx"), "--stream", "--check", "3", "--threads", "1"]
    assert export.main(argv) == 0
    said = capsys.readouterr().out
    checked = int(said.split(" chunks of test videos")[0].split()[-1])
    assert checked >= 3 and f"the same class on {checked}\n" in said


@pytest.mark.parametrize("run", OTHERS, indirect=True, ids=named)
def test_no_streams_of_what_is_no_chunk_of_frames(run: Path, tmp_path: Path, capsys):
    assert export.main([str(run), str(tmp_path / "model.onnx"), "--stream"]) == 2
    error = capsys.readouterr().err
    assert "--stream: the run does not look at chunks" in error and error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("run", FEATURES, indirect=True, ids=named)
@pytest.mark.parametrize("name", ["model.onnx", *(f"model{suffix}" for suffix in SUFFIXES)])
def test_no_models_of_features(run: Path, tmp_path: Path, capsys, name):
    assert export.main([str(run), str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert "needs a network of frames" in error and error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("run", CHUNKS + OTHERS, indirect=True, ids=named)
def test_weights(run: Path, tmp_path: Path, capsys):
    """Into the network of the same options, without a number changed."""
    path = tmp_path / "model.safetensors"
    assert export.main([str(run), str(path)]) == 0
    config = Run.open(run).config
    model = build.build_network(config, 10)
    report = build.load_pretrained(model, path, log=str)
    ours, _ = load_safetensors(run / "best.safetensors")
    assert not report.initialised and report.version == config.version
    assert all(np.array_equal(ours[name], array) for name, array in model.state_dict().items())
