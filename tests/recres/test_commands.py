"""The commands as they are called: outputs, and one line and a status for everything wrong."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tensorlite
from recres import build, evaluate, export, predict, train
from recres.datasets import Video, figures
from recres.evaluation import predict_logits
from recres.files import read_json
from recres.loader import Chunk, FrameLoader
from recres.metrics import log_softmax
from recres.models import VideoResNet
from recres.runs import Run
from recres.video.decode import read_frames
from recres.video.source import FrameSource


def command(module: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", f"recres.{module}", *map(str, arguments)],
                          cwd=cwd, capture_output=True, text=True, timeout=120)


def one_line(text: str) -> str:
    """The only line of `text`, which is no traceback."""
    lines = text.strip().splitlines()
    assert len(lines) == 1 and "Traceback" not in text, text
    return lines[0]


def test_a_complete_run(trained):
    names = {p.name for p in trained.iterdir()}
    assert names == {"config.json", "lock", "videos.json", "metrics.jsonl", "best.safetensors",
                     "checkpoint.safetensors", "checkpoint-1.safetensors", "scores.npz",
                     "curves.png", "confusion.png", "result.json"}
    result = read_json(trained / "result.json")
    assert result["split"] == 1 and result["data"] == "figures" and result["model"] == "rrn"
    assert result["counts"]["test_videos"] == 10
    assert (result["counts"]["train_videos"], result["counts"]["holdout_videos"]) == (20, 10)
    assert set(result["per_class"]) == set(figures.CLASSES)
    errors = [row["video_error"] for row in result["per_class"].values()]
    assert np.mean(errors) == pytest.approx(result["video_error"])
    for name in ("chunk_error", "pair_error"):
        assert 0 <= result[name] <= 1
    assert "reversed_becomes_partner" in result and "within_pair_error" in result
    assert result["pair_error"] <= result["video_error"]
    assert "one frame in" in result["protocol"] and result["skipped"] == {}


def test_the_configuration_says_everything(trained):
    about = read_json(trained / "config.json")
    assert about["options"]["lr"] > 0 and about["options"]["threads"] == 1
    assert about["environment"].keys() >= {"python", "numpy", "tensorlite"}
    assert about["command"][:3] == ["python", "-m", "recres.train"]
    assert about["model"]["input"] == "torch" and about["model"]["weights"] is None
    assert "identity" in about["model"]["temporal_convolutions"]


def test_scores_are_those_of_the_result(trained):
    result = read_json(trained / "result.json")
    with np.load(trained / "scores.npz") as scores:
        np.testing.assert_allclose(scores["posteriors"].sum(axis=1), 1)
        wrong = scores["posteriors"].argmax(axis=1) != scores["labels"]
        assert wrong.mean() == result["video_error"]
        assert len(set(scores["names"].tolist())) == 10
        assert tuple(scores["classes"].tolist()) == figures.CLASSES


def test_pictures_are_pictures(trained):
    import cv2

    for name in ("curves.png", "confusion.png"):
        picture = cv2.imread(str(trained / name))
        assert picture is not None and min(picture.shape[:2]) > 200 and picture.std() > 5


def test_without_matplotlib_a_run_says_so_and_goes_on(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "recres.pictures", raising=False)
    monkeypatch.delattr("recres.pictures", raising=False)
    assert train.main(["--out", str(tmp_path / "run"), *tiny, "--epochs", "1"]) == 0
    assert "pip install 'recres[plots]'" in capsys.readouterr().out
    assert (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "run" / "curves.png").exists()


def test_evaluate_finds_what_train_found(trained, tmp_path, capsys):
    folder = shutil.copytree(trained, tmp_path / "run")
    assert evaluate.main([str(folder), "--threads", "1"]) == 0  # as in training
    assert "video error" in capsys.readouterr().out
    again, result = read_json(folder / "evaluation-test.json"), read_json(folder / "result.json")
    for name in ("video_error", "chunk_error", "loss", "per_class", "pair_error",
                 "within_pair_error", "reversed_becomes_partner"):
        assert again[name] == result[name], name
    with np.load(folder / "scores-test.npz") as one, np.load(folder / "scores.npz") as two:
        np.testing.assert_array_equal(one["posteriors"], two["posteriors"])
    assert evaluate.main([str(folder), "--side", "holdout", "--threads", "1"]) == 0
    held = read_json(folder / "evaluation-holdout.json")
    assert held["video_error"] == result["best"]["video_error"]
    assert held["loss"] == result["best"]["loss"]


def test_evaluate_refuses_another_model(trained, tmp_path, capsys):
    assert evaluate.main([str(trained), "--weights", str(trained / "checkpoint.safetensors")]) == 2
    assert "not a model saved by a run" in one_line(capsys.readouterr().err)
    assert evaluate.main([str(trained), "--weights", str(tmp_path / "none.safetensors")]) == 2
    assert "none.safetensors: no such file" in one_line(capsys.readouterr().err)


def test_our_own_model_is_where_another_run_starts(trained, tiny, tmp_path, capsys):
    assert train.main(["--out", str(tmp_path / "run"), *tiny, "--epochs", "1", "--weights",
                       str(trained / "best.safetensors")]) == 0
    start = read_json(tmp_path / "run" / "config.json")["model"]
    assert start["weights"]["source"] == "recres" and start["input"] == "torch"
    assert start["weights"]["initialised"] == []
    assert "loaded" in capsys.readouterr().out


def test_predict_prints_classes_and_writes_the_video(trained, figures_root, tmp_path, capsys):
    video = figures.read(figures_root).test[0]
    assert predict.main([str(trained), str(video.path), "--top", "3", "--write",
                         str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(video.path)
    rows = [re.fullmatch(r"  (\d\.\d{3})  (\w+)", line) for line in lines[1:4]]
    chances = [float(row[1]) for row in rows]
    assert chances == sorted(chances, reverse=True)
    assert all(row[2] in figures.CLASSES for row in rows)
    with np.load(trained / "scores.npz") as scores:
        mine = scores["posteriors"][scores["names"].tolist().index(video.name)]
    assert rows[0][2] == figures.CLASSES[mine.argmax()]
    assert chances[0] == pytest.approx(mine.max(), abs=6e-4)
    written, source = read_frames(tmp_path / "out" / f"{video.name}.avi"), read_frames(video.path)
    assert len(written) == len(source)
    height = source.shape[1] * 4  # 80 pixels are enlarged to 320
    assert written.shape[2] == 320 and written.shape[1] > height
    strip = written[:, height:]
    assert strip.min() < 60 and strip.max() > 180  # light letters on dark ground
    assert np.abs(strip[0].astype(int) - strip[-1]).max() < 60


def test_predict_along_a_video(trained, figures_root, capsys):
    """Every sampled frame but the first of the chunk ends a chunk, and gets what is said of it."""
    video = figures.read(figures_root).test[0].path
    assert predict.main([str(trained), str(video), "--stream"]) == 0
    run = Run.open(trained)
    model, classes, convention = build.open_model(run, run.config)
    source = FrameSource([Video(video, 0, "", "")], run.config.frame_step, 2, 1 << 30)
    count = len(source.frames(0))
    chunks = [Chunk(0, 0, start) for start in range(count - 1)]
    logits = predict_logits(model, FrameLoader(source, run.config, convention).load(chunks))
    posteriors = np.exp(log_softmax(logits))
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert first == str(video)
    assert re.fullmatch(rf"  sampled frames: {count}, \d+\.\d a second", last)
    rows = [re.fullmatch(r"  frame +(\d+)  (\d\.\d{3})  (\w+)", line) for line in lines]
    assert [int(row[1]) for row in rows] == [i * run.config.frame_step for i in range(1, count)]
    for row, posterior in zip(rows, posteriors, strict=True):
        assert row[3] == classes[posterior.argmax()]
        assert float(row[2]) == pytest.approx(posterior.max(), abs=6e-4)


def test_predict_along_videos_that_are_too_short_or_bad(trained, write_video, numbered, tmp_path,
                                                        capsys):
    short = write_video(tmp_path / "short.avi", numbered(3))  # of which one in four is sampled
    assert predict.main([str(trained), str(tmp_path / "none.avi"), str(short), "--stream"]) == 2
    out, err = capsys.readouterr()
    assert "none.avi: no such file" in one_line(err)
    path, line = out.splitlines()
    assert path == str(short)
    assert re.fullmatch(r"  sampled frames: 1, .* a second, too few for a chunk of 2", line)
    assert predict.main([str(trained), str(short), "--stream", "--write", str(tmp_path)]) == 2
    assert "--write: " in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("count", ["0", "-1", "two", "1.5", "1000000"])
def test_a_bad_number_of_threads(trained, tiny, tmp_path, capsys, count):
    out = tmp_path / "run"
    for main, arguments in ((train.main, ["--out", str(out), *tiny]),
                            (train.main, ["--resume", str(trained)]),
                            (evaluate.main, [str(trained)]),
                            (predict.main, [str(trained), "video.avi"])):
        assert main([*arguments, "--threads", count]) == 2
        line = one_line(capsys.readouterr().err)
        assert line.startswith("error: ") and "--threads" in line and count in line
    assert not out.exists()


def test_evaluate_and_predict_use_the_threads_they_are_given(trained, figures_root, tmp_path,
                                                             monkeypatch):
    """And without --threads as many as there are cores, whatever the run was trained with."""
    folder, video = shutil.copytree(trained, tmp_path / "run"), figures.read(figures_root).test[0]
    cores, counts = tensorlite.get_num_threads(), []
    original = VideoResNet.remaining

    def remaining(self, *arguments):
        counts.append(tensorlite.get_num_threads())
        return original(self, *arguments)

    monkeypatch.setattr(VideoResNet, "remaining", remaining)
    for given, expected in (([], cores), (["--threads", "3"], 3)):
        for main, arguments in ((evaluate.main, []), (predict.main, [str(video.path)])):
            counts.clear()
            assert main([str(folder), *arguments, *given]) == 0
            assert set(counts) == {expected}
            tensorlite.set_num_threads(cores)


def test_predict_has_no_option_of_a_data_set_since_it_reads_none(trained, capsys):
    for option in ("--root", "--frames"):
        assert predict.main([str(trained), "video.avi", option, "somewhere"]) == 2
        assert f"unrecognized arguments: {option}" in one_line(capsys.readouterr().err)


def test_predict_goes_on_after_a_bad_video(trained, figures_root, tmp_path, capsys):
    good = figures.read(figures_root).test[0].path
    empty = tmp_path / "empty.avi"
    empty.write_bytes(b"")
    assert predict.main([str(trained), str(empty), str(tmp_path / "none.avi"), str(good)]) == 2
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == str(good)
    assert [line.rpartition(": ")[2] for line in err.splitlines()] == [
        "empty (0 bytes)", "no such file"]


def test_predict_never_writes_onto_the_video(trained, figures_root, tmp_path, capsys):
    source = figures.read(figures_root).test[0].path
    copy = Path(shutil.copy(source, tmp_path / "video.avi"))
    assert predict.main([str(trained), str(copy), "--write", str(tmp_path)]) == 2
    assert "is the video itself" in one_line(capsys.readouterr().err)
    assert copy.read_bytes() == source.read_bytes()
    assert predict.main([str(trained), str(copy), str(source.parent / source.name), str(copy),
                         "--write", str(tmp_path / "out")]) == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "video.avi", "video-2.avi", source.name}


def test_predict_never_writes_onto_another_video_that_was_given(trained, figures_root, tmp_path,
                                                                capsys):
    first, second = (video.path for video in figures.read(figures_root).test[:2])
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    here = Path(shutil.copy(first, tmp_path / "a" / "video.avi"))
    there = Path(shutil.copy(second, tmp_path / "b" / "video.avi"))
    for given in ([here, there], [there, here]):
        assert predict.main([str(trained), *map(str, given), "--write", str(there.parent)]) == 2
        assert str(there) in one_line(capsys.readouterr().err)
        assert there.read_bytes() == second.read_bytes()
        assert [p.name for p in there.parent.iterdir()] == ["video.avi"]
    assert predict.main([str(trained), str(here), "--write", str(there)]) == 2
    captured = capsys.readouterr()
    assert one_line(captured.err) == f"error: --write {there}: not a folder"
    assert not captured.out


@pytest.mark.parametrize("main", [evaluate.main, export.main])
def test_a_data_set_is_not_made_where_there_is_none(trained, tmp_path, capsys, main):
    """Only training makes it: what a run was tested on is there, or the folder is the wrong one."""
    if main is export.main:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnx")
    more = [str(tmp_path / "model.onnx")] if main is export.main else []
    for root in (tmp_path / "none", tmp_path):
        assert main([str(trained), *more, "--root", str(root)]) == 2
        assert one_line(capsys.readouterr().err) == (
            f"error: --root {root}: no drawn figures there (no figures.json)")
        assert not list(tmp_path.iterdir())


def test_a_complete_run_is_not_run_again(trained, capsys):
    before = (trained / "checkpoint.safetensors").stat().st_mtime_ns
    assert train.main(["--resume", str(trained)]) == 0
    assert "complete" in capsys.readouterr().out
    assert (trained / "checkpoint.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(("arguments", "message"), [
    (["--lr", "0.5"], "--lr 0.5: the run in"),
    (["--out", "x"], "--out: --resume goes on in the run's own folder"),
])
def test_a_run_is_gone_on_with_as_it_was(trained, capsys, arguments, message):
    assert train.main(["--resume", str(trained), *arguments]) == 2
    assert message in one_line(capsys.readouterr().err)


def test_options_given_again_as_they_were_are_accepted(trained, tiny):
    assert train.main(["--resume", str(trained), *tiny]) == 0


def test_bad_videos_are_skipped_when_asked_and_listed(tiny, figures_root, tmp_path, capsys):
    root = shutil.copytree(figures_root, tmp_path / "figures")
    split = figures.read(root)
    split.test[0].path.write_bytes(b"")
    split.train[0].path.write_bytes(split.train[0].path.read_bytes()[:500])
    options = [*tiny, "--root", str(root), "--epochs", "1"]
    assert train.main(["--out", str(tmp_path / "a"), *options]) == 2
    assert split.train[0].name in one_line(capsys.readouterr().err)
    # one group less has this class now: hold out as little as can be
    assert train.main(["--out", str(tmp_path / "b"), *options, "--skip-bad", "--holdout", "0"]) == 0
    result = read_json(tmp_path / "b" / "result.json")
    assert set(result["skipped"]) == {split.train[0].name, split.test[0].name}
    assert result["counts"]["skipped"] == 2 and result["counts"]["test_videos"] == 9
    assert result["best"]["epoch"] == 1 and "the last of" in result["protocol"]
    assert evaluate.main([str(tmp_path / "b"), "--side", "holdout"]) == 2
    assert "held no videos out" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "message"), [
    (["--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
    (["--colour", "9"], "unrecognized arguments: --colour 9\n"),
    (["--epoch", "9"], "unrecognized arguments: --epoch 9 (is it --epochs?)"),
    (["--skip", "jump"], "argument --skip: invalid choice: 'jump'"),
    (["--data", "ucf101", "--root", "nowhere"], "nowhere: no such folder"),
    (["--device", "cuda:99"], "device 'cuda:99': "),
    (["--position", "block1", "--context", "3"], "--context: got 3, expected 1 to 2 frames"),
    (["--resume", "nowhere"], "nowhere: no run there"),
    (["--resume"], "runs: no run there to go on with"),
])
def test_what_cannot_be_used_is_one_line_and_status_2(tiny, tmp_path, monkeypatch, capsys,
                                                      arguments, message):
    monkeypatch.chdir(tmp_path)
    rest = [] if "--resume" in arguments else tiny
    assert train.main([*rest, *arguments]) == 2
    line = one_line(capsys.readouterr().err)
    assert line.startswith("error: ") and message in line + "\n"


@pytest.mark.parametrize("module", ["train", "evaluate", "predict"])
def test_the_real_command_line(module, tmp_path):
    helped = command(module, "--help", cwd=tmp_path)
    assert helped.returncode == 0 and "--threads" in helped.stdout and helped.stderr == ""
    wrong = command(module, "--device", "gpu", cwd=tmp_path)
    assert wrong.returncode == 2
    assert one_line(wrong.stderr).startswith("error: ")


@pytest.mark.parametrize("content", [b"", b"hello\n", b"\x89PNG\r\n not really",
                                     b"RIFF\x10\0\0\0AVI LIST"])
def test_a_bad_file_in_the_data_is_one_line(content, tiny, figures_root, tmp_path):
    root = shutil.copytree(figures_root, tmp_path / "figures")
    bad = figures.read(root).train[2].path
    bad.write_bytes(content)
    ended = command("train", *tiny, "--root", root, "--out", "run", cwd=tmp_path)
    assert ended.returncode == 2
    assert one_line(ended.stderr).startswith(f"error: {bad}: ")
    assert not (tmp_path / "run").exists()  # so that the same command can be given again


def test_a_full_disk_is_a_failed_run(tiny, tmp_path, monkeypatch, capsys):
    def full(*args):
        raise OSError(28, "No space left on device", "scores.npz")

    monkeypatch.setattr(train, "write_scores", full)
    assert train.main(["--out", str(tmp_path / "run"), *tiny, "--epochs", "1"]) == 1
    assert "No space left on device" in one_line(capsys.readouterr().err)
    monkeypatch.undo()
    assert train.main(["--resume", str(tmp_path / "run")]) == 0


def test_debug_shows_where(tmp_path, capsys):
    assert train.main(["--resume", str(tmp_path), "--debug"]) == 2
    text = capsys.readouterr().err
    assert "Traceback" in text and text.strip().splitlines()[-1].startswith("error: ")


def test_our_own_mistakes_are_one_line_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Run, "open", lambda path: {}["missing"])
    assert train.main(["--resume", str(tmp_path)]) == 1
    assert one_line(capsys.readouterr().err) == "error: KeyError: 'missing' (--debug shows where)"


def test_a_second_writer(trained, tmp_path, capsys):
    folder = shutil.copytree(trained, tmp_path / "run")
    (folder / "result.json").unlink()
    with Run.open(folder):
        assert train.main(["--resume", str(folder)]) == 2
    assert "is writing to this run" in one_line(capsys.readouterr().err)


def test_runs_without_a_name_get_one(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train.main([*tiny, "--epochs", "1", "--model", "avgpool"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-figures-avgpool", folder.name)
    assert train.main(["--resume"]) == 0
    assert f"{folder.relative_to(tmp_path)}: complete" in capsys.readouterr().out
