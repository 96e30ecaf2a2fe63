"""A model is tested on videos that it was not trained on; or somebody insists, and it is said."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from recres import checkpoint, config, data, evaluate, train
from recres.datasets import figures
from recres.files import read_json
from recres.loader import Videos
from recres.runs import Run
from recres.scores import read_scores


def failed(capsys, *arguments: object) -> str:
    """The only line of a command that was refused."""
    assert evaluate.main(["--threads", "1", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def resaved(trained, path, **changed):
    """The run's model in another file, as if trained with other options; None: it says none."""
    arrays, about = checkpoint.load_model(trained / "best.safetensors")
    options = json.loads(about["options"])
    about["options"] = json.dumps(options | changed)
    if changed.get("options", "") is None:
        del about["options"]
    checkpoint.save_safetensors(path, arrays, about)
    return path


def test_another_split_is_refused_with_what_would_be_wrong(run, capsys):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    line = failed(capsys, run, "--split", "2")
    assert line.startswith(f"error: {run / 'best.safetensors'}: trained on split 1 of figures, but "
                           "this tests on split 2: 10 of the 10 test videos are among its training "
                           "videos")
    assert line.endswith("--force evaluates it all the same")
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_forced_it_says_so(run, capsys):
    assert evaluate.main([str(run), "--split", "3", "--force", "--threads", "1"]) == 0
    assert "forced    trained on split 1" in capsys.readouterr().out
    result = read_json(run / "evaluation-test-split3-forced.json")
    assert result["forced"] is True and result["split"] == 3 and result["data"] == "figures"
    assert result["trained_on"]["split"] == 1 and "split 3" in result["force_reason"]
    scores = read_scores(run / "scores-test-split3-forced.npz")
    assert (scores.data, scores.split) == ("figures", 3)
    assert all("_g03_" in name for name in scores.names)
    assert not (run / "evaluation-test.json").exists()


def test_the_split_that_it_was_trained_on_is_fine(run):
    assert evaluate.main([str(run), "--split", "1", "--threads", "1"]) == 0
    plain = read_json(run / "evaluation-test.json")
    assert plain["forced"] is False and plain["split"] == plain["trained_on"]["split"] == 1
    assert plain["video_error"] == read_json(run / "result.json")["video_error"]
    # insisting where nothing is wrong changes nothing
    (run / "evaluation-test.json").unlink()
    assert evaluate.main([str(run), "--force", "--threads", "1"]) == 0
    assert read_json(run / "evaluation-test.json") == plain


def test_another_runs_model_is_asked_what_it_was_trained_on(run, trained, tmp_path, capsys):
    other = resaved(trained, tmp_path / "two.safetensors", split=2)
    assert "trained on split 2 of figures, but this tests on split 1: 10 of the 10" in failed(
        capsys, run, "--weights", other)
    # its own split's test side is fine in any run's folder
    assert evaluate.main([str(run), "--weights", str(other), "--split", "2", "--threads", "1"]) == 0
    result = read_json(run / "evaluation-test-split2.json")
    assert result["forced"] is False and result["trained_on"]["split"] == 2
    same = resaved(trained, tmp_path / "one.safetensors", seed=5)
    assert evaluate.main([str(run), "--weights", str(same), "--threads", "1"]) == 0
    assert read_json(run / "evaluation-test.json")["forced"] is False


def test_another_data_set_is_refused(run, trained, tmp_path, capsys):
    other = resaved(trained, tmp_path / "ucf.safetensors", data="ucf101")
    assert "trained on ucf101, but this is figures" in failed(capsys, run, "--weights", other)
    assert evaluate.main([str(run), "--weights", str(other), "--force", "--threads", "1"]) == 0
    result = read_json(run / "evaluation-test-forced.json")
    assert result["trained_on"]["data"] == "ucf101" and result["forced"] is True


def test_a_model_that_does_not_say_is_refused(run, trained, tmp_path, capsys):
    other = resaved(trained, tmp_path / "mute.safetensors", options=None)
    assert "does not say which videos it was trained on" in failed(capsys, run, "--weights", other)


def test_names_decide_not_the_number_alone(run, trained, figures_root, tmp_path, capsys):
    # the same clips, but somebody has made split 1 what split 2 was
    root = shutil.copytree(figures_root, tmp_path / "figures")
    for side in ("train", "test"):
        shutil.copy(root / f"ucfTrainTestlist/{side}list02.txt",
                    root / f"ucfTrainTestlist/{side}list01.txt")
    line = failed(capsys, run, "--root", root)
    assert f"trained on split 1 of figures ({figures_root})" in line
    assert f"tests on split 1 ({root}): 10 of the 10 test videos" in line


def test_a_data_set_that_has_moved_is_fine(run, trained, figures_root, tmp_path):
    root = shutil.copytree(figures_root, tmp_path / "figures")
    gone = resaved(trained, tmp_path / "gone.safetensors", root=str(tmp_path / "gone"))
    assert evaluate.main([str(run), "--root", str(root), "--weights", str(gone),
                          "--threads", "1"]) == 0


@pytest.mark.parametrize(("change", "reason"), [
    ({}, None),
    ({"lr": 0.5}, None),
    ({"seed": 5}, "trained with seed 5, but these videos are held out with seed 0"),
    ({"holdout": 0.0}, "trained with holdout 0.0, but these videos are held out with holdout 0.3"),
    ({"split": 2, "seed": 5}, "trained with split 2, seed 5, but"),
])
def test_held_out_is_held_out_by_the_same_options_only(trained, change, reason):
    run = Run.open(trained)
    videos = Videos(figures.read(run.config.root), run.config, read_json(trained / "videos.json"))
    other = config.Config.from_json(run.config.to_json() | change, "here")
    found = evaluate.why_not(other, videos, "holdout")
    assert found is None if reason is None else found is not None and found.startswith(reason)


