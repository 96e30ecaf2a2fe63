"""How much is taken of a file from outside, stated once: more is refused before memory is taken.

Every command takes `--limit NAME=N`, and `--limit list` prints them. In a program they are plain
numbers, to be set before reading:

    import recres.limits
    recres.limits.VIDEO_FRAMES = 10_000_000

Those of files of arrays (.npz, .pth, .safetensors, .h5) are the engine's: `tensorlite.io.limits`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType

from tensorlite.io import limits as of_arrays

VIDEO_FRAMES = 1_000_000
VIDEO_PIXELS = 8192 * 4320
VIDEO_BYTES = 4 << 30
VIDEO_FILE_BYTES = 64 << 30
TEXT_BYTES = 64 << 20
BATCH_BYTES = 64 << 30
CHUNKS = 20_000_000

MEANINGS = {
    "VIDEO_FRAMES": "frames of a video file; eleven hours at 25 a second",
    "VIDEO_PIXELS": "pixels of a video's frame; 8K in its wider form",
    "VIDEO_BYTES": "bytes of the decoded frames of a video that are in memory together",
    "VIDEO_FILE_BYTES": "bytes of a video file, all of which is read to tell it from others",
    "TEXT_BYTES": "bytes of a list or a JSON file; ten times the lists of Kinetics-700",
    "BATCH_BYTES": "bytes of a batch of chunks, as a run's options have it, before the network",
    "CHUNKS": "chunks of a data set's videos; Kinetics-700's, of one sampled frame each",
    "FILE_BYTES": "bytes of a file of arrays, all of which is read",
    "ROOM": "bytes that a file of arrays may unpack to, however small it is",
    "RATIO": "how many times larger than itself it may unpack to beyond that; real weights under 2",
}
_OF_ARRAYS = ("FILE_BYTES", "ROOM", "RATIO")


def values() -> dict[str, int]:
    """All of them by name, the engine's too."""
    return {name: getattr(_module(name), name) for name in MEANINGS}


def change(numbers: Mapping[str, int]) -> None:
    """Set those that are named. ValueError for another name, or a number below 1."""
    for name, number in numbers.items():
        if name not in MEANINGS or number < 1:
            raise ValueError(f"{name}={number}: expected a number from 1 for one of "
                             f"{', '.join(MEANINGS)}")
        setattr(_module(name), name, number)


def _module(name: str) -> ModuleType:
    """Where a limit is set."""
    return of_arrays if name in _OF_ARRAYS else sys.modules[__name__]
