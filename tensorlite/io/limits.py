"""How much is taken of a file of arrays: more is refused before memory is taken.

Plain numbers, to be set before reading by who knows better (`--limit NAME=N` of the commands):

    import tensorlite.io.limits
    tensorlite.io.limits.FILE_BYTES = 64 << 30
"""

from __future__ import annotations

FILE_BYTES = 16 << 30  # of a file of arrays, all of which is read
ROOM = 256 << 20  # bytes that any file may unpack to, however small
RATIO = 100  # … and how much larger than itself a larger one may get; real weights stay under 2