@pytest.fixture(scope="module")
def frames(figures_root, tmp_path_factory):
    """Stores of the data set's frames: raw, jpeg, and one of another frame step."""
    folder = tmp_path_factory.mktemp("frames")
    for name, given in (("raw", ["--codec", "raw"]), ("jpeg", ["--quality", "30"]),
                        ("other", ["--codec", "raw", "--frame-step", "7"])):
        assert data.main(["prepare", "--root", str(figures_root), "--workers", "1", "--out",
                          str(folder / name), *given]) == 0
    return folder


def test_from_a_raw_store_the_scores_are_those_of_the_videos(run, frames, capsys, monkeypatch):
    assert evaluate.main([str(run), "--threads", "1"]) == 0
    results, scores = run / "evaluation-test.json", run / "scores-test.npz"
    before = results.read_bytes(), read_scores(scores).posteriors
    assert read_json(results)["pixels"] is None
    monkeypatch.setattr("recres.video.source.sample_video", lambda *_: pytest.fail("decoded"))
    capsys.readouterr()
    assert evaluate.main([str(run), "--frames", str(frames / "raw"), "--threads", "1"]) == 0
    assert results.read_bytes() == before[0]
    assert np.array_equal(read_scores(scores).posteriors, before[1])
    assert "pixels " not in capsys.readouterr().out


def test_other_pixels_are_said(run, frames, capsys):
    assert evaluate.main([str(run), "--frames", str(frames / "jpeg"), "--threads", "1"]) == 0
    assert ("pixels    jpeg of quality 30; the model was trained on those of the videos\n"
            in capsys.readouterr().out)
    result = read_json(run / "evaluation-test.json")
    assert result["pixels"] == "jpeg of quality 30" and result["trained_on"]["pixels"] is None
    assert result["loss"] != read_json(run / "result.json")["loss"]


def test_a_store_of_other_settings_or_none_is_one_line(run, frames, tmp_path, capsys):
    for path, text in ((frames / "other", "made with --frame-step 7, wanted is 5"),
                       (tmp_path / "gone", "no store of frames there")):
        assert failed(capsys, run, "--frames", path).startswith(f"error: {path}: {text}")
    assert not (run / "evaluation-test.json").exists()


def test_a_store_that_has_moved_or_gone(tiny, frames, tmp_path, capsys):
    out, store = tmp_path / "run", shutil.copytree(frames / "jpeg", tmp_path / "store")
    assert train.main(["--out", str(out), *tiny, "--frames", str(store)]) == 0
    moved = store.rename(tmp_path / "moved")
    assert f"{store}: no store of frames there" in failed(capsys, out)
    assert evaluate.main([str(out), "--frames", str(moved), "--threads", "1"]) == 0
    assert "pixels " not in capsys.readouterr().out
    from_store, first = read_json(out / "evaluation-test.json"), read_json(out / "result.json")
    assert from_store["pixels"] == from_store["trained_on"]["pixels"] == "jpeg of quality 30"
    assert from_store["loss"] == first["loss"]
    assert evaluate.main([str(out), "--frames", "none", "--threads", "1"]) == 0
    assert ("pixels    those of the videos; the model was trained on jpeg of quality 30\n"
            in capsys.readouterr().out)
    from_videos = read_json(out / "evaluation-test.json")
    assert from_videos["pixels"] is None and from_videos["loss"] != first["loss"]


@pytest.mark.parametrize(("changed", "expected"), [
    ({}, None), ({"frames": "store"}, "unknown"),
])
def test_an_older_model_says_what_it_can_of_its_pixels(run, trained, tmp_path, changed, expected):
    """One without the entry was trained on the videos or, with a store, on what is not known."""
    arrays, about = checkpoint.load_model(trained / "best.safetensors")
    about["options"] = json.dumps(json.loads(about["options"]) | changed)
    del about["pixels"]
    checkpoint.save_safetensors(tmp_path / "older.safetensors", arrays, about)
    _, found = evaluate._trained_on(tmp_path / "older.safetensors")
    assert found is not None and found["pixels"] == expected


def test_features_of_other_pixels_are_kept_apart(tiny, trained, frames, tmp_path):
    out, store = tmp_path / "run", tmp_path / "features"
    given = [*tiny, "--weights", str(trained / "best.safetensors"), "--features", "block3",
             "--model", "avgpool", "--store", str(store)]
    assert train.main(["--out", str(out), *given]) == 0
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    assert evaluate.main([str(out), "--frames", str(frames / "jpeg")]) == 0
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before
    assert not list(out.glob("features*"))
    result = read_json(out / "evaluation-test.json")
    assert result["loss"] != read_json(out / "result.json")["loss"]


def test_a_model_of_features_is_evaluated_as_it_was_tested(tiny, trained, tmp_path):
    """From features that are made again, and not kept."""
    out = tmp_path / "run"
    given = [*tiny, "--weights", str(trained / "best.safetensors"), "--features", "block3",
             "--model", "gru", "--z-norm"]
    assert train.main(["--out", str(out), *given]) == 0
    assert evaluate.main([str(out)]) == 0
    first, second = (json.loads((out / name).read_text())
                     for name in ("result.json", "evaluation-test.json"))
    assert second["video_error"] == first["video_error"] and second["loss"] == first["loss"]
    assert not (out / "features").exists()
