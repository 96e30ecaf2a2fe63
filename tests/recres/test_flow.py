"""`recres.flow`: the page of a fresh network and of a run's, and its numbers computed again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import webbrowser

import numpy as np
import pytest

from recres import build, checkpoint, config, flow
from recres.datasets import Video, figures
from recres.files import write_json
from recres.loader import Chunk, FrameLoader
from recres.runs import Run
from recres.video.source import FrameSource
from tensorlite import Tensor, cross_entropy, trace

SMALL = ["--no-check", "--width", "4", "--threads", "1"]


def made(tmp_path, *arguments):
    """The recording that the command with these arguments makes."""
    written, page = tmp_path / "tape.json", tmp_path / "made.html"
    assert flow.main([*map(str, arguments), "--html", str(page), "--json", str(written)]) == 0
    assert page.is_file()
    return json.loads(written.read_text("utf-8"))


def options_of(folder=None, **values):
    return config.resolve({"width": 4, "threads": 1, "image_size": 32, **values})


def untrained(folder, data="figures", classes=figures.CLASSES, **values):
    """The folder of a run whose best model was not trained."""
    folder.mkdir()
    options = options_of(data=data, **values)
    write_json(folder / "config.json", {"options": options.to_json()})
    checkpoint.save_model(folder / "best.safetensors", build.build_model(options, len(classes)), {
        "classes": json.dumps(classes), "input_convention": "torch", "version": options.version,
        "epoch": "1", "options": json.dumps(options.to_json())})
    return folder


def computed_again(model, options, path, starts, label):
    """Loss and gradients of parameters of a video's chunks, by the fused ops that training runs."""
    source = FrameSource([Video(path, 0, "", "")], options.frame_step, options.context, 1 << 30)
    chunks = FrameLoader(source, options, "torch").load([Chunk(i, 0, s)
                                                         for i, s in enumerate(starts)])
    model.train().to(dtype=np.float64)
    loss = cross_entropy(model(Tensor(chunks.astype(np.float64))), np.full(len(chunks), label))
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


def check_numbers(tape, loss, grads):
    tensors = {t["name"]: t for t in tape["tensors"]}
    start = next(e for e in tape["events"] if e["kind"] == "start")
    assert tape["tensors"][start["tensor"]]["value"]["values"][0] == pytest.approx(loss, rel=1e-12)
    assert len(grads) > 20
    for name, grad in grads.items():
        shown = tensors[name]
        assert shown["kind"] == "parameter" and shown["dtype"] == "float64"
        if grad is None:
            assert shown["grad"] is None
            continue
        assert shown["grad"]["norm"] == pytest.approx(np.linalg.norm(grad), rel=1e-9)
        if shown["grad"]["values"] is not None:
            np.testing.assert_allclose(shown["grad"]["values"], grad.reshape(-1), rtol=0,
                                       atol=1e-9 * np.abs(grad).max())


def check_ledgers(tape):
    tensors = {t["name"]: t for t in tape["tensors"]}
    assert tape["ledgers"]
    for ledger in tape["ledgers"]:
        assert "add" in tape["ops"][ledger["op"]]["op"] or "skip" in tape["ops"][ledger["op"]]["op"]
        for name, entry in ledger["parameters"].items():
            assert entry["error"] < 1e-12
            assert entry["whole"]["norm"] == pytest.approx(tensors[name]["grad"]["norm"], rel=1e-12)


def test_a_fresh_network(tmp_path, capsys):
    tape = made(tmp_path, *SMALL, "--seed", "3")
    printed = capsys.readouterr().out.strip().splitlines()
    assert len(printed) == 1 and printed[0].startswith(f"{tmp_path / 'made.html'}: ")
    assert f" {len(tape['events'])} steps" in printed[0]
    page = (tmp_path / "made.html").read_text("utf-8")
    assert "<html" in page and 1000 < len(page) < 15e6
    assert tape["frames"] == 2
    assert tape["title"] == "ResNet-18, identity skip at block4, T = 2: BowDown"
    assert any("seed 3" in note for note in tape["notes"])
    assert any("Chunks 1 to 2 of the 2 of the drawn clip" in note for note in tape["notes"])
    blocks = [ledger["block"] for ledger in tape["ledgers"]]
    assert blocks == [f"block{i}.{j}" for i in range(1, 5) for j in range(2)]
    assert [(p["role"], p["frame"]) for p in tape["ledgers"][-1]["parts"]] == [
        ("residual branch", 1), ("spatial skip", 1), ("temporal skip", 0)]
    check_ledgers(tape)
    path = tmp_path / "v_BowDown_g01_c01.avi"
    figures.write_clip(path, figures.frames("BowDown", 1, 1))
    options = options_of(seed=3, image_size=64)
    model = build.build_network(options, len(figures.CLASSES))
    check_numbers(tape, *computed_again(model, options, path, (0, 2), 0))


