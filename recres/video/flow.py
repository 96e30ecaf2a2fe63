"""Optical flow of a video, in stacks: the motion stream of two-stream networks.

A stack shows the motion that follows a sampled frame: the L fields of displacement between the
L + 1 frames from there on, as 2 L channels, x and y of each field in turn (Simonyan and Zisserman,
2014). Unlike theirs, no field's mean is subtracted, as in temporal segment networks (Wang et al.,
2016): motion of the camera stays.
"""

from __future__ import annotations

import math
import os
from typing import Any

import cv2
import numpy as np

from recres import limits
from recres.video.decode import VideoError, iter_frames
from recres.video.sample import sample_indices

# Displacements are cut off at 20 pixels a frame, the bound of temporal segment networks, whatever
# the size of the frame. -20 … 20 becomes 1 … 255 in steps of 0.157 pixels; no motion is 128, so
# that the opposite of a value is 256 minus the value.
BOUND = 20
NO_MOTION = 128
PIXELS = BOUND / 127  # of displacement, a step of the value

_LEAST = 16  # pixels; frames of less than the 8 of a patch end the process in OpenCV 5.0


def sample_flow(path: str | os.PathLike[str], step: int, context: int, length: int,
                backwards: bool = False) -> np.ndarray:
    """A stack of `length` fields for each sampled frame: (n, H, W, 2 · length) uint8, n >= context.

    Which frames are sampled is said by `sample.sample_indices`. Where fewer than `length` frames
    follow, the stack begins earlier, so that it ends with the video; in a video of fewer fields
    than that the last one is repeated, and a single frame does not move. backwards: the same of
    the video played backwards, at the same frames. Raises VideoError as `decode.read_frames`, and
    for frames that are too small.
    """
    if length < 1:
        raise ValueError(f"length is {length}, expected at least 1")
    # How many frames there are has to be known first: decoding is 20 times as fast as the flow.
    total, (height, width) = _measure(path)
    fields = min(length, total - 1)
    indices = sample_indices(total, step, context)
    # The stack at frame i is of the fields begin … begin + fields - 1, field k leading from frame
    # k to k + 1, or, backwards, from k + 1 to k.
    if backwards:
        begins = [max(i - fields, 0) for i in reversed(indices)]
    else:
        begins = [min(i, total - 1 - fields) for i in indices]
    shape = (len(begins), height, width, 2 * length)
    if math.prod(shape) > limits.VIDEO_BYTES:
        raise VideoError(path, f"too large: {shape[0]} stacks of flow have {math.prod(shape)} "
                               f"bytes, more than the {limits.VIDEO_BYTES} of "
                               "recres.limits.VIDEO_BYTES")
    stacks = np.full(shape, NO_MOTION, np.uint8)
    method, before = _method(height, width), None
    for index, frame in iter_frames(path):
        grey, k = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), index - 1
        having = [i for i, begin in enumerate(begins) if begin <= k < begin + fields]
        if having:  # computed once, however many stacks it is in
            pair = (grey, before) if backwards else (before, grey)
            field = quantise(method.calc(*pair, None))
        for i in having:
            place = k - begins[i]
            place = fields - 1 - place if backwards else place
            stacks[i, :, :, 2 * place : 2 * place + 2] = field
        before = grey
    for place in range(fields, length) if fields else ():
        stacks[..., 2 * place : 2 * place + 2] = stacks[..., 2 * fields - 2 : 2 * fields]
    return stacks


def count_flow(path: str | os.PathLike[str], step: int, context: int) -> int:
    """How many stacks `sample_flow` gives, or its VideoError, without computing any flow."""
    return len(sample_indices(_measure(path)[0], step, context))


def quantise(flow: np.ndarray) -> np.ndarray:
    """Displacements in pixels as uint8: see `BOUND`."""
    return np.rint(np.clip(flow, -BOUND, BOUND) / PIXELS + NO_MOTION).astype(np.uint8)


def _measure(path: str | os.PathLike[str]) -> tuple[int, tuple[int, int]]:
    """A video's number of frames and their height and width."""
    total, size = 0, (0, 0)
    for index, frame in iter_frames(path):
        total, size = index + 1, frame.shape[:2]
    if min(size) < _LEAST:
        raise VideoError(path, f"frames of {size[1]}x{size[0]}, optical flow needs at least "
                               f"{_LEAST}x{_LEAST}")
    return total, size


def _method(height: int, width: int) -> Any:
    """Dense inverse search (Kroeger et al., 2016): OpenCV's preset "fast", but down to half
    resolution, and to the full one for small frames, where a person has few pixels.

    Frames of UCF-101, 240 x 320, one core: 135 pairs a second. In two clips of much motion the
    next frame moved back differs from a frame by 3.6 grey levels on average. The preset as it is:
    430 and 5.2; "medium": 100 and 3.8; Farnebäck with the values of OpenCV's tutorial: 60 and 4.1.
    The result does not depend on the number of threads.
    """
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    method.setFinestScale(1 if min(height, width) >= 160 else 0)
    return method
