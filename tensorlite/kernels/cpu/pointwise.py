"""The gradients of 1x1 convolutions on the CPU, strided or not, in one walk over the images.

For a band of lines the gradient above is formed once, in the cache, and serves both products: with
the weights for the gradient to the input, with the input for the gradient to the weights.
"""

from __future__ import annotations

import numpy as np

from tensorlite.kernels.cpu import memory
from tensorlite.kernels.cpu.bands import Band, Finish, Pair, Source, add_in_order
from tensorlite.kernels.cpu.threads import bands, parallel_for, scratch

# Bytes a band's input and gradient may take, and the least number of its pixels: each band adds to
# the whole gradient of the weights. 2 MB is within 3 % of the best on Zen 3 from 64 to 2048
# channels.
WORKSPACE = 1 << 21
MIN_PIXELS = 256
GRAIN_FLOPS = 1 << 21  # multiply-adds below which a second thread costs more than it brings


def backward(
    source: Source | None,
    above: Source,
    weight: np.ndarray,
    dx: np.ndarray | None,
    stride: Pair,
    finish: Finish | None,
) -> tuple[list, np.ndarray | None]:
    """The gradients from `above` (N,OH,OW,D): to the input, into dx (N,H,W,C) unless that is None,
    and to the weights (C,D), unless source is None. Source is the input's pixels that the kernel
    sees, (N,OH,OW,C), and finish gets the gradient to those. Returns what it left, and dw.
    """
    channels, outputs = weight.shape
    count, height, width, _ = above.shape
    dtype = above.array.dtype
    pixels = max(MIN_PIXELS, WORKSPACE // (dtype.itemsize * max(1, channels + outputs)))
    limit = max(1, pixels // max(1, width))

    def body(start: int, stop: int, worker: int) -> tuple[list, np.ndarray]:
        left: list = []
        total = memory.empty(weight.shape if source is not None else (0, 0), dtype)
        product = total
        for band in bands(start, stop, height, limit):
            gradients = above.rows(band, "gradients")
            if dx is not None:
                left += _grad_input(gradients, weight, dx, band, stride, finish)
            if source is not None:
                np.matmul(source.rows(band, "pixels").T, gradients, out=product)
                if product is not total:
                    total += product
                product = scratch("product", weight.shape, dtype)
        return left, total

    work = width * channels * outputs * (2 if dx is not None and source is not None else 1)
    parts = parallel_for(count * height, body, grain=1 + GRAIN_FLOPS // max(1, work))
    left = [item for part in parts for item in part[0]]
    if source is None:
        return left, None
    return left, add_in_order([part[1] for part in parts], weight.shape, dtype)


def _grad_input(
    gradients: np.ndarray,
    weight: np.ndarray,
    dx: np.ndarray,
    band: Band,
    stride: Pair,
    finish: Finish | None,
) -> list:
    """Fill the lines of dx that belong to a band of outputs; what finish left."""
    shape = (len(gradients), len(weight))
    lines = dx[band[0] : band[1], band[2] * stride[0] : band[3] * stride[0]]
    direct = stride == (1, 1)
    rows = lines.reshape(shape) if direct else scratch("rows", shape, dx.dtype)
    np.matmul(gradients, weight.T, out=rows)
    left = [] if finish is None else finish(rows, band)
    if not direct:
        lines[...] = 0
        seen = lines[:, :: stride[0], :: stride[1]]
        seen[...] = rows.reshape(seen.shape)
    return left
