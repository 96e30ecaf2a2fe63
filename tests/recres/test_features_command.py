"""recres.features as it is called: what it makes, says and refuses, and that runs find it."""

from __future__ import annotations

import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from recres import build, config, data, features
from recres.datasets import figures
from recres.feature_store import FeatureStore, StoreFiles, feature_shape, made_by
from recres.loader import FrameLoader, Videos
from tensorlite import Tensor, no_grad
from tensorlite.io import load_safetensors, save_safetensors


@pytest.fixture(scope="module")
def network(figures_root):
    return ["--root", str(figures_root), "--width", "4", "--image-size", "32", "--threads", "1"]


def call(capsys, *arguments):
    """The command's status, standard output and standard error."""
    status = features.main([*map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def made(network, trained, tmp_path_factory):
    """A folder that the command filled with features of a run's backbone; not to be written to."""
    folder = tmp_path_factory.mktemp("features") / "new" / "folder"
    weights = trained / "best.safetensors"
    assert features.main(["--out", str(folder), *network, "--weights", str(weights), "--stages",
                          "block3,block1", "--pooled", "--maps"]) == 0
    return SimpleNamespace(path=folder, weights=weights)


def test_the_features_are_those_of_the_weights_and_a_run_finds_them(made, network, figures_root):
    assert {p.name for p in made.path.iterdir()} == {
        "videos.json", "block1-maps", "block1-pooled", "block3-maps", "block3-pooled"}
    options = config.resolve({"root": str(figures_root), "width": 4, "image_size": 32,
                              "threads": 1, "freeze": "block3", "holdout": 0.3, "context": 2,
                              "weights": str(made.weights)})  # a recurrent network
    model = build.build_model(options, 10)
    start = build.load_weights(model, options, log=lambda text: None)
    videos = Videos(figures.read(figures_root), options)
    loader = FrameLoader(videos.source, options, start["input"])
    for stage in ("block1", "block3"):
        by = made_by(model, stage, False, options, start["input"], start["weights"]["source"])
        shape = feature_shape(model, stage, options.image_size)
        store = FeatureStore(made.path, by, shape, videos, options)
        assert store.missing == () and len(store.places) == 40
        place = store.places[7]
        (frames,) = loader.fixed(place)
        with no_grad():
            expected = model.eval().encode(Tensor(frames), stage).numpy()
        np.testing.assert_allclose(store.sequence(place), expected, rtol=2**-11, atol=2**-25)


def test_what_is_said(network, tmp_path, capsys):
    status, out, _ = call(capsys, "--out", tmp_path / "f", *network, "--stages", "block1")
    assert status == 0
    before, _, after = out.partition("made ")
    lines = StoreFiles(tmp_path / "f" / "block1-pooled").lines.values()
    frames = sum(line.frames for line in lines)
    size = frames * 4 * 2
    assert f"block1-pooled: 40 videos, {size / 1e9:.3f} GB" in before
    assert f"{frames} frames of 40 videos, {size / 1e9:.3f} GB; the disk has " in before
    assert "weights: none, drawn from seed 0" in before
    assert re.search(rf"^ +{frames} frames, \d\.\d{{3}} GB in \d+\.\d s: \d+\.\d frames/s$", after,
                     re.MULTILINE)


def test_twice_does_nothing_the_second_time(made, network, tmp_path, capsys, monkeypatch):
    folder = shutil.copytree(made.path, tmp_path / "f")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    monkeypatch.setattr(features, "encoder", lambda *a: pytest.fail("computed again"))
    monkeypatch.setattr("recres.video.source.FrameSource.frames",
                        lambda *a: pytest.fail("decoded again"))
    status, out, _ = call(capsys, "--out", folder, *network, "--weights", made.weights, "--stages",
                          "block1,block3", "--maps")
    assert status == 0 and "complete  nothing is missing" in out and "made" not in out
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_from_a_raw_store_of_frames_they_are_the_same(made, network, figures_root, tmp_path, capsys,
                                                      monkeypatch):
    frames = tmp_path / "frames"
    assert data.main(["prepare", "--root", str(figures_root), "--workers", "1", "--codec", "raw",
                      "--out", str(frames)]) == 0
    monkeypatch.setattr("recres.video.source.sample_video", lambda *_: pytest.fail("decoded"))
    assert call(capsys, "--out", tmp_path / "f", *network, "--weights", made.weights, "--stages",
                "block1", "--frames", frames)[0] == 0
    found, expected = (StoreFiles(folder / "block1-pooled") for folder in (tmp_path / "f",
                                                                           made.path))
    assert found.about == expected.about and found.lines.keys() == expected.lines.keys()
    assert all(np.array_equal(found.video(key), expected.video(key)) for key in found.lines)


def test_another_stage_later_needs_no_counting(made, network, tmp_path, capsys):
    folder = shutil.copytree(made.path, tmp_path / "f")
    status, out, _ = call(capsys, "--out", folder, *network, "--weights", made.weights, "--stages",
                          "block1,block2")
    assert status == 0
    assert "block1-pooled: 40 videos, 0.000 GB, complete" in out
    assert len(StoreFiles(folder / "block2-pooled").lines) == 40


def test_counts_are_only_for_the_same_sampling_and_files(made, network, tmp_path, figures_root,
                                                         capsys, monkeypatch):
    folder = shutil.copytree(made.path, tmp_path / "f")
    arguments = ["--out", folder, *network, "--weights", made.weights, "--stages", "block1"]
    scanned, scan = [], features.Videos.__init__

    def counts(self, split, options, found=None, progress=None, source=None):
        scanned.append(found is None)
        scan(self, split, options, found, progress, source)

    monkeypatch.setattr(features.Videos, "__init__", counts)
    assert call(capsys, *arguments)[0] == 0
    assert call(capsys, *arguments, "--context", "1")[0] == 0
    root = shutil.copytree(figures_root, tmp_path / "figures")
    assert call(capsys, *arguments, "--context", "1", "--root", root)[0] == 0
    assert scanned == [False, True, False]
    video = next(iter(sorted(root.rglob("*.avi"))))
    video.write_bytes(video.read_bytes() + b"x")
    status, _, err = call(capsys, *arguments, "--context", "1", "--root", root)
    assert scanned == [False, True, False, True]
    assert status == 2 and f"features of video {video.stem} were made of a file of" in err


def test_a_bad_video_is_one_line_or_left_out(network, figures_root, tmp_path, capsys):
    root = shutil.copytree(figures_root, tmp_path / "figures")
    bad = sorted(root.rglob("*.avi"))[3]
    bad.write_bytes(b"")
    arguments = ["--out", tmp_path / "f", *network, "--root", root, "--stages", "block1"]
    status, _, err = call(capsys, *arguments)
    assert status == 2 and str(bad) in err and len(err.strip().splitlines()) == 1
    status, out, _ = call(capsys, *arguments, "--skip-bad")
    assert status == 0 and f"skipped   {bad}" in out
    assert len(StoreFiles(tmp_path / "f" / "block1-pooled").lines) == 39
    status, _, err = call(capsys, *arguments)  # known from before, and still not wanted
    assert status == 2 and str(bad) in err


def test_mirror_images(made, network, tmp_path, capsys):
    folder = tmp_path / "f"
    status, _, _ = call(capsys, "--out", folder, *network, "--weights", made.weights, "--stages",
                        "block1", "--maps", "--mirror")
    assert status == 0 and (folder / "block1-maps-mirror").is_dir()
    both, plain = StoreFiles(folder / "block1-maps-mirror"), StoreFiles(made.path / "block1-maps")
    for key in both.lines:
        view, mirrored = both.video(key)
        np.testing.assert_array_equal(view, plain.video(key)[0])
        assert not np.array_equal(view, mirrored)


def test_other_weights_are_refused(made, network, tmp_path, capsys):
    folder = shutil.copytree(made.path, tmp_path / "f")
    status, _, err = call(capsys, "--out", folder, *network, "--stages", "block1")
    assert status == 2 and len(err.strip().splitlines()) == 1
    assert re.search(r"f/block1-pooled: its features were made with parameters \w{12} \(weights: "
                     r"recres\), wanted are some with parameters \w{12} \(weights: None\)", err)


def test_a_disk_without_room(network, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    status, out, err = call(capsys, "--out", tmp_path / "f", *network)
    assert status == 2 and re.fullmatch(
        r"error: .*/f: the features need \d\.\d\d GB more, the disk has 0.00 GB free\n", err)
    assert "block4-pooled: 40 videos" in out
    assert [p.name for p in (tmp_path / "f").iterdir()] == ["videos.json"]


def test_check(made, tmp_path, capsys):
    status, out, _ = call(capsys, "--out", made.path, "--check")
    assert status == 0 and len(out.splitlines()) == 4
    for name in ("block1-maps", "block1-pooled", "block3-maps", "block3-pooled"):
        assert re.search(rf"^{name} +40 videos, \d\.\d{{3}} GB: all checksums right$", out,
                         re.MULTILINE)
    folder = shutil.copytree(made.path, tmp_path / "f")
    files = StoreFiles(folder / "block3-maps")
    names = [list(files.lines.values())[i].name for i in (2, 30)]
    with open(files.features, "r+b") as file:
        for i in (2, 30):
            file.seek(list(files.lines.values())[i].offset)
            file.write(b"\xff\xff")
    status, out, err = call(capsys, "--out", folder, "--check")
    assert status == 2 and "the features of 2 videos are damaged" in err
    for name in names:
        assert f"block3-maps/features.f16: the features of video {name} are damaged" in out
    assert "block3-maps          40 videos" in out and "2 damaged" in out
    status, _, err = call(capsys, "--out", tmp_path / "none", "--check")
    assert status == 2 and "none: no features there" in err


@pytest.mark.parametrize(("given", "text"), [
    (["--stages", "block2,fc"], "--stages block2,fc: 'fc' is none, expected one or more of stem, "),
    (["--stages", ""], "'' is none"),
    (["--lr", "0.1"], "unrecognized arguments: --lr 0.1"),
    (["--model", "rrn"], "unrecognized arguments: --model rrn"),
    (["--image-size", "8"], "--image-size 8: expected at least 32"),
    (["--weights", "none.pth"], "none.pth: no such file"),
])
def test_what_cannot_be_used_is_one_line(network, tmp_path, capsys, given, text):
    status, _, err = call(capsys, "--out", tmp_path / "f", *network, *given)
    assert status == 2 and text in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "f").exists()


def test_a_runs_folder_is_none_for_features(network, trained, tmp_path, capsys):
    """Whose videos.json the command would replace, and the run not be evaluated any more."""
    run = shutil.copytree(trained, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for out, what in ((run, "the folder of a run"), (run / "result.json", "not a folder")):
        status, _, err = call(capsys, "--out", out, *network, "--stages", "block1")
        assert status == 2 and err.startswith(f"error: --out {out}: {what}")
        assert err.count("\n") == 1
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_weights_that_end_before_the_stage_are_refused(made, network, tmp_path, capsys):
    arrays, about = load_safetensors(made.weights)
    part = {name: a for name, a in arrays.items() if not name.startswith(("block4", "fc"))}
    save_safetensors(tmp_path / "part.safetensors", part, about)
    arguments = ["--out", tmp_path / "f", *network, "--weights", tmp_path / "part.safetensors"]
    status, _, err = call(capsys, *arguments, "--stages", "block3,block4")
    assert status == 2 and re.search(r"--stages block4: .*part.safetensors has no block4\.0\.", err)
    assert not (tmp_path / "f" / "block3-pooled").exists()
    assert call(capsys, *arguments, "--stages", "block3")[0] == 0
