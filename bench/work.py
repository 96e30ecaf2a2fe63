"""What a row has to do at least: floating-point operations, and bytes between card and memory.

Operations are the multiplications and additions of convolutions and matrix products; whatever comes
between these is nothing beside them. Bytes are those of a perfect program: each array that a layer
cannot do without is moved once, and in a network nothing but what goes into and comes out of its
convolutions is. Divided by a measured time they are rates, to be held beside those of a plain copy
and a plain product. (What fits into the card's cache need not be moved: a small layer can be above
the copy.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from bench.rows import CLASSES, Row
from recres.models.resnet import DEPTHS


class Work(NamedTuple):
    """Operations and bytes."""

    flops: int
    bytes: int


class Convolution(NamedTuple):
    """A convolution of square images, padded by half its kernel."""

    images: int
    size: int
    cin: int
    cout: int
    kernel: int
    stride: int

    @property
    def out(self) -> int:
        """Height and width of its output."""
        return (self.size + 2 * (self.kernel // 2) - self.kernel) // self.stride + 1

    def work(self, phase: str, needs_dx: bool, itemsize: int) -> Work:
        """Of a phase of `Row`; needs_dx: whether its input has a gradient."""
        x = self.images * self.size**2 * self.cin
        weight = self.kernel**2 * self.cin * self.cout
        y = self.images * self.out**2 * self.cout
        product = 2 * y * self.kernel**2 * self.cin
        forward = (product, x + weight + y)
        # The weight's gradient is written; the input's is, and needs the weight.
        backward = (2 * product, 2 * x + 2 * weight + y) if needs_dx else (product, x + weight + y)
        return add(phase, forward, backward, itemsize)


def add(phase: str, forward: tuple[int, int], backward: tuple[int, int], itemsize: int) -> Work:
    """A phase's work from operations and elements of both directions."""
    parts = {"forward": [forward], "backward": [backward], "both": [forward, backward]}[phase]
    return Work(sum(part[0] for part in parts), itemsize * sum(part[1] for part in parts))


def work(row: Row) -> Work:
    """The least that one run of the row has to do."""
    itemsize = 2 if row.activations == "float16" else 4
    if row.job == "conv":
        n, size, _, cin = row.shapes["x"]
        kernel, _, _, cout = row.shapes["weight"]
        layer = Convolution(n, size, cin, cout, kernel, row.options["stride"])
        return layer.work(row.phase, row.options["needs_dx"], itemsize)
    if row.job == "norm_relu":
        x = math.prod(row.shapes["x"])  # read, and y written; read with grad, and dx written
        return add(row.phase, (0, 2 * x), (0, 3 * x), itemsize)
    if row.job == "gru":
        return gru(row, itemsize)
    phase = "forward" if row.phase == "infer" else "both"
    layers = [layer.work(phase, layer.cin > 3, itemsize) for layer in convolutions(row)]
    channels = 8 * row.options["width"] * (1 if row.options["depth"] < 50 else 4)
    head = 2 * row.shapes["x"][0] * channels * CLASSES * (1 if phase == "forward" else 3)
    return Work(sum(layer.flops for layer in layers) + head, sum(layer.bytes for layer in layers))


def gru(row: Row, itemsize: int) -> Work:
    """Of a GRU whose input needs no gradient."""
    (n, steps, features), hidden = row.shapes["x"], row.shapes["w_hh"][0]
    ih, hh = (n * steps * 2 * width * 3 * hidden for width in (features, hidden))
    x, y = n * steps * features, n * steps * hidden
    weights = 3 * hidden * (features + hidden)
    # Back, each weight's gradient is a product and the step before gets one of w_hh.
    return add(row.phase, (ih + hh, x + weights + y),
               (ih + 2 * hh, x + 2 * y + weights + 3 * hidden * hidden), itemsize)


def convolutions(row: Row) -> Iterator[Convolution]:
    """Those of a row's network, one by one."""
    depth, width, context = (row.options[name] for name in ("depth", "width", "context"))
    shape = row.shapes["x"]
    chunks, size, frames = shape[0], shape[-2], context or 1
    stem = Convolution(chunks * frames, size, 3, width, 7, 2)
    yield stem
    size, cin = (stem.out + 1) // 2, width  # after the pooling
    left = sum(DEPTHS[depth])  # blocks that are still to come
    for stage, count in enumerate(DEPTHS[depth]):
        planes = width * 2**stage
        cout = planes * (1 if depth < 50 else 4)
        for i in range(count):
            stride = 2 if stage and i == 0 else 1
            before = frames
            if left < frames:  # a recurrent block, whose first frame ends in it
                frames -= 1
            if stride > 1 or cin != cout:
                yield Convolution(chunks * before, size, cin, cout, 1, stride)
            images = chunks * frames
            if depth < 50:
                branch = [Convolution(images, size, cin, planes, 3, stride)]
                branch.append(Convolution(images, branch[0].out, planes, planes, 3, 1))
            else:
                branch = [Convolution(images, size, cin, planes, 1, 1),
                          Convolution(images, size, planes, planes, 3, stride)]
                branch.append(Convolution(images, branch[1].out, planes, cout, 1, 1))
            yield from branch
            size, cin, left = branch[-1].out, cout, left - 1
