"""`python -m bench.cuda` as far as it goes without a GPU: what it measures and counts, how it
chooses, what it prints; and, on a stand-in for the card, that a row is checked and timed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import subprocess
import sys
import time
import types
from pathlib import Path
from statistics import median

import numpy as np
import pytest

import tensorlite as tl
from bench import card, cuda, on_tensorlite, rows, sides
from bench.agreement import difference
from bench.card import Ceilings, Player
from bench.cuda import Turns
from bench.cuda_rows import PRECISIONS, ROWS, in_precision
from bench.rows import PYTORCH, Row, Side, arrays, select
from bench.work import convolutions, work
from recres.errors import InputError
from tensorlite.device import require_cuda

ROOT = Path(__file__).resolve().parents[2]
TINY = rows.conv("tiny", 8, 4, 5, 3, 2, "both", PYTORCH, batch=2)
BY_NAME = {row.name: row for row in ROWS}
CEILINGS = Ceilings(2e12, {"float32": 5e13, "tf32": 3e14, "float16": 6e14})


class Instant:
    """An event of the host's clock."""

    def record(self) -> None:
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        pass


class HostPlayer(Player):
    peak_memory = 1000
    event = staticmethod(Instant)

    def settle(self) -> None:
        self.warm_up()

    def elapsed(self, begin: Instant, end: Instant) -> float:
        return 1e3 * (end.seconds - begin.seconds)


class HostCard:
    """The card's part of `bench.cuda`, played by the CPU."""

    ceilings = CEILINGS

    def __init__(self) -> None:
        self.held = self.released = 0
        self.broken = False

    def about(self) -> list[str]:
        return ["host"]

    def precision(self, name: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def ours(self, row: Row, given: dict[str, np.ndarray]) -> HostPlayer:
        player = HostPlayer(self, row, on_tensorlite.make(row, iter(given.items()), "cpu"))
        player.results = {name: np.array(on_tensorlite.to_numpy(name, value))
                          for name, value in player.run().items()}
        player.settle()
        return player

    def theirs(self, row: Row, variant: str, given: dict[str, np.ndarray]) -> HostPlayer:
        from bench import on_pytorch

        player = HostPlayer(self, row, on_pytorch.make(row, variant, iter(given.items()), "cpu"))
        player.results = {name: np.array(on_pytorch.to_numpy(name, value))
                          for name, value in player.run().items()}
        return player

    def wait(self) -> None:
        pass

    def hold(self, seconds: float) -> None:
        self.held += 1

    def release(self) -> None:
        self.released += 1

    def usable(self) -> bool:
        return not self.broken


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "WARM_UP_SECONDS", 0)
    monkeypatch.setattr(card, "NETWORK_TURN", (0, 1, 1))
    monkeypatch.setattr(card, "LAYER_TURN", (0, 1, 1))


# ---- rows and what they have to do ---------------------------------------------------------------

def test_names():
    assert len(BY_NAME) == len(ROWS)
    for name in ("resnet50_train_b64", "resnet50_train_b256", "resnet50_infer_b64",
                 "resnet50_infer_b256", "rrn50_train_b32x2", "resnet18_train_b64",
                 "gru128_32x19x2048", "conv_56x56_64_64_k3_s1_forward"):
        for precision in PRECISIONS:
            assert BY_NAME[f"{name}_{precision}"].precision == precision
    for phase in ("forward", "backward"):
        assert len(select([f"conv_*_{phase}_tf32"], ROWS)) == len(rows.CONVOLUTIONS)
        assert select([f"norm_relu_56x56_256_{phase}_float16"], ROWS)
    assert BY_NAME["rrn50_train_b32x2_tf32"].shapes["x"] == (32, 2, 224, 224, 3)
    assert BY_NAME["conv_7x7_512_512_k3_s1_forward_tf32"].shapes["x"] == (64, 7, 7, 512)


