"""Scores as files: what a network said of every video of a side, to fuse and compare later.

An .npz with, for V videos, `names`, `labels` (V,), `posteriors` (V, classes), `chunks` (V,) (how
many chunk posteriors each is the mean of) and `classes`; `data` and `split` say which test side it
is. Files from before the last two have the empty text and 0 there.
"""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recres.errors import InputError
from recres.metrics import Scores
from tensorlite.io import FormatError, load_npz, replacing

# Far more than the rounding of 101 posteriors in float32, far less than any other mistake.
SUM_TOLERANCE = 1e-4
_FIELDS = ("names", "labels", "posteriors", "chunks", "classes")


class SavedScores(NamedTuple):
    """A score file's contents; data and split are "" and 0 where the file does not say."""

    names: tuple[str, ...]
    labels: np.ndarray
    posteriors: np.ndarray
    chunks: np.ndarray
    classes: tuple[str, ...]
    data: str = ""
    split: int = 0

    @property
    def answers(self) -> np.ndarray:
        """(V,): the most likely class of each video; the first of equals."""
        return self.posteriors.argmax(axis=1)

    @property
    def right(self) -> np.ndarray:
        """(V,) bool: whether that is the video's class."""
        return self.answers == self.labels

    @property
    def video_error(self) -> float:
        """The share of videos whose most likely class is wrong."""
        return float(1 - self.right.mean())


def write_scores(path: str | os.PathLike[str], scores: Scores | SavedScores,
                 classes: Sequence[str], data: str = "", split: int = 0) -> None:
    """Write a score file, which appears whole or not at all."""
    with replacing(Path(path)) as beside, open(beside, "wb") as file:
        np.savez(file, names=np.array(scores.names), labels=scores.labels,
                 posteriors=scores.posteriors, chunks=scores.chunks, classes=np.array(classes),
                 data=np.array(data), split=np.array(split))
        file.flush()
        os.fsync(file.fileno())


def read_scores(path: str | os.PathLike[str]) -> SavedScores:
    """Read a score file. InputError, one line that names it, for whatever is wrong with it."""
    path = Path(path)
    if path.is_file() and not zipfile.is_zipfile(path):
        raise InputError(f"{path}: not a score file (no .npz)")
    try:
        arrays = load_npz(path, texts=True)
    except FormatError as error:
        raise InputError(str(error)) from None
    if missing := [name for name in _FIELDS if name not in arrays]:
        raise InputError(f"{path}: no {missing[0]} in it, expected {', '.join(_FIELDS)}")
    names, labels, posteriors, chunks, classes = (arrays[name] for name in _FIELDS)
    data, split = arrays.get("data", np.array("")), arrays.get("split", np.array(0))
    for name, kinds, dimensions in (("names", "U", 1), ("labels", "iu", 1), ("posteriors", "f", 2),
                                    ("chunks", "iu", 1), ("classes", "U", 1)):
        found = arrays[name]
        if found.ndim != dimensions or found.dtype.kind not in kinds:
            raise InputError(f"{path}: {name} is an array of {found.dtype} with the shape "
                             f"{found.shape}, expected {dimensions} "
                             f"dimension{'s' if dimensions > 1 else ''} of {_KINDS[kinds]}")
    if data.shape or data.dtype.kind != "U" or split.shape or split.dtype.kind not in "iu":
        raise InputError(f"{path}: data and split are {data!r} and {split!r}, expected a text and "
                         "a number")
    expected = (len(names), len(classes))
    if posteriors.shape != expected or len(labels) != len(names) or len(chunks) != len(names):
        raise InputError(f"{path}: {len(names)} names, {len(classes)} classes, {len(labels)} "
                         f"labels and {len(chunks)} counts of chunks with posteriors of the shape "
                         f"{posteriors.shape}, expected {expected}")
    if not len(names):
        raise InputError(f"{path}: it has no videos")
    result = SavedScores(tuple(names.tolist()), labels.astype(np.int64),
                         posteriors.astype(np.float64), chunks.astype(np.int64),
                         tuple(classes.tolist()), str(data), int(split))
    _check_values(path, result)
    return result


_KINDS = {"U": "texts", "iu": "integers", "f": "floating-point numbers"}


def _check_values(path: Path, scores: SavedScores) -> None:
    for what, texts in (("video", scores.names), ("class", scores.classes)):
        twice, times = Counter(texts).most_common(1)[0]
        if times > 1:
            raise InputError(f"{path}: {what} {twice} is there twice")

    def refuse(bad: Any, reason: str) -> None:
        if bad.any():
            raise InputError(f"{path}: {scores.names[int(bad.argmax())]} {reason}")

    refuse((scores.labels < 0) | (scores.labels >= len(scores.classes)),
           f"has a label that is not one of {len(scores.classes)} classes")
    refuse(~np.isfinite(scores.posteriors).all(axis=1), "has a posterior that is not finite")
    refuse((scores.posteriors < 0).any(axis=1), "has a negative posterior")
    off = scores.posteriors.sum(axis=1) - 1
    refuse(np.abs(off) > SUM_TOLERANCE, "has posteriors that do not sum to 1")
