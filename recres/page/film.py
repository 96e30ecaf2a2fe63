"""Film strips: the sampled frames of a few videos that a network named rightly or wrongly."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from recres.config import Config
from recres.video import augment
from recres.video.decode import VideoError, sample_video

EXAMPLES = 6  # of each kind
FRAMES = 8  # of a strip, at most
SIDE = 112  # pixels of a frame
GAP = 3
QUALITY = 72


class Strip(NamedTuple):
    """Frames side by side as a data URI, `width` x `height` pixels: `shown` of `sampled`."""

    uri: str
    width: int
    height: int
    shown: int
    sampled: int


class Film(NamedTuple):
    """A video and what was said of it; confidence: the posterior of the answer. `strip` is None
    where the video cannot be read, and `problem` says why."""

    name: str
    truth: str
    answer: str
    confidence: float
    truth_posterior: float
    strip: Strip | None
    problem: str

    @property
    def right(self) -> bool:
        """Whether the answer is the true class."""
        return self.truth == self.answer


def choose(labels: np.ndarray, posteriors: np.ndarray) -> list[int]:
    """Which videos to show: of the wrong ones those with the highest confidence, the highest first;
    of the right ones those whose confidence is around their median."""
    answers, confidence = posteriors.argmax(axis=1), posteriors.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    wrong = [int(i) for i in order if answers[i] != labels[i]]
    right = [int(i) for i in order if answers[i] == labels[i]]
    first = max(0, len(right) - EXAMPLES) // 2
    return wrong[:EXAMPLES] + right[first : first + EXAMPLES]


def film(name: str, path: Path | None, label: int, posterior: np.ndarray, classes: Sequence[str],
         config: Config) -> Film:
    """A video in `path` (None: it is not in the data set) with the answer to it."""
    answer = int(posterior.argmax())
    strip, problem = None, "it is no longer in the data set"
    if path is not None:
        try:
            strip = make_strip(sample_video(path, config.frame_step, config.context))
        except VideoError as error:
            problem = str(error)
    return Film(name, classes[label], classes[answer], float(posterior[answer]),
                float(posterior[label]), strip, problem)


def make_strip(frames: np.ndarray) -> Strip:
    """Up to FRAMES of the frames (n, H, W, 3), evenly over time, cut as for testing."""
    picked = np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().astype(int)
    view = augment.evaluation_view(*frames.shape[1:3])
    cut = augment.apply(frames[picked], view, SIDE)
    width = len(cut) * (SIDE + GAP) - GAP
    picture = np.full((SIDE, width, 3), 128, np.uint8)
    for i, frame in enumerate(cut):
        picture[:, i * (SIDE + GAP) : i * (SIDE + GAP) + SIDE] = frame
    _, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR),
                           [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    uri = "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
    return Strip(uri, width, SIDE, len(cut), len(frames))
