"""Errors of a classifier of videos, from the posteriors of their chunks.

A video's posterior is the mean of the softmax over its chunks. `chunk_error` counts chunks,
`video_error` videos; the two are never mixed up. All functions are pure; arrays in, numbers out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Scores(NamedTuple):
    """What a network said of a list of V videos with N chunks.

    names: of the videos. labels (V,). posteriors (V, classes): means over each video's chunks.
    chunks (V,): how many those are, and wrong (V,): how many of them were named wrongly.
    loss: mean cross-entropy over the N chunks.
    """

    names: tuple[str, ...]
    labels: np.ndarray
    posteriors: np.ndarray
    chunks: np.ndarray
    wrong: np.ndarray
    loss: float

    @property
    def answers(self) -> np.ndarray:
        """(V,): the most likely class of each video; the first of equals."""
        return self.posteriors.argmax(axis=1)

    @property
    def chunk_error(self) -> float:
        """The share of chunks whose most likely class is wrong."""
        return float(self.wrong.sum() / self.chunks.sum())

    @property
    def video_error(self) -> float:
        """The share of videos whose most likely class is wrong."""
        return float((self.answers != self.labels).mean())


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """log softmax over the last axis, in float64."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def gather(names: Sequence[str], labels: Sequence[int], logits: np.ndarray,
           owner: Sequence[int]) -> Scores:
    """The scores of videos from the logits (N, classes) of their chunks.

    owner (N,): for each chunk, the place of its video in `names` and `labels`. ValueError for a
    video without a chunk or without videos.
    """
    label, video = np.asarray(labels, np.int64), np.asarray(owner, np.int64)
    chunks = np.bincount(video, minlength=len(names))
    if not len(names) or chunks.min() == 0:
        raise ValueError(f"owner: expected a chunk of each of {len(names)} videos")
    logs = log_softmax(logits)
    posteriors = np.zeros((len(names), logits.shape[1]))
    np.add.at(posteriors, video, np.exp(logs))
    posteriors /= chunks[:, None]
    wrong = np.bincount(video, logs.argmax(axis=1) != label[video], len(names)).astype(np.int64)
    loss = float(-logs[np.arange(len(video)), label[video]].mean())
    return Scores(tuple(names), label, posteriors, chunks, wrong, loss)


def confusion(scores: Scores) -> np.ndarray:
    """(classes, classes) counts of videos: row the true class, column the answer."""
    classes = scores.posteriors.shape[1]
    table = np.zeros((classes, classes), np.int64)
    np.add.at(table, (scores.labels, scores.answers), 1)
    return table


def partners(classes: Sequence[str], pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """(classes,): the label of each class's partner; -1 for a class that is in no pair."""
    label = {name: i for i, name in enumerate(classes)}
    other = np.full(len(classes), -1)
    for one, two in pairs:
        other[label[one]], other[label[two]] = label[two], label[one]
    return other


def pair_error(scores: Scores, partner: np.ndarray) -> float:
    """The share of videos whose answer is neither their class nor its partner."""
    right = (scores.answers == scores.labels) | (scores.answers == partner[scores.labels])
    return float(1 - right.mean())


def within_pair_error(scores: Scores, partner: np.ndarray) -> float | None:
    """Of the videos whose pair is named rightly, the share taken for the partner; None if none."""
    right = scores.answers == scores.labels
    swapped = scores.answers == partner[scores.labels]
    total = right.sum() + swapped.sum()
    return float(swapped.sum() / total) if total else None


def becomes_partner(forwards: Scores, backwards: Scores, partner: np.ndarray) -> float | None:
    """Of the videos named rightly, the share whose answer, when they are played backwards, is the
    partner's class; None if none is named rightly."""
    right = (forwards.answers == forwards.labels) & (partner[forwards.labels] >= 0)
    if not right.any():
        return None
    return float((backwards.answers == partner[forwards.labels])[right].mean())
