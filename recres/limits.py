"""How much is taken of a file from outside, stated once: more is refused before memory is taken.

Each is a plain number, to be set before reading by who knows better:

    import recres.limits
    recres.limits.VIDEO_FRAMES = 10_000_000

Those of files of arrays (.npz, .pth, .safetensors, .h5) are the engine's: `tensorlite.io.limits`.
"""

from __future__ import annotations

VIDEO_FRAMES = 1_000_000  # of a file: eleven hours at 25 a second
VIDEO_PIXELS = 8192 * 4320  # of a frame: 8K in its wider form
VIDEO_BYTES = 4 << 30  # of the decoded frames of a video that are in memory together
TEXT_BYTES = 64 << 20  # of a list or a JSON file: ten times the lists of Kinetics-700