def test_every_row_has_opponents_of_its_precision():
    for row in ROWS:
        names = [side.variant for side in row.sides[1:]]
        assert names and len(set(names)) == len(names)
        assert all(side.engine == "pytorch" for side in row.sides[1:])
        narrow = any(word in name for name in names for word in ("autocast", "half"))
        assert narrow == (row.job == "network" and row.precision == "float16")
        assert any("compiled" in name for name in names) == (row.job == "network")


@pytest.mark.parametrize(("name", "gigaflops", "per_image"), [
    ("resnet50_infer_b64_tf32", 8.17, 64),  # 4.09 G multiplications and additions, less the head
    ("resnet50_train_b256_float16", 24.29, 256),  # three times that, less the image's gradient
    ("resnet18_train_b64_float32", 10.65, 64),
])
def test_operations_of_known_networks(name, gigaflops, per_image):
    assert work(BY_NAME[name]).flops / per_image == pytest.approx(1e9 * gigaflops, rel=1e-3)


@pytest.mark.parametrize(("depth", "context"), [(18, 0), (50, 0), (50, 2), (18, 3), (34, 5)])
def test_the_counted_convolutions_are_those_that_run(depth, context):
    row = rows.network("tiny", "infer", depth, 2, context, size=64, width=4)
    seen = []

    class Collect(tl.Observer):
        def forward(self, node, output):
            if node.name == "conv2d":
                x, weight = node.inputs[:2]
                kernel, _, cin, cout = weight.shape
                seen.append((*x.shape[:2], cin, cout, kernel, node.options["stride"][0]))

    with tl.no_grad(), tl.observe(Collect()), tl.unfused():
        on_tensorlite.model(row)(tl.Tensor(np.zeros(row.shapes["x"], np.float32)))
    assert sorted(seen) == sorted(convolutions(row))


def test_work_of_layers_by_hand():
    size = 2 * 8 * 8 * 4, 3 * 3 * 4 * 5, 2 * 4 * 4 * 5  # x, weight, y
    product = 2 * 2 * 4 * 4 * 5 * 3 * 3 * 4
    forward, backward = (work(dataclasses.replace(TINY, phase=phase))
                         for phase in ("forward", "backward"))
    assert forward == (product, 4 * sum(size))
    assert backward == (2 * product, 4 * (2 * size[0] + 2 * size[1] + size[2]))
    assert work(TINY) == (3 * product, forward.bytes + backward.bytes)
    assert work(dataclasses.replace(TINY, precision="float16")).bytes == work(TINY).bytes / 2
    image = rows.conv("image", 8, 3, 5, 3, 2, "backward", PYTORCH, batch=2)
    assert work(image).flops == product * 3 // 4
    assert work(rows.norm_relu(5, 6, "both", 2)) == (0, 4 * 5 * 2 * 5 * 5 * 6)
    n, steps, features, hidden = 3, 4, 5, 6
    gru = rows.gru("gru", n, steps, features, hidden)
    per_step = 2 * n * 3 * hidden
    assert work(gru).flops == steps * per_step * (2 * features + 3 * hidden)


def test_steps_in_a_turn(monkeypatch):
    monkeypatch.setattr(card, "NETWORK_TURN", (0.2, 3, 20))
    monkeypatch.setattr(card, "LAYER_TURN", (0.02, 5, 40))
    net = BY_NAME["resnet18_train_b64_tf32"]
    assert [card.steps_in_turn(net, s) for s in (1.0, 0.05, 1e-4)] == [3, 4, 20]
    assert [card.steps_in_turn(TINY, s) for s in (1.0, 1e-3, 1e-6)] == [5, 20, 40]


# ---- choosing, and what is printed ---------------------------------------------------------------

def an_entry(row: Row = TINY, **turns: Turns) -> dict:
    turns = turns or {"nchw": Turns([3.0, 2.0, 9.0], [4.0, 5.0, 9.0]),
                      "channels_last": Turns([2.0, 1.0, 8.0], [1.0, 4.0, 2.0])}
    return cuda.entry(row, turns, 600, dict.fromkeys(turns, 800) | {"nchw": 400},
                      {"compiled": "no compiler"}, CEILINGS)


