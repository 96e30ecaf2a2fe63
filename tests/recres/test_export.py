"""Exported models say what the networks say, in ONNX Runtime and under PyTorch's names."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import tensorlite as tl
from recres import build, checkpoint, data, export
from recres.errors import InputError
from recres.evaluation import predict_logits
from recres.loader import FrameLoader
from recres.models import SKIPS, average_pooling, recurrent_resnet
from recres.models.streaming import Stream
from recres.models.weights import load_pretrained
from recres.runs import Run
from recres.torch_weights import save_torch, torch_state
from tensorlite import nn
from tensorlite.io import load_arrays, load_safetensors

SIDE = 40
TOLERANCE = 1e-5  # of float32: ten times better than what the command asks for


def ready(model):
    """With norms that do something, as after training, and logits that vary between frames."""
    rng = np.random.default_rng(9)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean[:] = 0.1 * rng.standard_normal(module.c)
            module.running_var[:] = rng.uniform(0.5, 1.5, module.c)
            module.gamma.data[:] = rng.uniform(0.5, 1.5, module.c)
            module.beta.data[:] = 0.3 * rng.standard_normal(module.c)
    return model.eval()


def video(model, n_frames: int, videos: int = 2, side: int = SIDE) -> np.ndarray:
    rng = np.random.default_rng(7)
    return rng.standard_normal((videos, n_frames, side, side, model.channels)).astype(np.float32)


def logits_of(model, chunks: np.ndarray) -> np.ndarray:
    with tl.no_grad():
        return model(tl.Tensor(chunks)).numpy()


def assert_equal(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(ours).max()


class TestOnnx:
    @pytest.fixture(autouse=True)
    def _packages(self):
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")

    def session(self, proto):
        import onnx

        from recres.onnx.session import Session

        onnx.checker.check_model(proto, full_check=True)
        return Session(proto.SerializeToString())

    def assert_exports(self, model, side: int = SIDE) -> None:
        from recres.onnx.networks import chunk_model, stream_model

        size = model.context
        frames = video(ready(model), size + 2, side=side)
        windows = [logits_of(model, frames[:, i : i + size]) for i in range(3)]
        assert np.abs(np.diff(windows, axis=0)).min() > 1e-5  # a test that tells windows apart
        session = self.session(chunk_model(model, side))
        for i in range(3):
            assert_equal(windows[i], session.chunks(frames[:, i : i + size]))
        session = self.session(stream_model(model, side))
        for videos in (2, 1):  # the second time another number of them, after a reset
            said = [session.push(frames[:videos, i]) for i in range(size + 2)]
            assert_equal(np.stack(windows)[:, :videos], np.stack(said[size - 1 :]))
            session.reset()

    @pytest.mark.parametrize(("skip", "readout"), [*itertools.product(SKIPS, ["last", "mean"])])
    @pytest.mark.parametrize(("position", "context"),
                             [("block1", 2), ("mid_block4", 3), ("block4", 4), ("block2", 1)])
    def test_every_skip(self, skip, readout, position, context):
        self.assert_exports(recurrent_resnet(18, classes=3, skip=skip, position=position, width=4,
                                             context=context, readout=readout, rng=1))

    @pytest.mark.parametrize(("skip", "readout"), [*itertools.product(SKIPS, ["last", "mean"])])
    @pytest.mark.parametrize(("position", "context"), [("mid_block3", 3), ("block3", 2)])
    def test_every_skip_of_a_truncated_network(self, skip, readout, position, context):
        self.assert_exports(recurrent_resnet(18, classes=3, skip=skip, position=position, width=4,
                                             context=context, readout=readout, rng=1,
                                             truncate="block3"))

    def test_a_network_that_a_stream_has_folded(self):
        model = ready(recurrent_resnet(18, classes=3, width=4, rng=1))
        Stream(model)
        self.assert_exports(model)

    @pytest.mark.parametrize("version", ["v1", "v1.5"])
    def test_bottlenecks_of_an_odd_size(self, version):
        self.assert_exports(recurrent_resnet(50, classes=3, skip="conv_nonlinear", version=version,
                                             context=3, width=4, truncate="block3", rng=1), 37)

    @pytest.mark.parametrize("context", [1, 3])
    def test_average_pooling_of_flow(self, context):
        self.assert_exports(average_pooling(18, classes=3, context=context, width=4, channels=6,
                                            rng=1))

    def test_a_temporal_convolution_without_a_norm(self):
        self.assert_exports(recurrent_resnet(18, classes=3, skip="conv", width=4, rng=1,
                                             temporal_norm=False))

    def test_stream_says_the_same_as_ours(self):
        from recres.onnx.networks import stream_model

        model = ready(recurrent_resnet(18, classes=3, context=3, readout="mean", width=4, rng=1))
        session, stream = self.session(stream_model(model, SIDE)), Stream(model)
        for i, frame in enumerate(video(model, 6).swapaxes(0, 1)):
            ours, theirs = stream.push(frame), session.push(frame)
            if i >= 2:
                assert_equal(ours.numpy(), theirs)

    def test_any_number_of_chunks(self):
        from recres.onnx.networks import chunk_model

        model = ready(recurrent_resnet(18, classes=3, width=4, rng=1))
        session, chunks = self.session(chunk_model(model, SIDE)), video(model, 2, videos=5)
        for count in (1, 2, 5):
            assert_equal(logits_of(model, chunks[:count]), session.chunks(chunks[:count]))

    def test_opsets(self):
        from recres.onnx.graph import LEAST_OPSET, newest_opset
        from recres.onnx.networks import chunk_model

        model = ready(recurrent_resnet(18, classes=3, context=3, readout="mean", width=4, rng=1))
        chunks = video(model, 3)
        for opset in (LEAST_OPSET, 21):
            proto = chunk_model(model, SIDE, opset=opset)
            assert [(i.domain, i.version) for i in proto.opset_import] == [("", opset)]
            assert_equal(logits_of(model, chunks), self.session(proto).chunks(chunks))
        assert chunk_model(model, SIDE).opset_import[0].version == newest_opset()
        for opset in (LEAST_OPSET - 1, newest_opset() + 1):
            with pytest.raises(InputError, match=f"--opset {opset}: expected {LEAST_OPSET} to "):
                chunk_model(model, SIDE, opset=opset)

    def test_the_newest_opset_that_both_know(self, monkeypatch):
        import onnx
        import onnxruntime

        from recres.onnx.graph import LEAST_OPSET, newest_opset
        from recres.onnx.session import runnable_opset

        real, most = onnxruntime.InferenceSession, newest_opset()

        def older(model, *arguments, **options):
            if onnx.load_from_string(model).opset_import[0].version > most:
                raise RuntimeError(f"is under development, current official support is {most}")
            return real(model, *arguments, **options)

        monkeypatch.setattr(onnxruntime, "InferenceSession", older)
        for most in (newest_opset(), newest_opset() - 1, LEAST_OPSET):  # noqa: B007
            assert runnable_opset() == most

    def test_weights_that_one_file_cannot_hold(self, monkeypatch):
        from recres.onnx import graph
        from recres.onnx.networks import chunk_model

        monkeypatch.setattr(graph, "MOST_BYTES", 10**5)
        with pytest.raises(InputError, match=r"^0\.0 GB of weights, and an ONNX file holds 2 GB"):
            chunk_model(recurrent_resnet(18, classes=3, width=4), SIDE)

    def test_a_constant_does_not_take_the_name_of_another_value(self):
        from recres.onnx.graph import Graph

        graph = Graph()
        graph.input("x", [1])
        assert graph.integers(1, 2) == graph.integers(1, 2)
        with pytest.raises(ValueError, match="name: 'x' is no constant"):
            graph.constant("x", np.ones(1))

    def test_a_model_that_onnx_runtime_cannot_run(self):
        from recres.onnx.session import Session

        with pytest.raises(InputError, match=r"^ONNX Runtime .* cannot run the model .*$"):
            Session(b"no model")

    def test_the_command(self, trained: Path, tmp_path: Path, capsys):
        import onnx

        from recres.onnx.session import Session

        path = tmp_path / "model.onnx"
        assert export.main([str(trained), str(path), "--check", "5", "--threads", "1"]) == 0
        said = capsys.readouterr().out
        assert f"{path}: opset " in said and "chunks (batch, 2, 32, 32, 3), float32, torch" in said
        assert "on 5 chunks of test videos: logits equal to " in said
        assert "the same class on 5" in said
        assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]

        run = Run.open(trained)
        model, classes, convention = build.open_model(run, run.config)
        about = {p.key: p.value for p in onnx.load(path).metadata_props}
        assert json.loads(about["classes"]) == list(classes)
        assert (about["form"], about["input_convention"]) == ("chunk", "torch")
        assert json.loads(about["options"])["skip"] == run.config.skip
        assert str(run.config.root) not in str(about)
        assert "resized to 32 x 32" in about["view"] and "2 successive ones" in about["frames"]
        videos = build.open_videos(run.config, trained)
        chunks = FrameLoader(videos.source, run.config, convention).load(videos.chunks("test")[:7])
        assert_equal(predict_logits(model, chunks), Session(path.read_bytes()).chunks(chunks))

    def test_the_command_for_streams(self, trained: Path, tmp_path: Path, capsys):
        path = tmp_path / "stream.onnx"
        argv = [str(trained), str(path), "--stream", "--check", "2", "--threads", "1"]
        assert export.main([*argv, "--opset", "18"]) == 0
        said = capsys.readouterr().out
        assert "opset 18, one frame (batch, 32, 32, 3), states: 1" in said
        checked = int(said.split("on ")[1].split(" chunks")[0])
        assert f"the same class on {checked}" in said and checked > 2

    def test_without_a_check_it_says_so(self, trained: Path, tmp_path: Path, capsys):
        path = tmp_path / "model.onnx"
        argv = [str(trained), str(path), "--check", "0", "--root", "nowhere"]
        assert export.main(argv) == 0 and path.is_file()
        assert "checked      no: --check 0" in capsys.readouterr().out

    def test_it_is_checked_on_the_frames_of_a_store(self, trained: Path, figures_root: Path,
                                                    tmp_path: Path, monkeypatch):
        import onnx

        frames, path = tmp_path / "frames", tmp_path / "model.onnx"
        assert data.main(["prepare", "--root", str(figures_root), "--workers", "1", "--codec",
                          "raw", "--out", str(frames)]) == 0
        monkeypatch.setattr("recres.video.source.sample_video", lambda *_: pytest.fail("decoded"))
        argv = [str(trained), str(path), "--check", "2", "--frames", str(frames)]
        assert export.main([*argv, "--threads", "1"]) == 0
        assert str(frames) not in str(onnx.load(path).metadata_props)

    @pytest.mark.parametrize("form", ["chunk_model", "stream_model"])
    def test_what_differs_is_not_written(self, trained: Path, tmp_path: Path, capsys, monkeypatch,
                                         form):
        real = getattr(export, form)

        def wrong(model, *arguments):
            model.block4[1].conv2.weight.data *= 1.01
            proto = real(model, *arguments)
            model.block4[1].conv2.weight.data /= 1.01
            return proto

        monkeypatch.setattr(export, form, wrong)
        path = tmp_path / "model.onnx"
        path.write_bytes(b"the one before")
        more = ["--stream"] if form == "stream_model" else []
        assert export.main([str(trained), str(path), "--threads", "1", *more]) == 1
        assert "not written, the model is not the network" in capsys.readouterr().err
        assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
        assert path.read_bytes() == b"the one before"

    def test_what_is_not_finite_does_not_agree(self):
        from recres.onnx.session import compare

        ours = np.array([[1.0, 2.0], [3.0, 1.0]])
        assert compare(ours, ours + 9e-5 * 3) and not compare(ours, ours + 1.1e-4 * 3)
        assert not compare(ours, ours * np.nan)
        assert compare(ours, ours[:, ::-1]).same == 0
        assert not compare(ours * np.inf, ours * np.inf)
        assert compare(ours / 3, ours / 3).largest == 1

    @pytest.mark.long
    def test_128_real_clips(self, shared: Path, tmp_path: Path, capsys):
        """The exported model agrees on the class of a chunk of each of 128 real test clips."""
        from recres import train

        argv = ["--data", "ucf101", "--root", str(shared / "ucf101-7"), "--weights",
                str(shared / "weights" / "resnet50_conv1-4.npz"), "--backbone", "resnet50",
                "--truncate", "block3", "--freeze", "block3", "--image-size", "64",
                "--frame-step", "80", "--chunks-per-video", "1", "--holdout", "0", "--epochs", "3",
                "--lr", "2e-3"]
        assert train.main(["--out", str(tmp_path / "run"), *argv]) == 0
        # By chance it would be 0.86: what is compared are answers, not one class for everything.
        assert Run.open(tmp_path / "run").result["video_error"] < 0.5
        for more in ([], ["--stream"]):
            argv = [str(tmp_path / "run"), str(tmp_path / "model.onnx"), "--check", "128", *more]
            capsys.readouterr()
            assert export.main(argv) == 0
            said = capsys.readouterr().out
            checked = int(said.split("ONNX Runtime")[1].split("on ")[1].split(" chunks")[0])
            assert checked >= 128 and f"the same class on {checked}\n" in said


def test_without_onnx_it_says_what_to_install(trained: Path, tmp_path: Path, capsys, monkeypatch):
    for name in ("onnx", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            if name == "onnxruntime" and not _there("onnx"):
                continue
            assert export.main([str(trained), str(tmp_path / "model.onnx")]) == 2
        assert capsys.readouterr().err == (f"error: {name} is not installed; install it with: "
                                           "pip install 'recres[export]'\n")
    assert not list(tmp_path.iterdir())


def _there(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True


@pytest.mark.parametrize(("argv", "message"), [
    (["model.txt"], "suffix '.txt', expected .onnx or, for the weights alone, .safetensors, .pth"),
    (["model.safetensors", "--stream"], "weights alone have no --stream and no --opset"),
    (["model.pth", "--opset", "18"], "weights alone have no --stream and no --opset"),
    (["model.onnx", "--check", "-1"], "--check -1: expected at least 0"),
    (["nowhere/model.onnx"], "nowhere: no such folder"),
    (["model.onnx", "--threads", "0"], "--threads 0: expected at least 1"),
])
def test_what_cannot_be_done_is_refused(trained: Path, tmp_path: Path, capsys, monkeypatch, argv,
                                        message):
    monkeypatch.chdir(tmp_path)
    assert export.main([str(trained), *argv]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("options", "more", "message"), [
    ({"features": "block2", "model": "gru"}, [], "recres.export needs a network of frames"),
    ({"sampling": "segments"}, ["--stream"], "--stream: the run does not look at chunks of"),
    ({"input": "dynamic"}, ["--stream"], "--stream: the run does not look at chunks of"),
])
def test_runs_of_another_kind_are_refused(trained: Path, tmp_path: Path, capsys, options, more,
                                          message):
    about = json.loads((trained / "config.json").read_text())
    about["options"] |= options
    (tmp_path / "config.json").write_text(json.dumps(about))
    assert export.main([str(tmp_path), str(tmp_path / "model.onnx"), *more]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("name", ["best.safetensors", "checkpoint.safetensors",
                                  "checkpoint-1.safetensors", "nonfinite-7.safetensors"])
def test_no_file_of_a_run_is_replaced(trained: Path, tmp_path: Path, capsys, name):
    """Neither of this run nor of another."""
    for run in (trained, tmp_path):
        (tmp_path / "config.json").write_text("{}")
        before = {p: p.stat().st_mtime_ns for p in run.iterdir()}
        assert export.main([str(trained), str(run / name)]) == 2
        error = capsys.readouterr().err
        assert f"{run / name}: the name of a file that the run there is made of" in error
        assert error.count("\n") == 1
        assert {p: p.stat().st_mtime_ns for p in run.iterdir()} == before
    assert export.main([str(trained), str(tmp_path / "model.safetensors")]) == 0


def test_the_weights_that_the_run_started_from_are_not_replaced(trained: Path, tmp_path: Path,
                                                                capsys):
    weights = tmp_path / "weights.safetensors"
    shutil.copy(trained / "best.safetensors", tmp_path)
    shutil.copy(trained / "best.safetensors", weights)
    about = json.loads((trained / "config.json").read_text())
    about["options"] |= {"weights": str(weights)}
    (tmp_path / "config.json").write_text(json.dumps(about))
    before = weights.read_bytes()
    assert export.main([str(tmp_path), str(weights)]) == 2
    assert "the run's --weights, which it started from" in capsys.readouterr().err
    assert weights.read_bytes() == before


def test_a_file_that_cannot_be_written(trained: Path, tmp_path: Path, capsys):
    (tmp_path / "model.safetensors").mkdir()
    assert export.main([str(trained), str(tmp_path / "model.safetensors")]) == 2
    assert capsys.readouterr().err == (f"error: {tmp_path / 'model.safetensors'}: is a folder, "
                                       "expected the name of a file\n")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_full_disk(trained: Path, tmp_path: Path, capsys, monkeypatch, suffix):
    if suffix == ".pth":
        pytest.importorskip("torch")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"the one before")
    monkeypatch.setattr(os, "fsync", full)
    assert export.main([str(trained), str(path)]) == 2
    assert capsys.readouterr().err == f"error: {path}: No space left on device\n"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"the one before"


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(("depth", "version"), [(18, "v1.5"), (50, "v1.5"), (50, "v1")])
def test_weights_come_back(tmp_path: Path, depth, version, suffix):
    """Under PyTorch's names, temporal convolutions included, into another network."""
    if suffix == ".pth":
        pytest.importorskip("torch")
    options = {"classes": 3, "skip": "conv", "context": 3, "width": 4, "version": version}
    model = ready(recurrent_resnet(depth, rng=1, **options))
    path = tmp_path / f"model{suffix}"
    save_torch(path, torch_state(model), {"version": version, "input_convention": "caffe"})
    other = recurrent_resnet(depth, rng=2, **options)
    report = load_pretrained(other, path, log=str)
    assert not report.initialised
    assert (report.version, report.input_convention) == (version, "caffe")
    for name, array in model.state_dict().items():
        assert np.array_equal(other.state_dict()[name], array), name


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_of_one_version_do_not_get_into_the_other(tmp_path: Path, suffix):
    if suffix == ".pth":
        pytest.importorskip("torch")
    path = tmp_path / f"model{suffix}"
    model = recurrent_resnet(50, classes=3, skip="none", width=4, rng=1)
    save_torch(path, torch_state(model), {"version": "v1", "input_convention": "torch"})
    other = recurrent_resnet(50, classes=3, skip="none", width=4, version="v1.5")
    with pytest.raises(InputError, match="weights of ResNet v1 for a model of version 'v1.5'"):
        load_pretrained(other, path, log=str)


