"""Score files: what is written is read, and what is no score file is refused in one line."""

from __future__ import annotations

import numpy as np
import pytest

from recres.errors import InputError
from recres.metrics import Scores
from recres.scores import read_scores, write_scores

CLASSES = ("Run", "Walk", "Jump")


def scores() -> Scores:
    posteriors = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]])
    return Scores(("a", "b"), np.array([0, 2]), posteriors, np.array([3, 4]), np.array([0, 4]), 0.7)


def fields() -> dict[str, np.ndarray]:
    found = scores()
    return {"names": np.array(found.names), "labels": found.labels,
            "posteriors": found.posteriors, "chunks": found.chunks, "classes": np.array(CLASSES)}


def test_what_is_written_is_read(tmp_path):
    write_scores(tmp_path / "s.npz", scores(), CLASSES, "figures", 2)
    found = read_scores(tmp_path / "s.npz")
    assert (found.names, found.classes, found.data, found.split) == (("a", "b"), CLASSES,
                                                                     "figures", 2)
    np.testing.assert_array_equal(found.labels, [0, 2])
    np.testing.assert_array_equal(found.posteriors, scores().posteriors)
    np.testing.assert_array_equal(found.chunks, [3, 4])
    assert found.right.tolist() == [True, False] and found.video_error == 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["s.npz"]


def test_an_older_file_does_not_say_which_split(tmp_path):
    np.savez(tmp_path / "old.npz", **fields())
    found = read_scores(tmp_path / "old.npz")
    assert (found.data, found.split) == ("", 0)


def test_a_file_stays_when_writing_fails(tmp_path, monkeypatch):
    write_scores(tmp_path / "s.npz", scores(), CLASSES)
    before = (tmp_path / "s.npz").read_bytes()

    def full(file, **arrays):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        write_scores(tmp_path / "s.npz", scores(), CLASSES)
    assert [path.name for path in tmp_path.iterdir()] == ["s.npz"]
    assert (tmp_path / "s.npz").read_bytes() == before


@pytest.mark.parametrize(("change", "reason"), [
    ({"labels": None}, "no labels in it"),
    ({"names": None, "classes": None}, "no names in it"),
    ({"posteriors": np.ones((2, 3), int)}, "posteriors is an array of int64"),
    ({"posteriors": np.ones((2, 3, 1)) / 3}, "posteriors is an array of float64 with the shape"),
    ({"labels": np.array([0.0, 2.0])}, "expected 1 dimension of integers"),
    ({"names": np.array([1, 2])}, "expected 1 dimension of texts"),
    ({"names": np.array(["a", None], object)}, "has the type object, expected numbers or texts"),
    ({"posteriors": np.ones((2, 4)) / 4}, r"posteriors of the shape (2, 4), expected (2, 3)"),
    ({"labels": np.array([0, 1, 2])}, "3 labels"),
    ({"chunks": np.array([1])}, "1 counts of chunks"),
    ({"posteriors": np.array([[0.6, 0.3, 0.1], [np.nan, 0.5, 0.5]])}, "b has a posterior that is "
     "not finite"),
    ({"posteriors": np.array([[0.6, 0.3, 0.2], [0, 0.5, 0.5]])}, "a has posteriors that do not"),
    ({"posteriors": np.array([[1.2, -0.3, 0.1], [0, 0.5, 0.5]])}, "a has a negative posterior"),
    ({"labels": np.array([0, 3])}, "b has a label that is not one of 3 classes"),
    ({"labels": np.array([-1, 1])}, "a has a label"),
    ({"names": np.array(["a", "a"])}, "video a is there twice"),
    ({"classes": np.array(["Run", "Run", "Jump"])}, "class Run is there twice"),
    ({"split": np.array("two")}, "data and split are"),
    ({"names": np.array([], str), "labels": np.array([], int), "chunks": np.array([], int),
      "posteriors": np.zeros((0, 3))}, "it has no videos"),
])
def test_what_is_wrong_is_one_line(tmp_path, change, reason):
    arrays = {name: array for name, array in (fields() | change).items() if array is not None}
    path = tmp_path / "s.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputError) as raised:
        read_scores(path)
    text = str(raised.value)
    assert text.startswith(f"{path}: ") and reason in text and "\n" not in text


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04]\x94.", b"PK\x03\x04 torn"])
def test_no_archive(tmp_path, content):
    path = tmp_path / "s.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"s\.npz: not a score file"):
        read_scores(path)


def test_a_torn_archive_or_no_file_at_all(tmp_path):
    path = tmp_path / "s.npz"
    write_scores(path, scores(), CLASSES)
    data = bytearray(path.read_bytes())
    data[200:260] = bytes(60)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"s\.npz: cannot be read: "):
        read_scores(path)
    for other, reason in ((tmp_path, "not a file"), (tmp_path / "none.npz", "no such file")):
        with pytest.raises(InputError, match=reason):
            read_scores(other)