def test_the_fastest_variant_counts():
    result = an_entry()
    assert result["pytorch_variant"] == "channels_last"
    assert result["variants_s"] == {"nchw": 5.0, "channels_last": 2.0}
    # Our time is from the same turns, not from those beside the slower one.
    assert (result["tensorlite_s"], result["pytorch_s"], result["ratio"]) == (2.0, 2.0, 1.0)
    assert result["spread"] == [0.25, 4.0] and result["pairs"] == 3
    assert result["failed_variants"] == {"compiled": "no compiler"}
    # One quick turn does not make a variant the fastest.
    assert cuda.best({"a": Turns([], [5.0, 0.1, 5.0]), "b": Turns([], [4.0, 4.0, 4.0])}) == "b"


def test_rates_and_memory():
    row = in_precision(rows.network("net", "infer", 18, 2, size=32, width=4), "tf32")
    result, least = an_entry(row), work(row)
    assert result["precision"] == "tf32" and result["flop"] == least.flops
    assert result["tensorlite_flops"] == least.flops / 2
    assert result["tensorlite_bytes_per_s"] == least.bytes / 2
    assert result["ceiling_flops"] == 3e14 and result["ceiling_bytes_per_s"] == 2e12
    assert result["memory_ratio"] == 600 / 800
    assert result["variants_mb"] == {"nchw": 4e-4, "channels_last": 8e-4}
    assert "memory_ratio" not in an_entry()
    assert {"name", "shapes", "tensorlite_s", "pytorch_s", "pytorch_variant", "ratio",
            "memory_ratio"} < set(json.loads(json.dumps(result)))


def test_the_table():
    text = cuda.line(an_entry())
    first, second = text.splitlines()
    assert first.startswith("tiny ") and "channels_last" in first and "  1.00  0.25–4.00" in first
    assert second.strip() == "without compiled: no compiler"
    norm = dataclasses.replace(rows.norm_relu(5, 6, "both"), name="norm")
    assert "0%" in first and cuda.line(an_entry(norm)).count("%") == 1  # no products, no TFLOP/s
    assert "FAILED: it is wrong" in cuda.line({"name": "row", "failed": "it is wrong"})
    heading = cuda.heading(["a card"], CEILINGS)
    assert "a card" in heading and "copy 2000 GB/s" in heading and "tf32 300" in heading
    assert cuda.share(3e14, 6e14, 1e12) == "300  50%"


# ---- a row from end to end, on the stand-in ------------------------------------------------------

@pytest.mark.parametrize("row", [
    TINY, rows.norm_relu(5, 6, "backward", 2), rows.gru("gru", 3, 4, 5, 6),
    rows.network("train", "train", 18, 8, opponents=PYTORCH[:1], size=64, width=4),
    rows.network("infer", "infer", 18, 2, size=32, width=4),
], ids=lambda row: row.name)
def test_a_row(row):
    pytest.importorskip("torch")
    host = HostCard()
    result = cuda.measure(row, arrays(row), 3, host)
    json.dumps(result)
    assert set(result["variants_s"]) == {side.variant for side in row.sides[1:]}
    assert all(math.isfinite(t) and t > 0 for t in result["variants_s"].values())
    assert result["ratio"] == pytest.approx(result["tensorlite_s"] / result["pytorch_s"])
    assert result["pairs"] == 3 and not result["failed_variants"]
    assert host.released == len(row.sides) - 1
    assert (host.held == 0) == (row.job == "network")  # a network's step waits for the host
    assert cuda.line(result).startswith(row.name)


def test_the_sides_take_turns():
    order = []

    class Named:
        def __init__(self, name: str, seconds: float) -> None:
            self.name, self.seconds = name, seconds

        def turn(self) -> float:
            order.append(self.name)
            return self.seconds

    turns = cuda.alternate(Named("a", 1.0), Named("b", 2.0), 3)
    assert "".join(order) == "abbaab"
    assert turns == ([1.0] * 3, [2.0] * 3) and median(turns.ours) == 1.0


