"""Options: defaults by data set, ranges, contradictions, and the way through JSON."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields

import pytest

import tensorlite
from recres import config, limits, train
from recres.config import Config
from recres.errors import InputError


def test_what_is_not_given_is_filled_in_by_data_set(tmp_path):
    figures, ucf101 = config.resolve({}, tmp_path), config.resolve({"data": "ucf101"}, tmp_path)
    assert (figures.backbone, figures.width, figures.image_size) == ("resnet18", 16, 64)
    assert (ucf101.backbone, ucf101.width, ucf101.image_size) == ("resnet50", 64, 224)
    assert (ucf101.frame_step, ucf101.context, ucf101.skip) == (10, 2, "identity")
    assert figures.root == str(tmp_path / "figures")
    assert figures.threads == tensorlite.get_num_threads()


def test_json_round_trip():
    full = config.resolve({"update_fraction": 0.01, "lr": 3e-4})
    assert Config.from_json(json.loads(json.dumps(full.to_json())), "x") == full


def test_a_run_from_before_an_option_gets_its_default():
    values = config.resolve({"data": "ucf101", "lr": 0.5, "threads": 7}).to_json()
    assert Config.from_json(values, "x").threads == 7
    del values["threads"]
    older = Config.from_json(values, "x")
    assert older.threads == tensorlite.get_num_threads()
    assert older.to_json() == values | {"threads": older.threads}


def test_workers_are_for_the_gpu_unless_asked_for(monkeypatch):
    monkeypatch.setattr(config, "require_cuda", lambda device: None)
    cores = tensorlite.get_num_threads()
    assert config.resolve({}).workers == 0 and config.resolve({"workers": 3}).workers == 3
    assert config.resolve({"device": "cuda"}).workers == min(8, cores)
    assert config.resolve({"device": "cuda:1", "workers": 0}).workers == 0
    assert config.cuda_workers(10**6) == 1
    values = config.resolve({"device": "cuda"}).to_json()
    del values["workers"]
    assert Config.from_json(values, "x").workers == 0  # what runs from before the option did


@pytest.mark.parametrize("missing", ["lr", "seed", "data"])
def test_options_that_every_run_has_must_be_there(missing):
    values = config.resolve({}).to_json()
    del values[missing]
    with pytest.raises(InputError, match=rf"x: not the options of a run \(see {missing}\)"):
        Config.from_json(values, "x")


def test_json_of_something_else_is_refused():
    values = config.resolve({}).to_json() | {"speed": 9}
    with pytest.raises(InputError, match=r"config.json: not the options of a run \(see speed\)"):
        Config.from_json(values, "config.json")


@pytest.mark.parametrize(("values", "message"), [
    ({"epochs": 0}, "--epochs 0: expected at least 1"),
    ({"lr": 0.0}, "--lr 0.0: expected more than 0"),
    ({"lr": float("nan")}, "--lr nan: expected more than 0"),
    ({"update_fraction": 1.5}, "--update-fraction 1.5: expected more than 0 and at most 1"),
    ({"holdout": 0.95}, "--holdout 0.95: expected at least 0 and at most 0.9"),
    ({"split": 4}, "--split 4: expected at least 1 and at most 3"),
    ({"seed": -1}, "--seed -1: expected at least 0"),
    ({"model": "avgpool", "skip": "conv"}, "--skip conv: --model avgpool has no temporal skip"),
    ({"context": 1, "skip": "conv"}, "--skip conv: a chunk of one frame"),
    ({"context": 1, "skip": "identity"}, "--skip identity: a chunk of one frame"),
    ({"skip": "none", "position": "block1"}, "--position block1: --skip none has no temporal skip"),
    ({"recurrent_gradient": "same-frame"}, "--recurrent-gradient same-frame: --skip identity has"),
    ({"truncate": "block3", "freeze": "block4"}, "--freeze block4: --truncate block3 ends"),
    ({"features": "block3"}, "--features block3: a recurrent residual network needs feature maps"),
    ({"features": "block3", "model": "gru", "context": 3}, "--context 3: --features takes whole"),
    ({"features": "block3", "model": "gru", "freeze": "stem"}, "--freeze stem: --features stand"),
    ({"features": "block3", "model": "gru", "colour_jitter": 0.1}, "--colour-jitter: with --featu"),
    ({"features": "block3", "model": "avgpool", "sampling": "segments"}, "--sampling segments: w"),
    ({"model": "gru"}, "--model gru: works on the features of a frozen backbone"),
    ({"model": "avgpool", "z_norm": True}, "--z-norm: without --features"),
    ({"input": "dynamic", "context": 2}, "--context 2: a video has one dynamic image"),
    ({"input": "flow", "colour_jitter": 0.1}, "--colour-jitter: flow has no colours"),
    ({"store": "/x"}, "--store /x: nothing is frozen"),
    ({"updates": 5, "epochs": 2}, "--epochs 2: --updates 5 says already"),
    ({"freeze": "stem", "augment_per_frame": True}, "--augment-per-frame: with --freeze"),
    ({"freeze": "stem", "colour_jitter": 0.1}, "--colour-jitter: with --freeze"),
    ({"mirror": True}, "--mirror: without --freeze"),
    ({"threads": 0}, "--threads 0: expected at least 1"),
    ({"threads": -2}, "--threads -2: expected at least 1"),
    ({"threads": 10**400}, "expected at least 1 and at most 4096"),
    ({"width": 513}, "--width 513: expected at least 1 and at most 512"),
    ({"context": 1025}, "--context 1025: expected at least 1 and at most 1024"),
    ({"image_size": 4097}, "--image-size 4097: expected at least 32 and at most 4096"),
    ({"batch": 65537}, "--batch 65537: expected at least 1 and at most 65536"),
    ({"processes": 65537}, "--processes 65537: expected at least 1 and at most 65536"),
    ({"batch": 2**16, "image_size": 512}, "--batch 65536: with --context 2 and --image-size 512 "
     "412316860416 bytes at once, more than the 68719476736 of recres.limits.BATCH_BYTES"),
    ({"workers": 256, "context": 1024, "image_size": 224}, "--workers 256: with --context 1024"),
    ({"weights": "/nowhere.npz"}, "--weights /nowhere.npz: no such file"),
    ({"device": "tpu"}, "--device: got 'tpu'"),
])
def test_refused(values, message):
    with pytest.raises(InputError) as caught:
        config.resolve(values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [
    {"width": 512}, {"context": 1024, "batch": 1}, {"image_size": 4096, "batch": 64},
    {"batch": 2**16}, {"model": "gru", "features": "block3", "batch": 2**16, "image_size": 512}])
def test_what_is_large_but_can_be_is_not_refused(values):
    assert Config.from_json(config.resolve(values).to_json(), "x")


def test_how_much_a_batch_may_be_is_a_limit(monkeypatch):
    values = config.resolve({"batch": 2, "workers": 1, "input": "flow", "flow_length": 4}).to_json()
    nbytes = 4 * 2 * 2 * 64 * 64 * 8
    monkeypatch.setattr(limits, "BATCH_BYTES", nbytes)
    found = Config.from_json(values, "x")
    monkeypatch.setattr(limits, "BATCH_BYTES", nbytes - 1)
    with pytest.raises(InputError, match="^x: --batch 2: with --context 2 and --image-size 64"):
        Config.from_json(values, "x")
    monkeypatch.setattr(limits, "BATCH_BYTES", nbytes)
    with pytest.raises(InputError, match="^--workers 2: with "):
        config.with_changes(found, {"workers": 2})


def test_options_that_mean_nothing_to_the_baseline_are_empty():
    baseline = config.resolve({"model": "avgpool"})
    assert (baseline.skip, baseline.position, baseline.readout) == (None, None, None)
    assert baseline.recurrent_gradient is None


@pytest.mark.parametrize(("values", "expected"), [
    ({"skip": "none"}, {"position": None, "recurrent_gradient": None, "readout": "last"}),
    ({"context": 1}, {"skip": "none", "position": None}),
    ({"truncate": "block3"}, {"position": "block3"}),
    ({"truncate": "block3", "position": "block1"}, {"position": "block1"}),
    ({"skip": "conv"}, {"recurrent_gradient": "correct", "position": "block4"}),
    ({"input": "dynamic"}, {"context": 1, "skip": "none"}),
    ({"input": "flow"}, {"context": 2, "colour_jitter": 0.0}),
    ({"model": "gru", "features": "block2"}, {"context": 1, "skip": None, "colour_jitter": 0.0}),
])
def test_options_that_follow_from_others(values, expected):
    found = config.resolve(values)
    assert {name: getattr(found, name) for name in expected} == expected


def test_every_option_is_on_the_command_line_with_its_default(capsys):
    with pytest.raises(SystemExit) as caught:
        train.main(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for item in fields(Config):
        assert f"--{item.name.replace('_', '-')}" in text
    assert "(default: 64; for ucf101 224)" in text


def test_only_what_was_given_is_in_the_namespace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = train.parser().parse_args(["--lr", "0.5", "--root", "videos"])
    assert config.given(args) == {"lr": 0.5, "root": str(tmp_path / "videos")}


def test_using_a_run_may_differ_in_where_and_with_what():
    parser = argparse.ArgumentParser()
    config.add_overrides(parser)
    full = config.resolve({"lr": 0.5})
    assert config.override(full, parser.parse_args([])) == full
    elsewhere = config.replace(full, threads=full.threads + 1)  # on a machine with another core
    assert config.override(elsewhere, parser.parse_args([])) == full
    changed = config.override(full, parser.parse_args(["--threads", "3", "--root", "videos"]))
    assert (changed.threads, changed.root, changed.lr) == (3, "videos", 0.5)
    stored = config.override(full, parser.parse_args(["--frames", "store"]))
    assert stored.frames == "store"
    assert config.override(stored, parser.parse_args([])).frames == "store"
    assert config.override(stored, parser.parse_args(["--frames", "none"])) == full
    with pytest.raises(InputError, match="--threads 0: expected at least 1"):
        config.override(full, parser.parse_args(["--threads", "0"]))
