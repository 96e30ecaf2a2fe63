"""Which pixels a sliding window's output sees: sizes, windows, and the phases of a strided one.

Both kinds of kernels go by it. Nothing here touches an array.
"""

from __future__ import annotations

from typing import NamedTuple

Pair = tuple[int, int]


class Window(NamedTuple):
    """Which source pixel output pixel o sees through tap t, along each axis:
    o * stride + offset + t * dilation."""

    kernel: Pair
    stride: Pair
    offset: Pair
    dilation: Pair


def output_size(
    shape: tuple[int, ...], kernel: Pair, stride: Pair, padding: Pair, dilation: Pair = (1, 1)
) -> Pair:
    """Height and width of what a window sliding over images (N,H,W,C) makes."""
    height, width = (
        (shape[1 + i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    )
    return height, width


class Phase(NamedTuple):
    """Along one axis: the input positions of one phase, and the taps they see, in source order.

    Position number m reads the gradient at m + offset + t * dilation through taps[t].
    """

    positions: slice
    taps: list[int]
    offset: int
    dilation: int


def phases(size: int, kernel: int, stride: int, padding: int, dilation: int) -> list[Phase]:
    phases = []
    for phase in range(stride):
        start = (phase - padding) % stride
        taps = [t for t in reversed(range(kernel)) if (t * dilation - phase) % stride == 0]
        first = (start + padding - phase) // stride
        offset = first - (taps[0] * dilation - phase) // stride if taps else 0
        step = (taps[0] - taps[1]) * dilation // stride if len(taps) > 1 else 1
        phases.append(Phase(slice(start, size, stride), taps, offset, step))
    return phases