def test_a_trained_run_on_a_video_of_its_own(trained, figures_root, tmp_path):
    """Nothing of the run changes: the network that is trained on is in memory only."""
    before = {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in trained.iterdir()}
    video = next((figures_root / "UCF-101" / "StandUp").glob("*.avi"))
    tape = made(tmp_path, trained, video, "--no-check")
    assert {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in trained.iterdir()} == before
    assert tape["title"].endswith("StandUp")
    assert f"The best model of the run in {trained}." in tape["notes"]
    check_ledgers(tape)
    run = Run.open(trained)
    model, classes, _ = build.open_model(run, run.config)
    check_numbers(tape, *computed_again(model, run.config, video, (0, 2), classes.index("StandUp")))


def test_changing_a_weight_changes_the_numbers(tmp_path):
    run = untrained(tmp_path / "run")
    one = made(tmp_path, run, "--no-check")
    assert not (run / "flow.html").exists()
    assert flow.main([str(run), "--no-check"]) == 0
    assert (run / "flow.html").is_file()  # beside what the run has
    arrays, about = checkpoint.load_model(run / "best.safetensors")
    model = build.build_model(options_of(), 10)
    checkpoint.restore_model(run / "best.safetensors", model, arrays)
    model.fc.weight.data[0, 0] += 0.5
    checkpoint.save_model(run / "best.safetensors", model, about)
    two = made(tmp_path, run, "--no-check")
    norms = [{t["name"]: t["grad"]["norm"] for t in tape["tensors"] if t["grad"]}
             for tape in (one, two)]
    assert norms[0].keys() == norms[1].keys() and norms[0].keys() > {"frames", "conv1.weight"}
    assert all(norms[0][name] != norms[1][name] for name in norms[0] if name.endswith("weight"))


@pytest.mark.parametrize("arguments, title, temporal", [
    (["--skip", "conv_nonlinear", "--readout", "mean", "--context", "3", "--position",
      "mid_block4"], "ResNet-18, conv nonlinear skip at mid_block4, T = 3",
     ["block3.1", "block4.0"]),
    (["--skip", "pure_temporal", "--context", "3"],
     "ResNet-18, pure temporal skip at block4, T = 3", ["block4.1", "block4.1"]),
    (["--context", "1"], "ResNet-18", [])])
def test_other_networks(arguments, title, temporal, tmp_path):
    tape = made(tmp_path, *SMALL, *arguments)
    assert tape["title"] == f"{title}: BowDown"
    check_ledgers(tape)
    assert [ledger["block"] for ledger in tape["ledgers"]
            if any(p["role"] == "temporal skip" for p in ledger["parts"])] == temporal


@pytest.mark.parametrize("values, shape, about", [
    ({"input": "flow", "flow_length": 2}, [2, 2, 32, 32, 4], "Chunks 1 to 2 of the 2"),
    ({"input": "dynamic"}, [1, 1, 32, 32, 3], "Chunk 1 of the 1"),
    ({"sampling": "segments", "context": 3}, [1, 3, 32, 32, 3], "Chunk 1 of the 1"),
    ({"model": "avgpool", "context": 3}, [2, 3, 32, 32, 3], "Chunks 1 to 2 of the 2")])
def test_other_runs(values, shape, about, tmp_path):
    """Chunks of what the run's network sees; frozen, so that one chunk will do."""
    run = untrained(tmp_path / "run", freeze="block4", **values)
    tape = made(tmp_path, run, "--no-check")
    frames = next(t for t in tape["tensors"] if t["name"] == "frames")
    assert frames["shape"] == shape and frames["frames"] == list(range(shape[1]))
    assert any(note.startswith(about) for note in tape["notes"])


def test_frozen_norms_keep_their_running_statistics(tmp_path):
    run = untrained(tmp_path / "run", freeze="block3")
    tape = made(tmp_path, run, "--no-check")
    note = next(note for note in tape["notes"] if "batch norm" in note)
    assert "those in stem, block1, block2, block3 are frozen" in note
    modes = {op["module"]: op["options"]["mode"] for op in tape["ops"] if op["op"] == "batch_norm"}
    assert modes["block3.1.norm2"] == "frozen" and modes["block4.0.norm1"] == "train"


def test_a_video_whose_class_is_not_known(tmp_path, figures_root):
    """The class that the network gives its chunks stands for it."""
    path = next((figures_root / "UCF-101" / "OpenArms").glob("*.avi"))
    copy = tmp_path / "elsewhere" / "clip.avi"
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    tape = made(tmp_path, copy, *SMALL)
    (loss,) = (op for op in tape["ops"] if op["op"] == "crossentropy")
    logits = np.reshape(tape["tensors"][loss["inputs"][0]]["value"]["values"], (2, 10))
    shown = figures.CLASSES[logits.mean(axis=0).argmax()]
    assert tape["title"].endswith(f": {shown}")
    assert any(f" with {shown}, the class that the network gives them" in n for n in tape["notes"])


