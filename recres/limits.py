"""How much is taken of a file from outside, stated once: more is refused before memory is taken.

Every command takes `--limit NAME=N`. In a program they are plain numbers, to be set before reading:

    import recres.limits
    recres.limits.VIDEO_FRAMES = 10_000_000

Those of files of arrays (.npz, .pth, .safetensors, .h5) are the engine's: `tensorlite.io.limits`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from tensorlite.io import limits as of_arrays

VIDEO_FRAMES = 1_000_000  # of a file: eleven hours at 25 a second
VIDEO_PIXELS = 8192 * 4320  # of a frame: 8K in its wider form
VIDEO_BYTES = 4 << 30  # of the decoded frames of a video that are in memory together
VIDEO_FILE_BYTES = 64 << 30  # of a video file: all of it is read to tell it from others
TEXT_BYTES = 64 << 20  # of a list or a JSON file: ten times the lists of Kinetics-700
BATCH_BYTES = 64 << 30  # of a batch of chunks, as a run's options have it, before the network
CHUNKS = 20_000_000  # of the videos of a data set: Kinetics-700's, of one sampled frame each

_MODULES = {name: sys.modules[__name__] for name in (
    "VIDEO_FRAMES", "VIDEO_PIXELS", "VIDEO_BYTES", "VIDEO_FILE_BYTES", "TEXT_BYTES", "BATCH_BYTES",
    "CHUNKS")}
_MODULES |= {name: of_arrays for name in ("FILE_BYTES", "ROOM", "RATIO")}


def values() -> dict[str, int]:
    """All of them by name, the engine's too."""
    return {name: getattr(module, name) for name, module in _MODULES.items()}


def change(numbers: Mapping[str, int]) -> None:
    """Set those that are named. ValueError for another name, or a number below 1."""
    for name, number in numbers.items():
        if name not in _MODULES or number < 1:
            raise ValueError(f"{name}={number}: expected a number from 1 for one of "
                             f"{', '.join(_MODULES)}")
        setattr(_MODULES[name], name, number)
