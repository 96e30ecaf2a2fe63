"""What part of the frames the network sees, and in which numbers.

A `View` is a square of the source frame, mirrored or not. It is drawn once per chunk, so that all
frames of a chunk move together and the difference of two frames is motion, not augmentation.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from recres.video import flow


class View(NamedTuple):
    """A square of `side` pixels of the source frame, its corner at (top, left); flip mirrors it."""

    top: int
    left: int
    side: int
    flip: bool = False


def training_view(
    height: int,
    width: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (1.0, 1.25),
    flip: bool = True,
) -> View:
    """A random square of a frame of height x width, mirrored half of the time unless flip=False.

    It is the crop that is left when the shorter side is first resized to `scale` times the crop's
    size, the scale drawn uniformly from the range given (at least 1). The place is uniform.
    """
    low, high = scale
    if not 1 <= low <= high:
        raise ValueError(f"scale is {scale}, expected 1 <= low <= high")
    side = _side(height, width, rng.uniform(low, high))
    top = int(rng.integers(height - side + 1))
    left = int(rng.integers(width - side + 1))
    mirrored = bool(rng.integers(2))  # always drawn: the option leaves the other draws alone
    return View(top, left, side, flip and mirrored)


def evaluation_view(height: int, width: int, scale: float = 256 / 224) -> View:
    """The centre square; by default the 224 x 224 centre of a frame resized to 256."""
    if scale < 1:
        raise ValueError(f"scale is {scale}, expected at least 1")
    side = _side(height, width, scale)
    return View((height - side) // 2, (width - side) // 2, side)


def _side(height: int, width: int, scale: float) -> int:
    return max(1, round(min(height, width) / scale))


def apply(frames: np.ndarray, view: View, size: int, out: np.ndarray | None = None,
          is_flow: bool = False) -> np.ndarray:
    """The view of every frame, resized: (T, H, W, C) uint8 -> (T, size, size, C) uint8.

    Cropping comes first and only the crop is resized: linearly, or by area where it shrinks.
    `out` may be the place in a batch where the chunk belongs. is_flow: the channels are x and y of
    fields in turn, and what moves to the left moves to the right in the mirror. Resizing leaves
    the vectors alone: they stay pixels of the video. Raises ValueError when the view leaves the
    frame.
    """
    top, left, side, flip = view
    height, width = frames.shape[1:3]
    if not (0 <= top <= height - side and 0 <= left <= width - side and side > 0):
        raise ValueError(f"view {tuple(view)} does not lie in a frame of {height} x {width}")
    shape = (len(frames), size, size, frames.shape[3])
    if out is None:
        out = np.empty(shape, np.uint8)
    elif out.shape != shape or out.dtype != np.uint8:
        raise ValueError(f"out is {out.dtype} {out.shape}, expected uint8 {shape}")
    interpolation = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    for frame, target in zip(frames, out, strict=True):
        crop = frame[top : top + side, left : left + side]
        for i in range(0, shape[3], 4):  # by area, OpenCV resizes at most 4 channels
            part = cv2.resize(crop[..., i : i + 4], (size, size), interpolation=interpolation)
            shown = cv2.flip(part, 1) if flip else part
            target[..., i : i + 4] = shown.reshape(size, size, -1)
        if flip and is_flow:
            target[..., ::2] = -target[..., ::2]  # of uint8: 256 minus the value; 128 stays
    return out


def normalise(frames: np.ndarray, convention: str, out: np.ndarray | None = None) -> np.ndarray:
    """Frames as a pre-trained network takes them: (…, 3) uint8 RGB -> float32, C-contiguous.

    `torch`: RGB in [0, 1] minus ImageNet's mean, divided by its standard deviation (torchvision,
    timm). `caffe`: BGR in 0–255 minus the mean (the original ResNet, Keras). `flow`: stacks
    (…, 2 L) in pixels a frame, whose root mean square was 1.06 in the median of 24 UCF-101 clips:
    about the range of `torch`. `out`, C-contiguous, may be where they are to be written. Raises
    ValueError for another convention, TypeError for frames that are not uint8.
    """
    if convention not in _TABLES:
        raise ValueError(f"convention is {convention!r}, expected one of {', '.join(_TABLES)}")
    if frames.dtype != np.uint8:
        raise TypeError(f"frames are {frames.dtype}, expected uint8")
    channels = frames.shape[-1]
    if convention == "flow" and channels % 2:
        raise ValueError(f"frames are {frames.shape}, expected (..., 2 L) of flow")
    if convention != "flow" and channels != 3:
        raise ValueError(f"frames are {frames.shape}, expected (..., 3)")
    if out is None:
        out = np.empty(frames.shape, np.float32)
    elif out.shape != frames.shape or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise ValueError(f"out is {out.dtype} {out.shape}, expected contiguous float32 "
                         f"{frames.shape}")
    if frames.size == 0:
        return out
    # A table look-up is one pass and exact; NumPy's multiply and add took 13 times as long
    # (32 frames of 224 x 224, 2 cores).
    rows: np.ndarray = np.ascontiguousarray(frames).reshape(-1, frames.shape[-2], channels)
    if convention == "caffe":
        rows = cv2.cvtColor(rows, cv2.COLOR_RGB2BGR)
    cv2.LUT(rows, _TABLES[convention], dst=out.reshape(rows.shape))
    return out


def _table(scale: float, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """(1, 256, channels) float32: (value · scale - mean) / std for each value of each channel."""
    values = np.arange(256.0)[:, None] * scale
    return ((values - np.array(mean)) / np.array(std)).astype(np.float32)[None]


_TABLES = {
    "torch": _table(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "caffe": _table(1.0, (103.939, 116.779, 123.68), (1.0, 1.0, 1.0)),
    "flow": _table(1.0, (flow.NO_MOTION,), (1 / flow.PIXELS,)),  # one table for all channels
}
