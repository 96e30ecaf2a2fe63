"""Late fusion against a mean worked out by hand; and nothing is averaged that is not the same."""

from __future__ import annotations

import numpy as np
import pytest

from recres import fuse
from recres.errors import InputError
from recres.scores import SavedScores, read_scores, write_scores

APPEARANCE = SavedScores(
    ("a", "b", "c", "d"), np.array([0, 1, 2, 0]),
    np.array([[0.6, 0.4, 0.0], [0.5, 0.4, 0.1], [0.2, 0.5, 0.3], [0.9, 0.1, 0.0]]),
    np.array([1, 2, 3, 4]), ("Run", "Walk", "Jump"), "ucf101", 1)
# The same videos in another order; it knows b, and misleads about a.
MOTION = SavedScores(
    ("d", "c", "b", "a"), np.array([0, 2, 1, 0]),
    np.array([[0.5, 0.3, 0.2], [0.1, 0.5, 0.4], [0.2, 0.8, 0.0], [0.1, 0.9, 0.0]]),
    np.array([4, 4, 4, 4]), ("Run", "Walk", "Jump"), "ucf101", 1)


def test_the_mean_of_posteriors_video_by_video():
    fused = fuse.fuse([APPEARANCE, MOTION])
    np.testing.assert_allclose(fused.posteriors, [[0.35, 0.65, 0.0], [0.35, 0.6, 0.05],
                                                  [0.15, 0.5, 0.35], [0.7, 0.2, 0.1]], atol=1e-12)
    assert fused.names == APPEARANCE.names and fused.labels.tolist() == [0, 1, 2, 0]
    assert fused.chunks.tolist() == [5, 6, 7, 8] and fused.video_error == 0.5
    assert (fused.data, fused.split) == ("ucf101", 1)


def test_weights_are_scaled_to_sum_to_one():
    fused = fuse.fuse([APPEARANCE, MOTION], [2, 6])
    np.testing.assert_allclose(fused.posteriors[0], [0.25 * 0.6 + 0.75 * 0.1,
                                                     0.25 * 0.4 + 0.75 * 0.9, 0], atol=1e-12)
    np.testing.assert_array_equal(fuse.fuse([APPEARANCE, MOTION], [1, 0]).posteriors,
                                  APPEARANCE.posteriors)
    three = fuse.fuse([APPEARANCE, MOTION, APPEARANCE], [1, 2, 1])
    np.testing.assert_allclose(three.posteriors, fuse.fuse([APPEARANCE, MOTION]).posteriors)


@pytest.mark.parametrize(("change", "reason"), [
    ({"classes": ("Run", "Walk", "Fly")}, "scores 2: its 3 classes are not the 3 of scores 1"),
    ({"data": "figures"}, "scores 2: scores of figures, those of scores 1 are of ucf101"),
    ({"split": 2}, "scores 2: scores of split 2, those of scores 1 are of split 1"),
    ({"names": ("d", "c", "b", "e")}, "scores 2: lacks a, which scores 1 has"),
    ({"names": tuple("dcbae"), "labels": np.array([0, 2, 1, 0, 0]),
      "posteriors": np.full((5, 3), 1 / 3), "chunks": np.ones(5, int)},
     "scores 1: lacks e, which scores 2 has"),
    ({"labels": np.array([0, 1, 1, 0])}, "scores 2: c has another label than in scores 1"),
])
def test_what_does_not_belong_together_is_refused(change, reason):
    with pytest.raises(InputError) as raised:
        fuse.fuse([APPEARANCE, MOTION._replace(**change)])
    assert str(raised.value) == reason


def test_files_from_before_they_named_their_split_are_known_by_their_videos():
    fused = fuse.fuse([APPEARANCE._replace(data="", split=0), MOTION])
    assert (fused.data, fused.split) == ("ucf101", 1)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "run").mkdir()
    write_scores(tmp_path / "run" / "scores.npz", APPEARANCE, APPEARANCE.classes, "ucf101", 1)
    write_scores(tmp_path / "flow.npz", MOTION, MOTION.classes, "ucf101", 1)
    return [str(tmp_path / "run"), str(tmp_path / "flow.npz")]


def test_the_command(files, tmp_path, capsys):
    out = tmp_path / "fused.npz"
    assert fuse.main([*files, "--weights", "1,1", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    # alone: appearance is wrong on b and c, motion on a and c; together on a and c
    assert lines[1].split()[1:] == ["0.500", "0.5000", "1", "1"]
    assert lines[2].split()[1:] == ["0.500", "0.5000", "0", "0"]
    assert lines[3].split() == ["fused", "0.5000", "of", "4", "videos"]
    found = read_scores(out)
    assert (found.data, found.split) == ("ucf101", 1)
    np.testing.assert_array_equal(found.posteriors, fuse.fuse([APPEARANCE, MOTION]).posteriors)
    assert fuse.main([*files, "--weights", "5,1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[1:] == ["0.833", "0.5000", "1", "0"]
    assert lines[3].split()[1] == "0.2500"


@pytest.mark.parametrize(("arguments", "reason"), [
    (["--weights", "1"], "--weights 1: 1 for 2 score files"),
    (["--weights", "1,x"], "--weights 1,x: expected numbers"),
    (["--weights", "1,-1"], "--weights 1,-1: expected numbers of at least 0"),
    (["--weights", "0,0"], "--weights 0,0: expected numbers"),
    (["--weights", "1,nan"], "--weights 1,nan: expected numbers"),
    (["--weights", "1e308,1e308"], "--weights 1e308,1e308: expected numbers"),
    (["--out", "fused.json"], "--out fused.json: expected a name that ends in .npz"),
    (["--out", "/nowhere/f.npz"], "--out /nowhere/f.npz: No such file"),
    (["nowhere"], "nowhere: no such file"),
])
def test_what_cannot_be_used_is_one_line_and_status_2(files, arguments, reason, capsys):
    assert fuse.main([*files, *arguments]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert line.startswith(f"error: {reason}") and captured.out == ""