def test_a_variant_that_fails_or_differs_is_left_out(monkeypatch):
    pytest.importorskip("torch")
    row = dataclasses.replace(TINY, sides=(
        rows.OURS, *(Side("pytorch", name) for name in ("nchw", "wrong", "broken"))))
    honest = HostCard.theirs

    def theirs(self, row, variant, given):
        if variant == "broken":
            raise RuntimeError("no  compiler\nhere")
        player = honest(self, row, "nchw", given)
        if variant == "wrong":
            player.results["grad.x"] = player.results["grad.x"] * 1.001
        return player

    monkeypatch.setattr(HostCard, "theirs", theirs)
    result = cuda.measure(row, arrays(row), 1, HostCard())
    assert list(result["variants_s"]) == ["nchw"]
    assert result["failed_variants"]["broken"] == "RuntimeError: no compiler here"
    assert "grad.x differs from pytorch wrong's" in result["failed_variants"]["wrong"]
    alone = dataclasses.replace(row, sides=(rows.OURS, *row.sides[2:]))
    with pytest.raises(sides.Failed, match=r"grad.x differs.*; RuntimeError: no compiler here"):
        cuda.measure(alone, arrays(row), 1, HostCard())


def test_our_failure_is_the_rows():
    given = {**arrays(TINY), "weight": np.zeros((3, 3, 9, 5), np.float32)}
    with pytest.raises(sides.Failed, match="^tensorlite: ValueError: weight: of shape"):
        cuda.measure(TINY, given, 1, HostCard())


def test_differences_of_16_bits_are_not_rounded_to_16_bits():
    a, b = np.array([1.0, 2.0], np.float16), np.array([1.0, 2.001], np.float32)
    assert difference(a, b) == pytest.approx(0.001 / 2.001, rel=1e-3)
    large = np.array([60000.0], np.float16)
    assert difference(large, -large) == 2.0
    assert difference(np.zeros(0), np.zeros(0)) == 0
    assert math.isnan(difference(np.array([np.nan]), np.ones(1)))


# ---- the command ---------------------------------------------------------------------------------

@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> HostCard:
    """`cuda.main` with two tiny rows on a stand-in, which is returned."""
    pytest.importorskip("torch")
    host = HostCard()
    monkeypatch.setattr(cuda, "Card", lambda: host)
    monkeypatch.setattr(cuda, "ROWS", (TINY, dataclasses.replace(TINY, name="other")))
    return host


def test_json(command, capsys):
    assert cuda.main(["--json", "--pairs", "2"]) == 0
    output = capsys.readouterr()
    results = json.loads(output.out)
    assert [result["name"] for result in results] == ["tiny", "other"]
    assert results[0]["pairs"] == 2 and results[0]["shapes"]["x"] == [2, 8, 8, 4]
    assert "host" in output.err and "copy 2000 GB/s" in output.err


def test_results_are_kept_and_not_measured_again(command, capsys, monkeypatch, tmp_path):
    file = tmp_path / "rows.jsonl"
    assert cuda.main(["--only", "tiny", "--pairs", "1", "--results", str(file)]) == 0
    first = capsys.readouterr().out
    with file.open("a") as stream:
        stream.write('{"name": "other", "ra')  # an end that came while it was written
    measured = []
    honest = cuda.measure
    monkeypatch.setattr(cuda, "measure", lambda row, *rest: measured.append(row.name) or honest(
        row, *rest))
    assert cuda.main(["--pairs", "1", "--results", str(file)]) == 0
    assert measured == ["other"]
    again = capsys.readouterr().out
    assert first.splitlines()[-1] in again.splitlines()
    assert list(cuda.read_results(file)) == ["tiny", "other"]