def test_the_command_for_weights(trained: Path, tmp_path: Path, capsys):
    path = tmp_path / "model.safetensors"
    assert export.main([str(trained), str(path)]) == 0
    said = capsys.readouterr().out
    assert f"{path}: 122 arrays under PyTorch's names, ResNet-18 v1, torch input" in said
    assert "note" not in said  # for basic blocks the versions are one
    arrays, about = load_safetensors(path)
    best, _ = checkpoint.load_model(trained / "best.safetensors")
    assert len(arrays) == 122 and arrays["bn1.num_batches_tracked"] == 0
    assert np.array_equal(arrays["layer2.0.downsample.0.weight"],
                          best["block2.0.shortcut.conv.weight"].transpose(3, 2, 0, 1))
    assert np.array_equal(arrays["fc.weight"], best["fc.weight"].T)
    assert about["input_convention"] == "torch" and len(json.loads(about["classes"])) == 10


def test_pth_needs_pytorch(trained: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert export.main([str(trained), str(tmp_path / "model.pth")]) == 2
    assert "only PyTorch writes .pth, and it is not installed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def torchvision_resnet(torch, depth: int, width: int, classes: int):
    """torchvision's ResNet as far as its names and its forward pass go; v1.5, as there."""
    t = torch.nn

    class Block(t.Module):
        def __init__(self, cin, planes, stride):
            super().__init__()
            shapes = [(cin, planes, 3, stride), (planes, planes, 3, 1)]
            if depth >= 50:
                shapes = [(cin, planes, 1, 1), (planes, planes, 3, stride),
                          (planes, 4 * planes, 1, 1)]
            for i, (a, b, kernel, s) in enumerate(shapes, start=1):
                setattr(self, f"conv{i}", t.Conv2d(a, b, kernel, s, kernel // 2, bias=False))
                setattr(self, f"bn{i}", t.BatchNorm2d(b))
            self.count, self.cout, self.downsample = len(shapes), shapes[-1][1], None
            if stride != 1 or cin != self.cout:
                self.downsample = t.Sequential(t.Conv2d(cin, self.cout, 1, stride, bias=False),
                                               t.BatchNorm2d(self.cout))

        def forward(self, x):
            y = x
            for i in range(1, self.count + 1):
                y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
                y = y.relu() if i < self.count else y
            return (y + (x if self.downsample is None else self.downsample(x))).relu()

    class Net(t.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = t.Conv2d(3, width, 7, 2, 3, bias=False)
            self.bn1 = t.BatchNorm2d(width)
            cin = width
            for stage, blocks in enumerate((2, 2, 2, 2) if depth == 18 else (3, 4, 6, 3)):
                layer = []
                for i in range(blocks):
                    layer.append(Block(cin, width << stage, 2 if stage and i == 0 else 1))
                    cin = layer[-1].cout
                setattr(self, f"layer{stage + 1}", t.Sequential(*layer))
            self.fc = t.Linear(cin, classes)

        def forward(self, x):
            x = torch.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
            for stage in range(1, 5):
                x = getattr(self, f"layer{stage}")(x)
            return self.fc(x.mean((2, 3)))

    return Net().eval()


@pytest.mark.parametrize("depth", [18, 50])
def test_a_network_of_torchvision_loads_every_array_and_says_the_same(tmp_path: Path, depth):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    model = ready(recurrent_resnet(depth, classes=3, skip="none", context=1, width=4, rng=1,
                                   version="v1.5"))
    theirs = torchvision_resnet(torch, depth, 4, 3)
    path = tmp_path / "model.pth"
    save_torch(path, torch_state(model), {"version": "v1.5", "input_convention": "torch"})
    theirs.load_state_dict(torch.load(path, weights_only=True), strict=True)
    assert set(load_arrays(path)) == set(theirs.state_dict())
    chunks = video(model, 1)
    with torch.no_grad():
        said = theirs(torch.from_numpy(chunks[:, 0].transpose(0, 3, 1, 2).copy()))
    assert_equal(logits_of(model, chunks), said.numpy())