def test_labels(tmp_path):
    subject = flow.Subject(None, None, figures.CLASSES, "torch", "")
    for path, given, expected in (
            ("x/v_OpenArms_g02_c01.avi", None, "OpenArms"), ("closearms/a.avi", None, "CloseArms"),
            ("closearms/v_openarms_g02_c01.avi", None, "OpenArms"), ("x/a.avi", None, None),
            ("x/v_Archery_g01_c01.avi", None, None), ("closearms/a.avi", "bowdown", "BowDown")):
        assert flow._label(subject, tmp_path / path, given) == expected
    assert made(tmp_path, *SMALL, "--label", "standup")["title"].endswith(": StandUp")


def test_the_choice_of_chunks(tmp_path):
    tape = made(tmp_path, *SMALL, "--chunk", "2")
    assert any("Chunk 2 of the 2 of the drawn clip" in note for note in tape["notes"])
    frames = next(t for t in tape["tensors"] if t["name"] == "frames")
    assert frames["shape"] == [1, 2, 64, 64, 3] and frames["frames"] == [0, 1]


def test_differences_unless_told_otherwise(tmp_path, monkeypatch):
    asked = []

    @contextlib.contextmanager
    def record(title, *, check, ledger, progress):
        asked.append((check, ledger))
        progress("differences", 1, 2)
        with real(title, progress=progress) as tape:
            yield tape

    real = trace.record
    monkeypatch.setattr(trace, "record", record)
    made(tmp_path, *SMALL)
    made(tmp_path, *SMALL[1:])
    assert asked == [(False, True), (True, True)]


def test_open_the_page_that_lies_here(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(webbrowser, "open", shown.append)
    monkeypatch.chdir(tmp_path)
    assert flow.main([*SMALL, "--open"]) == 0
    assert (tmp_path / "flow.html").is_file() and shown == [(tmp_path / "flow.html").as_uri()]


@pytest.mark.parametrize("arguments, message", [
    (["--chunk", "0"], "--chunk 0: expected at least 1"),
    (["--batch", "0"], "--batch 0: expected at least 1"),
    (["--chunk", "3"], "--chunk 3: the drawn clip v_BowDown_g01_c01.avi has 2, of "),
    (["--context", "11"], "--context: got 11, expected 1 to 9 frames"),
    (["--context", "0"], "--context 0: expected at least 1"),
    (["--skip", "wrong"], "argument --skip: invalid choice"),
    (["--context", "1", "--skip", "conv"], "--skip conv: a chunk of one frame"),
    (["--skip", "none", "--position", "block4"], "--position block4: --skip none has no"),
    (["--threads", "0"], "--threads 0: expected at least 1"),
    (["--label", "Nothing"], "--label Nothing: expected one of BowDown, "),
    (["--html", "{tmp}/absent/flow.html"], "flow.html: cannot be written there"),
    (["--json", "{tmp}"], ": cannot be written there"),
    (["{tmp}/absent.avi"], "absent.avi: no such file or folder"),
    (["{tmp}"], ": no run there"),
    (["{tmp}/text.avi"], "text.avi: "),
    (["{tmp}/run", "{tmp}/text.avi"], "text.avi: "),
    (["{tmp}/text.avi", "{tmp}/run"], "text.avi: expected the folder of a run, and after it"),
    (["{tmp}/run", "--context", "3"], "--context 3: the network of the run in "),
    (["{tmp}/run", "--seed", "3"], "--seed 3: the network of the run in "),
    (["{tmp}/run", "--batch", "1"], "v_BowDown_g01_c01.avi: batch_norm: mode 'train' needs more"),
    (["{tmp}/ucf101"], "a run on ucf101, give it a video"),
    (["{tmp}/features"], "a model of features of whole videos; recres.flow needs"),
    (["{tmp}/run", "{tmp}/text.avi", "{tmp}/more.avi"], "unrecognized arguments")])
def test_errors_of_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.avi").write_text("not a video")
    if "{tmp}/run" in arguments:
        untrained(tmp_path / "run")
    elif "{tmp}/ucf101" in arguments:
        untrained(tmp_path / "ucf101", data="ucf101", backbone="resnet18")
    elif "{tmp}/features" in arguments:
        untrained(tmp_path / "features", model="avgpool", features="block2")
    words = [a.replace("{tmp}", str(tmp_path)) for a in arguments]
    assert flow.main([*words, "--no-check"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
    assert not (tmp_path / "flow.html").exists()
