"""How the frames of chunks line up where some are left out, for both kinds of kernels."""

from __future__ import annotations

from tensorlite.device import Array


def live_frames(frames: int, y_shape: tuple[int, ...], x_shape: tuple[int, ...]) -> tuple[int, int]:
    """Frames a chunk has left in y and in x; a shorter y lacks its first, a shorter x its last."""
    if y_shape[0] == x_shape[0]:
        return frames, frames
    if y_shape[0] * frames == x_shape[0] * (frames - 1):
        return frames - 1, frames
    return frames, frames - 1


def clear_unused(array: Array, chunks: int, times: int, offset: int) -> None:
    """Zero the frames of array (B T', ...) that reach no frame of chunks of `times` frames."""
    frames = array.reshape(chunks, -1, *array.shape[1:])
    if offset < 0:
        frames[:, :-offset] = 0
    if frames.shape[1] + offset > times:
        frames[:, max(0, times - offset) :] = 0