def test_a_row_that_fails(command, capsys, monkeypatch):
    def measure(row, *rest):
        raise sides.Failed("it is wrong")

    monkeypatch.setattr(cuda, "measure", measure)
    assert cuda.main([]) == 1
    output = capsys.readouterr()
    assert output.out.count("FAILED: it is wrong") == 2
    assert "error: tiny: it is wrong" in output.err


def test_an_error_that_ends_the_work_with_the_card(command, capsys):
    command.broken = True
    assert cuda.main(["--pairs", "1"]) == cuda.LOST
    assert "tiny: an error on the card ended its work; 1 rows are left" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--only", "no_such_row"], ["--pairs", "0"], ["--unknown"]])
def test_wrong_arguments_are_one_line_and_status_2(arguments, capsys):
    assert cuda.main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("error: ")
    assert len(output.err.strip().splitlines()) == 1


def test_without_a_gpu_it_says_what_is_missing():
    try:
        require_cuda(card.DEVICE)
    except RuntimeError as missing:
        expected = str(missing)
    else:
        pytest.skip("there is a GPU")
    done = subprocess.run([sys.executable, "-m", "bench.cuda"], cwd=ROOT, text=True,
                          capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {expected}\n")


@pytest.mark.parametrize(("torch", "message"), [
    (None, "PyTorch, to compare with, is not installed"),
    (types.SimpleNamespace(__version__="2.0+cpu", cuda=types.SimpleNamespace(
        is_available=lambda: False)), "PyTorch 2.0\\+cpu finds no CUDA device"),
])
def test_without_pytorch_for_the_card(monkeypatch, torch, message):
    monkeypatch.setattr(card, "require_cuda", lambda device: types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torch", torch)
    with pytest.raises(InputError, match=message):
        card.Card()


def test_peak_of_memory(monkeypatch):
    module = types.ModuleType("cupy.cuda")
    module.MemoryHook = object
    monkeypatch.setitem(sys.modules, "cupy.cuda", module)
    memory = card.live_peak()
    for address, size in ((1, 100), (2, 50)):
        memory.malloc_postprocess(mem_ptr=address, mem_size=size)
    memory.free_postprocess(mem_ptr=1)
    assert (memory.bytes, memory.peak) == (50, 150)
    memory.free_postprocess(mem_ptr=7)  # from before it was on
    memory.begin()
    memory.malloc_postprocess(mem_ptr=2, mem_size=60)  # its end was not seen
    assert (memory.bytes, memory.peak) == (60, 60)


# ---- what runs on a machine with a GPU -----------------------------------------------------------

STAGE_NAMES = ("primitives", "kernels", "training", "networks", "rows", "sanitizer")


def check(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """bench/gpu_check.sh with these arguments."""
    return subprocess.run([str(ROOT / "bench" / "gpu_check.sh"), *arguments], text=True,
                          env={**os.environ, **environment}, capture_output=True, timeout=120)


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A program to use as Python: it says what it was asked to do, and that a file `broken` in its
    folder names is what it fails to do."""
    program = tmp_path / "python"
    program.write_text("#!/bin/bash\n"
                       f"cd {tmp_path}\n"
                       'echo "asked: $*" | tee -a asked\n'
                       '! grep -qsF -- "$(cat broken 2>&1)" <<<"$*"\n')
    program.chmod(0o755)
    return program


def test_the_stages_are_listed():
    done = check("--list")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(STAGE_NAMES)


def test_no_gpu_or_no_such_stage_is_status_2(tmp_path):
    done = check("no_such_stage", OUT=str(tmp_path / "out"))
    assert (done.returncode, done.stderr) == (2, "error: no_such_stage: no such stage; see "
                                                 "--list\n")
    try:
        require_cuda(card.DEVICE)
    except RuntimeError:
        done = check(PYTHON=sys.executable, OUT=str(tmp_path / "out"))
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
        assert not (tmp_path / "out").exists()


def test_a_stage_that_fails_fails_the_check_and_not_the_others(python, tmp_path):
    environment = {"PYTHON": str(python), "OUT": str(tmp_path / "out")}
    (tmp_path / "broken").write_text("test_on_device.py")
    done = check("primitives", "networks", **environment)
    assert done.returncode == 1
    summary = (tmp_path / "out" / "summary.txt").read_text().splitlines()
    assert [line.split()[:2] for line in summary] == [["primitives", "failed"],
                                                      ["networks", "passed"]]
    assert done.stdout.endswith("\n".join(["", *summary, ""]))
    for name, asked in (("primitives", "test_on_device.py"), ("networks", "-m bench.cuda")):
        assert asked in (tmp_path / "out" / f"{name}.log").read_text()
    # What has passed is not done again, and what failed is.
    (tmp_path / "broken").write_text("nothing of the kind")
    (tmp_path / "asked").unlink()
    done = check("primitives", "networks", **environment)
    assert done.returncode == 0 and "networks: passed before" in done.stdout
    assert "bench.cuda" not in (tmp_path / "asked").read_text()
    check("--again", "networks", **environment)
    assert "bench.cuda" in (tmp_path / "asked").read_text()
    summary = (tmp_path / "out" / "summary.txt").read_text().splitlines()
    assert [line.split()[:2] for line in summary] == [["primitives", "passed"],
                                                      ["networks", "passed"]]


def test_benchmarks_go_on_where_they_stopped(python, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    good, bad = '{"name": "a", "ratio": 1}\n', '{"name": "b", "failed": "an error"}\n'
    (out / "rows.jsonl").write_text(good + bad)
    assert check("rows", PYTHON=str(python), OUT=str(out)).returncode == 0
    assert (out / "rows.jsonl").read_text() == good
    # An error that ends a process's work with the card is not the end of the rows.
    python.write_text(f'#!/bin/bash\necho "$*" >>{tmp_path}/asked\n'
                      f'case $* in *bench.cuda*) ! mkdir {tmp_path}/once 2>/dev/null || exit 3;; '
                      'esac\n')
    (tmp_path / "asked").unlink()
    assert check("--again", "rows", PYTHON=str(python), OUT=str(out)).returncode == 0
    assert (tmp_path / "asked").read_text().count("bench.cuda") == 2


@pytest.mark.parametrize(("losses", "precision", "wrong"), [
    ([2.5, 2.4, 2.3, 2.2, 2.1], "float32", ""),
    ([2.50001, 2.42, 2.31, 2.2, 2.1], "float32", ""),
    ([2.5001, 2.4, 2.3, 2.2, 2.1], "float32", "loss 1: 2.500000 and 2.500100"),
    ([2.503, 2.4, 2.3, 2.2, 2.1], "tf32", ""),
    ([2.51, 2.4, 2.3, 2.2, 2.1], "tf32", "loss 1: "),
    ([2.51, 2.4, 2.3, 2.2, 2.1], "float16", ""),
    ([2.5, 2.4, 2.3, 2.4, 2.1], "float16", "loss 4: "),
    ([2.5, 2.4, 2.3, 2.2, 2.9], "float16", "mean: "),
    ([2.5, float("nan"), 2.3, 2.2, 2.1], "float32", "loss 2: "),
    ([2.5, 2.4, 2.3, 2.2], "float32", "5 and 4 updates"),
])
def test_losses_beside_each_other(losses, precision, wrong, tmp_path, capsys):
    from bench.losses import main

    for name, values in (("cpu", [2.5, 2.4, 2.3, 2.2, 2.1]), ("gpu", losses)):
        (tmp_path / name).mkdir()
        lines = [json.dumps({"kind": "update", "update": i + 1, "loss": value})
                 for i, value in enumerate(values)]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    status = main([str(tmp_path / "cpu"), str(tmp_path / "gpu"), "--precision", precision])
    output = capsys.readouterr()
    assert status == bool(wrong) and (wrong or "\n") in (output.err or "\n")
    assert "2.500000" in output.out
