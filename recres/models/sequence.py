"""Classifiers of whole videos from the features of their frames: the models of the paper's Table 1.

A video is the sequence of its sampled frames, each a vector: what a frozen network makes of the
frame, pooled over space. Videos differ in length, so a batch is padded and comes with lengths.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from tensorlite import nn
from tensorlite.tensor import Tensor

KINDS = ("avgpool", "gru", "lstm")


class SequenceModel(nn.Module):
    """A linear classifier of one vector a video, which is made of the vectors of its frames.

    kind: "avgpool", their mean, to which the order of the frames makes no difference; "gru" or
    "lstm", the state of such a layer after the video's last frame. The paper does not say which
    state, or what of all of them, it classifies; the last is what has seen the whole video.
    features: length F of a frame's vector. units: of the recurrent layer. rng: a generator or seed
    for the starting weights. ValueError for anything else.

    Each feature may first be Z-normalised: see `set_statistics`. Its statistics are buffers, saved
    with the parameters but not trained; at first they change nothing.
    """

    mean: np.ndarray
    scale: np.ndarray

    def __init__(self, kind: str, features: int, classes: int, units: int = 128,
                 rng: np.random.Generator | int | None = None) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind: got {kind!r}, expected one of {', '.join(KINDS)}")
        for name, value in (("features", features), ("classes", classes), ("units", units)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {value!r}")
        rng = np.random.default_rng(rng)
        self.kind, self.features, self.classes, self.units = kind, features, classes, units
        self.register_buffer("mean", np.zeros(features, np.float32))
        self.register_buffer("scale", np.ones(features, np.float32))
        self.recurrent: nn.Module | None = None
        if kind != "avgpool":
            layer = nn.GRU if kind == "gru" else nn.LSTM
            self.recurrent = layer(features, units, rng=rng)
        self.fc = nn.Linear(features if kind == "avgpool" else units, classes, rng=rng)

    def set_statistics(self, mean: ArrayLike, deviation: ArrayLike) -> None:
        """Normalise each feature as (x - mean) / deviation from now on; both (F,).

        A feature that never varied (deviation 0, or too small to divide by in float32) says
        nothing, and its weights would never learn: it becomes 0 whatever it is. ValueError unless
        all are finite and no deviation is negative.
        """
        mean, deviation = np.asarray(mean, np.float64), np.asarray(deviation, np.float64)
        if not (np.isfinite(mean).all() and np.isfinite(deviation).all()
                and (deviation >= 0).all()):
            raise ValueError("statistics: expected finite means and finite deviations >= 0")
        varies = deviation >= np.finfo(np.float32).tiny
        scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=varies)
        self.load_state_dict({"mean": mean, "scale": scale}, strict=False)

    def forward(self, x: Tensor, lengths: np.ndarray) -> Tensor:
        """Sequences (B, T, F) of which the first `lengths` (B,) frames count → logits (B, classes).

        What is past a sequence's end makes no difference. ValueError for other shapes, and for
        lengths outside 1 to T.
        """
        if x.ndim != 3 or x.shape[2] != self.features:
            raise ValueError(f"x: expected sequences (B, T, {self.features}), got shape {x.shape}")
        batch, steps, _ = x.shape
        lengths = np.asarray(lengths)
        if lengths.shape != (batch,) or lengths.dtype.kind not in "iu":
            raise ValueError(f"lengths: expected {batch} integers, got {lengths.dtype} of shape "
                             f"{lengths.shape}")
        if batch and not 1 <= lengths.min() <= lengths.max() <= steps:
            raise ValueError(f"lengths: expected values in [1, {steps}], got {lengths.min()} to "
                             f"{lengths.max()}")
        x = (x - self.mean) * self.scale
        step, ends = np.arange(steps), lengths[:, None]
        # The mean of the frames that count, or the state after the last of them, which what comes
        # later cannot reach: either way a weighted sum over time.
        if self.recurrent is None:
            shares = (step < ends) / ends
        else:
            x, shares = self.recurrent(x), step == ends - 1
        shares = Tensor(shares[:, :, None], device=x.device, dtype=x.dtype)
        return self.fc((x * shares).sum(axis=1))

    def describe(self) -> str:
        return f"{self.kind}, {self.features}, {self.classes}"
