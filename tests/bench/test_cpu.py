"""`python -m bench.cpu` as it is called: what it prints, what it refuses, and that a side which
computes something else, or dies, does not pass."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import cpu, sides
from bench.rows import FOLDED, OURS, ROWS, Side, Tolerance, arrays, conv, network, select

ROOT = Path(__file__).resolve().parents[2]
TINY_CONV = conv("tiny_conv", 8, 4, 5, 3, 2, "both", (Side("pytorch", "nchw"),), batch=2)


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "bench.cpu", *arguments], cwd=ROOT, text=True,
                          env={**os.environ, **environment}, capture_output=True, timeout=120)


def check_numbers(result: dict) -> None:
    low, high = result["spread"]
    times = [result["tensorlite_s"], *result["variants_s"].values()]
    assert all(math.isfinite(t) and t > 0 for t in times)
    assert min(result["variants_s"].values()) == result["pytorch_s"]
    assert result["ratio"] == pytest.approx(result["tensorlite_s"] / result["pytorch_s"])
    assert 0 < low <= high < math.inf


def test_a_row_from_end_to_end():
    pytest.importorskip("torch")
    name = "conv_7x7_2048_512_k1_s1_forward"
    # A setting that would be the death of PyTorch's side, if it saw it.
    done = command("--json", "--only", name, "--pairs", "2", "--threads", "1",
                   OMP_NUM_THREADS="100000")
    assert done.returncode == 0, done.stderr
    [result] = json.loads(done.stdout)
    assert result["name"] == name and result["pairs"] == 2
    assert result["shapes"] == {"x": [8, 7, 7, 2048], "weight": [1, 1, 2048, 512],
                                "grad": [8, 7, 7, 512]}
    assert set(result["variants_s"]) == {"nchw", "channels_last"}
    assert result["pytorch_variant"] in result["variants_s"]
    check_numbers(result)
    for word in ("1 thread,", "Python ", "NumPy ", "openblas", "PyTorch "):
        assert word in done.stderr


@pytest.mark.parametrize("row", [
    network("train", "train", 18, 8, opponents=FOLDED[:1], size=64, width=4),
    network("infer", "infer", 18, 2, opponents=FOLDED[1:2], size=32, width=4),
], ids=lambda row: row.name)
def test_networks(row):
    pytest.importorskip("torch")
    result, about = cpu.measure(row, threads=1, pairs=1)
    check_numbers(result)
    assert set(about) == set(row.sides)
    json.dumps(result)
    text = cpu.line(result)
    assert text.startswith(row.name) and f"{result['ratio']:.2f}" in text
    assert 30 < result["tensorlite_mb"] < 1000 and 60 < result["pytorch_mb"] < 3000
    assert result["memory_ratio"] == pytest.approx(result["tensorlite_mb"] / result["pytorch_mb"])


@pytest.mark.parametrize("side", [Side("mygrad"), Side("autograd"), Side("autograd", "by hand")])
def test_other_engines(side):
    pytest.importorskip(side.engine)
    row = conv("tiny", 9, 4, 5, 3, 2, "both", (side,), batch=2)
    result, _ = cpu.measure(row, threads=1, pairs=1)
    assert result["ratio"] == pytest.approx(result["tensorlite_s"] / result["other_s"])
    assert result["other"].startswith(side.engine) and "pytorch_s" not in result


def test_a_wrong_result_fails(monkeypatch, capsys):
    pytest.importorskip("torch")
    honest = sides.Child.results

    def results(child):
        for name, array in honest(child):
            if child.side == OURS and name == "grad.weight":
                array = array.copy()
                array.flat[-1] += 1e-3 * np.abs(array).max()
            yield name, array

    monkeypatch.setattr(cpu, "ROWS", (TINY_CONV,))
    arguments = ["--only", "tiny_conv", "--pairs", "1", "--threads", "1"]
    assert cpu.main(arguments) == 0
    assert "FAILED" not in capsys.readouterr().out
    monkeypatch.setattr(sides.Child, "results", results)
    assert cpu.main([*arguments, "--json"]) == 1
    output = capsys.readouterr()
    [result] = json.loads(output.out)
    assert "grad.weight differs" in result["failed"] and "ratio" not in result
    assert "error: tiny_conv: grad.weight differs" in output.err
    assert "FAILED: grad.weight differs" in cpu.line(result)


def test_what_does_not_agree():
    ones, tolerance = np.ones(4), Tolerance(1e-3, 1e-1)
    side = Side("pytorch", "nchw")
    cpu.compare({"y": ones}, [("y", ones * 1.0005)], side, tolerance)
    cpu.compare({"grad.x": ones}, [("grad.x", ones * 1.05)], side, tolerance)
    for theirs in ({"y": ones * 1.002}, {"y": np.ones(5)}, {"y": ones, "z": ones}, {},
                   {"y": np.array([1, 1, 1, np.nan])}, {"y": ones * np.inf}, {"y": 0 * ones}):
        with pytest.raises(sides.Failed):
            cpu.compare({"y": ones}, theirs.items(), side, tolerance)
    one_off = np.array([1.0, 1.0, 1.0, 1.15])
    cpu.compare({"grad.x": one_off}, [("grad.x", ones)], side, Tolerance(0, 0.1, euclidean=True))
    with pytest.raises(sides.Failed):
        cpu.compare({"grad.x": one_off}, [("grad.x", ones)], side, tolerance)


def test_a_child_that_dies_says_so_in_one_line():
    child = sides.Child(OURS, threads=1)
    try:
        child.build(TINY_CONV, arrays(TINY_CONV))
        child.process.kill()
        with pytest.raises(sides.Failed, match="tensorlite: its process died.*signal 9") as caught:
            list(child.results())
        assert "\n" not in str(caught.value)
    finally:
        child.close()


def test_a_child_that_fails_says_why_in_one_line():
    child = sides.Child(OURS, threads=1)
    try:
        with pytest.raises(sides.Failed, match="tensorlite: .*conv2d") as caught:
            child.build(TINY_CONV, {**arrays(TINY_CONV), "x": np.zeros(3, np.float32)})
            list(child.results())
        assert "\n" not in str(caught.value)
    finally:
        child.close()


def test_what_is_not_installed_is_skipped(monkeypatch, capsys):
    row = conv("absent", 8, 4, 5, 3, 1, "both", (Side("no_such_engine"),), batch=2)
    monkeypatch.setattr(cpu, "ROWS", (row,))
    assert cpu.main(["--json"]) == 0
    [result] = json.loads(capsys.readouterr().out)
    assert result["name"] == "absent" and "no_such_engine" in result["skipped"]


def test_names():
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    assert {"resnet50_train_b8", "resnet50_infer_b8", "resnet50_infer_folded_b8",
            "resnet50_infer_b1", "rrn50_train_b4x2", "resnet18_train_b8",
            "gru128_32x19x2048"} < set(names)
    selected = lambda *patterns: [row.name for row in select(patterns, ROWS)]  # noqa: E731
    assert selected() == names
    assert selected("resnet50_infer_b8") == ["resnet50_infer_b8"]
    assert selected("gru", "resnet18") == ["resnet18_train_b8", "gru128_32x19x2048"]
    assert len(selected("conv_*_forward")) == len(selected("conv_*_backward")) == 23


@pytest.mark.parametrize("arguments", [["--only", "no_such_row"], ["--pairs", "0"],
                                       ["--threads", "many"], ["--unknown"]])
def test_wrong_arguments_are_one_line_and_status_2(arguments, capsys):
    assert cpu.main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("error: ")
    assert len(output.err.strip().splitlines()) == 1
