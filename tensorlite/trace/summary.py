"""What is kept of an array: statistics of all of it, the values of a small one, of a large one a
histogram and a few small planes to look at. The cost is a handful of passes over the array.
"""

from __future__ import annotations

import base64
import math
import sys

import numpy as np

from tensorlite.device import Array, to_device

from .tape import Picture, Summary

WHOLE = 256  # elements up to which all values are kept
SIDE = 28  # pixels of a plane's longer side, at most
SAMPLE = 4096  # elements that a histogram is made of, at most
BINS = 24
PLANES = 8  # frames, or images, that a picture shows
LEAST = 1e-30  # mean square below which float32 may have lost some: gradients can be that small
BLOCK = 1024  # elements whose squares are added up in the array's own precision


@np.errstate(all="ignore")  # what is looked at may overflow: no error of the program's
def summarise(array: Array, labels: np.ndarray | None = None, frames: int | None = None,
              weights: bool = False) -> Summary:
    """The summary of `array` as it is now.

    labels: the frame of each part of the array, of the shape of its leading axes, -1 for none.
    frames: how many frames there are in all. weights: whether it holds a layer's weights, which are
    not looked at as images.
    """
    data = to_device(array, "cpu")
    result = Summary([int(n) for n in data.shape], str(data.dtype), 0.0, None, None, None)
    if data.dtype.kind not in "f":
        data = data.astype(np.float64)
    elif data.dtype.itemsize not in (4, 8):
        data = data.astype(np.float32 if data.dtype.itemsize < 4 else np.float64)
    if data.size:
        _statistics(result, data, labels, frames)
    if data.size <= WHOLE:
        result.values = [finite(v) for v in data.reshape(-1).tolist()]
    else:
        result.histogram = _histogram(data)
        result.picture = picture_of(data, labels, weights)
    return result


def finite(value: float) -> float | None:
    """`value`, or None for what JSON has no word for."""
    return value if math.isfinite(value) else None


def _statistics(result: Summary, data: np.ndarray, labels: np.ndarray | None,
                frames: int | None) -> None:
    axes = 0 if labels is None else labels.ndim
    squares, unit = _squares(data, axes), 1.0
    total, mean = float(squares.sum()), float(
        data.mean(dtype=np.float64 if data.size <= WHOLE else data.dtype))
    if math.isfinite(total + mean) and total > LEAST * data.size:
        result.min, result.max, result.mean = float(data.min()), float(data.max()), mean
    else:  # something is not finite, or squares are too large or too small to be numbers
        wide = data.astype(np.float64)
        good = np.isfinite(wide)
        kept = wide[good]
        result.nonfinite = int(wide.size - kept.size)
        if kept.size:
            result.min, result.max = float(kept.min()), float(kept.max())
            unit = max(-result.min, result.max) or 1.0
            result.mean = float((kept / unit).mean()) * unit
        squares = _squares(np.where(good, wide, 0.0) / unit, axes)
        total = float(squares.sum())
    result.norm = _norm(total, unit)
    if labels is not None and frames is not None:
        by_frame = [squares[labels == t] for t in range(frames)]
        result.frame_norms = [_norm(float(part.sum()), unit) if part.size else None
                              for part in by_frame]


def _norm(total: float, unit: float) -> float:
    """The norm whose square is `total` in units of `unit`²; the largest number if it is larger."""
    return min(math.sqrt(total) * unit, sys.float_info.max)


def _squares(data: np.ndarray, axes: int) -> np.ndarray:
    """The sum of squares over all but the first `axes` axes, in float64."""
    lead = data.shape[:axes]
    rows = data.reshape(math.prod(lead), -1)
    with np.errstate(over="ignore"):
        if rows.shape[1] % BLOCK == 0 and data.dtype != np.float64:
            blocks = rows.reshape(-1, BLOCK)
            sums = np.einsum("ij,ij->i", blocks, blocks).astype(np.float64)
            return sums.reshape(*lead, -1).sum(axis=-1)
        return np.einsum("ij,ij->i", rows, rows, dtype=np.float64).reshape(lead)


def _histogram(data: np.ndarray) -> dict[str, object] | None:
    flat = data.reshape(-1)
    step = -(-flat.size // SAMPLE)
    sample = flat[::step].astype(np.float64)
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        return None
    low, high = float(sample.min()), float(sample.max())
    width = high - low
    place = (sample - low) * (BINS / width) if width > 0 and math.isfinite(width) else sample * 0.0
    counts = np.bincount(np.minimum(place.astype(np.int64), BINS - 1), minlength=BINS)
    return {"low": low, "high": high, "counts": counts.tolist(), "of": int(sample.size)}


def picture_of(data: np.ndarray, labels: np.ndarray | None, weights: bool) -> Picture | None:
    """Small planes of an array of feature maps (…, H, W, C) or of a matrix."""
    if weights and data.ndim == 4:
        data = data.reshape(-1, data.shape[3])
    if data.ndim == 3:
        data = data[0]
    if data.ndim == 2:
        plane, how = _shrink(data[:, :, None])
        return Picture("matrix", plane.shape[0], plane.shape[1], how,
                       [_plane("", None, plane[:, :, 0])])
    if data.ndim not in (4, 5):
        return None
    images = data.reshape(-1, *data.shape[-3:])
    frames = np.full(len(images), -1)
    if labels is not None and labels.size in (len(images), 1):
        frames = np.broadcast_to(labels.reshape(-1), len(images))
    count = _first_chunk(frames)
    colour = data.shape[-1] == 3
    words = "" if colour or data.shape[-1] == 1 else f"mean over {data.shape[-1]} channels"
    planes: list[dict[str, object]] = []
    for image, frame in zip(images[:count], frames[:count], strict=True):
        plane, how = _shrink(image if colour else image.mean(axis=-1, keepdims=True))
        title = f"frame {frame}" if frame >= 0 else f"image {len(planes)}"
        planes.append(_plane(title, int(frame) if frame >= 0 else None,
                             plane if colour else plane[:, :, 0]))
    if count < len(images):
        words = "; ".join(filter(None, [f"the first {count} of {len(images)} images", words]))
    return Picture("rgb" if colour else "maps", plane.shape[0], plane.shape[1],
                   "; ".join(filter(None, [words, how])), planes)


def _first_chunk(frames: np.ndarray) -> int:
    """How many of the first images to show: those of the first chunk, as long as time goes on."""
    count = 1
    while count < min(len(frames), PLANES) and (frames[count] > frames[count - 1]
                                                or frames[count] == frames[count - 1] == -1):
        count += 1
    return count


def _shrink(plane: np.ndarray) -> tuple[np.ndarray, str]:
    """(H, W, C) as means over equal squares of pixels, to at most SIDE pixels; and how.

    What is left over of the last row or column of squares is left out.
    """
    height, width = plane.shape[:2]
    by = -(-max(height, width) // SIDE)
    down, along = min(by, height), min(by, width)
    rows, columns = height // down, width // along
    if down == along == 1:
        return plane, f"{height} x {width}"
    kept = plane[: rows * down, : columns * along]
    small = kept.reshape(rows, down, columns, along, -1).mean(axis=(1, 3))
    return small, f"{height} x {width} as means over {down} x {along}"


def _plane(title: str, frame: int | None, values: np.ndarray) -> dict[str, object]:
    data = np.ascontiguousarray(values, dtype="<f4").tobytes()
    return {"title": title, "frame": frame, "data": base64.b64encode(data).decode("ascii")}
