"""What the recurrent residual network is compared with."""

from __future__ import annotations

import numpy as np

from tensorlite import global_avg_pool
from tensorlite.tensor import Tensor

from .resnet import VideoResNet


class AveragePooling(VideoResNet):
    """The paper's baseline: features of single frames, averaged over time, and a linear classifier.

    The order of the frames of a chunk makes no difference to it. Options as of `ResNet`, and
    context: frames of a chunk.
    """

    def __init__(self, depth: int, classes: int, context: int = 2, version: str = "v1",
                 width: int = 64, rng: np.random.Generator | int | None = None,
                 truncate: str | None = None, channels: int = 3) -> None:
        if not isinstance(context, int) or context < 1:
            raise ValueError(f"context: expected an integer >= 1, got {context!r}")
        super().__init__(depth, classes, version, width, rng, truncate, channels)
        self.context = context

    def forward(self, x: Tensor, after: str | None = None) -> Tensor:
        """Chunks (B, T, H, W, C) → logits (B, classes); see `VideoResNet` for `after`."""
        stages, batch = self.remaining(x, after), x.shape[0]
        x = x.reshape(-1, *x.shape[2:])
        for name in stages:
            x = self.stage(name, x)
        x = global_avg_pool(x).reshape(batch, self.context, -1).mean(axis=1)
        return self.fc(x)


def average_pooling(depth: int = 50, *, classes: int, **options) -> AveragePooling:
    """The average-pooling baseline; `options` as of `AveragePooling`."""
    return AveragePooling(depth, classes, **options)
