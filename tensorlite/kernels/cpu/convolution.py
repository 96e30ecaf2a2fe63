"""Two-dimensional convolution on the CPU: forward, gradient to the input, gradient to the weights.

All three walk the output in bands of lines. For a band the input pixels under every tap of the
kernel are gathered into a matrix that fits the cache (`_Columns`), and one matrix product per
band does the arithmetic: no copy of a whole layer exists. Small images share a band, so tiny
layers are not ruled by Python's overhead. Each worker owns a contiguous run of lines.

A band's input may be formed while it is gathered (`_Source`: a deferred activation, or a gradient
seen through a batch norm), and its output finished while it is in the cache (bias, statistics,
mask), which is what fused operations use.

The gradient to the input is itself a correlation of the output's gradient: with stride s, the
input pixels of one phase (position modulo s) see a fixed subset of the taps, and each phase is a
stride-1 correlation with that subset, flipped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tensorlite.kernels.contract import GradSums, Moments, NormGrad, Prologue
from tensorlite.kernels.cpu.elementwise import keep_positive, rectify, wide, widen
from tensorlite.kernels.cpu.normalisation import (
    Tile,
    merge_grad_sums,
    merge_moments,
    tile_grad_sums,
    tile_moments,
    wide_norm_grad,
)
from tensorlite.kernels.cpu.threads import bands, parallel_for, scratch

Pair = tuple[int, int]
Band = tuple[int, int, int, int]  # first image, last image + 1, first line, last line + 1

# Bytes a band's matrices may take. Measured on Zen 3 (1 MB of L2, 32 MB of L3): 2 MB beats 1 MB by
# up to 5 % on small layers, whose bands are then fewer, and equals it on large ones.
WORKSPACE = 1 << 21
THIN_OUTPUTS, THIN_INPUTS = 32, 4  # channels up to which a product is thin (see _Columns)
MIN_PIXELS = 256  # fewer rows and a product spends its time reading the weights
GRAIN_FLOPS = 1 << 21  # multiply-adds below which a second thread costs more than it brings


class _Window(NamedTuple):
    """Which source pixel output pixel o sees through tap t, along each axis:
    o * stride + offset + t * dilation."""

    kernel: Pair
    stride: Pair
    offset: Pair
    dilation: Pair


_POINT = _Window((1, 1), (1, 1), (0, 0), (1, 1))


class _Source:
    """An array (N,H,W,C) that is read in runs of lines, possibly transformed on the way."""

    def __init__(
        self,
        array: np.ndarray,
        prologue: Prologue | None = None,
        norm_grad: NormGrad | None = None,
    ) -> None:
        self.array = array
        self.shape = array.shape
        self.z = None if norm_grad is None else norm_grad.z
        self.relu = prologue is not None and prologue.relu
        vectors: tuple[np.ndarray, ...] = ()
        if prologue is not None:
            vectors = (prologue.scale, prologue.shift)
        elif norm_grad is not None:
            vectors = (norm_grad.scale, norm_grad.slope, norm_grad.offset)
        # Repeated along a line, so that NumPy's inner loop runs over pixels and channels.
        self.vectors = [np.tile(np.asarray(v, array.dtype), array.shape[2]) for v in vectors]

    @property
    def plain(self) -> bool:
        return not self.vectors

    def folded(self) -> _Source:
        """The same with all images' lines as one image, for kernels that look at one pixel."""
        twin = object.__new__(_Source)
        twin.__dict__.update(self.__dict__)
        twin.array = _fold(self.array)
        twin.shape = twin.array.shape
        if self.z is not None:
            twin.z = _fold(self.z)
        return twin

    def read(self, out: np.ndarray, where: tuple[slice, ...]) -> None:
        """Fill out (images, lines, columns * C) with the pixels at where."""
        source = self.array[where].reshape(out.shape)
        vectors = [v[: out.shape[2]] for v in self.vectors]
        if self.plain:
            out[...] = source
        elif self.z is not None:
            wide_norm_grad(source, self.z[where].reshape(out.shape), out, *vectors)
        else:
            np.multiply(source, vectors[0], out=out)
            out += vectors[1]
            if self.relu:
                rectify(out, out)


def _fold(a: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(a).reshape(1, a.shape[0] * a.shape[1], *a.shape[2:])


def _inside(first: int, count: int, size: int) -> tuple[int, int, int]:
    """Of source positions first..first+count: how many lie before, the first and last inside."""
    low = min(max(first, 0), size)
    high = max(low, min(first + count, size))
    return min(low - first, count), low, high


class _Columns:
    """A source gathered band by band, and the two products taken of what was gathered.

    Usually a band becomes the matrix (groups, pixels, taps * channels). Where the product is thin
    (few output channels, or hardly any input channels) that copy would cost as much as the
    arithmetic, so only the taps along a line are gathered: (images, width, lines, kw * channels).
    Those of kh adjoining lines then lie side by side, and for each output line the matrix
    (images * width, taps * channels) is a view. That is a third of the copy for a 3x3 kernel.
    """

    def __init__(
        self, source: _Source, window: _Window, out_size: Pair, groups: int, outputs: int
    ) -> None:
        self.source, self.window, self.groups, self.outputs = source, window, groups, outputs
        self.width = out_size[1]
        self.dtype = source.array.dtype
        _, self.source_height, self.source_width, self.channels = source.shape
        self.span = self._reach(out_size[1], 1)
        self.pointwise = window.kernel == (1, 1) and window.stride == (1, 1) and groups == 1
        thin = outputs <= THIN_OUTPUTS or self.channels <= THIN_INPUTS
        self.by_line = thin and groups == 1 and window.kernel[0] > 1 and window.dilation[0] == 1
        self.taps = window.kernel[0] * window.kernel[1]

    def _reach(self, outputs: int, axis: int) -> int:
        """Source positions from the first to the last that so many outputs in a row see."""
        window = self.window
        return (
            (outputs - 1) * window.stride[axis]
            + (window.kernel[axis] - 1) * window.dilation[axis]
            + 1
        )

    def limit(self) -> int:
        """Lines a band may have: those whose matrices fit the workspace, but enough pixels."""
        gathered = self.taps
        if self.by_line:
            gathered = self.window.kernel[1] * self.window.stride[0]
        pixel = gathered * self.channels + self.outputs
        count = max(MIN_PIXELS, WORKSPACE // (pixel * self.dtype.itemsize))
        return max(1, count // max(1, self.width))

    def _pixels(self, band: Band) -> np.ndarray:
        """The band's source pixels (images, lines, span, C), zeros beyond the source's border."""
        window = self.window
        first = band[2] * window.stride[0] + window.offset[0]
        lines = self._reach(band[3] - band[2], 0)
        above, top, bottom = _inside(first, lines, self.source_height)
        before, left, right = _inside(window.offset[1], self.span, self.source_width)
        where = (slice(band[0], band[1]), slice(top, bottom), slice(left, right))
        whole = (bottom - top, right - left) == (lines, self.span)
        if self.pointwise and self.source.plain and whole:
            return self.source.array[where]
        shape = (band[1] - band[0], lines, self.span * self.channels)
        pixels = scratch("pixels", shape, self.dtype)
        below = above + bottom - top
        start, stop = before * self.channels, (before + right - left) * self.channels
        pixels[:, :above] = 0
        pixels[:, below:] = 0
        pixels[:, above:below, :start] = 0
        pixels[:, above:below, stop:] = 0
        if bottom > top and right > left:
            self.source.read(pixels[:, above:below, start:stop], where)
        return pixels.reshape(*shape[:2], self.span, self.channels)

    def matrix(self, band: Band) -> np.ndarray:
        """The gathered band, (groups, pixels, taps * channels)."""
        pixels = self._pixels(band)
        images, lines = band[1] - band[0], band[3] - band[2]
        count = images * lines * self.width
        if self.pointwise:
            return np.ascontiguousarray(pixels).reshape(1, count, self.channels)
        (kh, kw), (sh, sw), _, (dh, dw) = self.window
        channels = self.channels // self.groups
        a, b, c, d = pixels.strides
        shape = (self.groups, images, lines, self.width, kh, kw, channels)
        strides = (channels * d, a, b * sh, c * sw, b * dh, c * dw, d)
        gathered = scratch("columns", shape, self.dtype)
        gathered[...] = np.ndarray(shape, self.dtype, pixels, 0, strides)
        return gathered.reshape(self.groups, count, self.taps * channels)

    def line_matrices(self, band: Band) -> np.ndarray:
        """The gathered band, (lines, images * width, taps * channels), overlapping views."""
        pixels = self._pixels(band)
        images, lines, _, channels = pixels.shape
        kw, sw, dw = self.window.kernel[1], self.window.stride[1], self.window.dilation[1]
        a, b, c, d = pixels.strides
        shape = (images, self.width, lines, kw, channels)
        gathered = scratch("columns", shape, self.dtype)
        gathered[...] = np.ndarray(shape, self.dtype, pixels, 0, (a, c * sw, b, c * dw, d))
        _, pixel, line, _, item = gathered.strides
        return np.ndarray(
            (band[3] - band[2], images * self.width, self.taps * channels),
            self.dtype,
            gathered,
            0,
            (line * self.window.stride[0], pixel, item),
        )

    def times(self, weights: np.ndarray, band: Band, rows: np.ndarray) -> None:
        """rows (pixels, D) = gathered band times weights (groups, taps * channels, D / groups)."""
        if not self.by_line:
            if self.groups == 1:
                np.matmul(self.matrix(band)[0], weights[0], out=rows)
            else:
                np.matmul(self.matrix(band), weights, out=_by_group(rows, self.groups))
            return
        matrices = self.line_matrices(band)
        shape = (*matrices.shape[:2], rows.shape[1])
        if band[1] - band[0] == 1:
            np.matmul(matrices, weights[0], out=rows.reshape(shape))
            return
        by_line = scratch("lines", shape, self.dtype)
        np.matmul(matrices, weights[0], out=by_line)
        images = rows.reshape(band[1] - band[0], shape[0], self.width * rows.shape[1])
        images[...] = by_line.reshape(shape[0], len(images), images.shape[2]).transpose(1, 0, 2)

    def transposed_times(self, rows: np.ndarray, band: Band, product: np.ndarray) -> None:
        """product (groups, taps * channels, D / groups) = gathered band's transpose times rows."""
        if not self.by_line:
            matrix = self.matrix(band)
            np.matmul(matrix.transpose(0, 2, 1), _by_group(rows, self.groups), out=product)
            return
        matrices = self.line_matrices(band)
        shape = (*matrices.shape[:2], rows.shape[1])
        images = rows.reshape(band[1] - band[0], shape[0], self.width * rows.shape[1])
        by_line = images.transpose(1, 0, 2)
        if len(images) > 1:
            copy = scratch("lines", by_line.shape, self.dtype)
            copy[...] = by_line
            by_line = copy
        products = scratch("line products", (shape[0], *product.shape[1:]), self.dtype)
        np.matmul(matrices.transpose(0, 2, 1), by_line.reshape(shape), out=products)
        np.add.reduce(products, axis=0, out=product[0])


def _by_group(rows: np.ndarray, groups: int) -> np.ndarray:
    """(pixels, D) as (groups, pixels, D / groups)."""
    return rows.reshape(len(rows), groups, rows.shape[1] // groups).transpose(1, 0, 2)


def _band_view(a: np.ndarray, band: Band) -> np.ndarray:
    return a[band[0] : band[1], band[2] : band[3]]


def _band_rows(a: np.ndarray, band: Band) -> np.ndarray:
    """A band of a as contiguous (pixels, C): a view of a contiguous array, else a copy."""
    return np.ascontiguousarray(_band_view(a, band)).reshape(-1, a.shape[3])


def _group_matrices(weight: np.ndarray, groups: int) -> np.ndarray:
    """(kh, kw, C, groups * D) -> (groups, kh * kw * C, D)."""
    matrix = weight.reshape(-1, groups, weight.shape[3] // groups)
    return matrix.transpose(1, 0, 2) if groups > 1 else matrix.reshape(1, len(matrix), -1)


class _Job(NamedTuple):
    """One correlation: out (N,OH,OW,D) from matrices (groups, taps * C, D / groups).

    finish(rows, band) may change its band's rows, contiguous (pixels, D), before they reach out;
    what it returns is handed to the caller.
    """

    source: _Source
    matrices: np.ndarray
    out: np.ndarray
    window: _Window
    finish: Callable[[np.ndarray, Band], list] | None


def _correlate(jobs: list[_Job]) -> list:
    """Do the jobs, each worker its share of every one; join what finish returned, in order."""
    jobs = [job for job in jobs if job.out.size]
    lines = [job.out.shape[0] * job.out.shape[1] for job in jobs]
    most = max(lines, default=0)

    def share(job: _Job, start: int, stop: int) -> list:
        _, height, width, channels = job.out.shape
        groups = len(job.matrices)
        columns = _Columns(job.source, job.window, (height, width), groups, channels)
        direct = job.out.flags.c_contiguous
        left: list = []
        for band in bands(start, stop, height, columns.limit()):
            view = _band_view(job.out, band)
            shape = (view.size // channels, channels)
            rows = view.reshape(shape) if direct else scratch("rows", shape, view.dtype)
            columns.times(job.matrices, band, rows)
            if job.finish is not None:
                left += job.finish(rows, band)
            if not direct:
                view[...] = rows.reshape(view.shape)
        return left

    def body(start: int, stop: int, worker: int) -> list:
        left: list = []
        for job, count in zip(jobs, lines, strict=True):
            left += share(job, start * count // most, stop * count // most)
        return left

    # Multiply-adds a line of the longest job, all jobs together.
    work = sum(job.out.size * job.matrices.shape[1] for job in jobs) // max(1, most)
    parts = parallel_for(most, body, grain=1 + GRAIN_FLOPS // max(1, work))
    return [item for part in parts for item in part]


def _is_pointwise(window: _Window, source: _Source, out: np.ndarray) -> bool:
    """Every output pixel sees the source pixel at its own place and nothing else."""
    return window[:3] == _POINT[:3] and source.shape[:3] == out.shape[:3] and out.flags.c_contiguous


def _thin(x: np.ndarray, stride: Pair, out_size: Pair) -> np.ndarray:
    """The pixels a strided 1x1 kernel sees."""
    return x[:, :: stride[0], :: stride[1]][:, : out_size[0], : out_size[1]]


def _output_size(
    shape: tuple[int, ...], kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Pair:
    height, width = (
        (shape[1 + i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    )
    return height, width


def conv2d_forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    prologue: Prologue | None = None,
    statistics: bool = False,
) -> tuple[np.ndarray, Moments | None]:
    """Cross-correlation y[o] = sum_t x[o*stride + t*dilation - padding] w[t] + bias.

    x (N,H,W,Cin), weight (kh,kw,Cin/groups,Cout) -> y (N,OH,OW,Cout). A prologue is applied to x
    as it is read; padding is zeros after it. With statistics, the moments of y come along.
    """
    kernel: Pair = weight.shape[:2]
    size = _output_size(x.shape, kernel, stride, padding, dilation)
    y = np.empty((len(x), *size, weight.shape[3]), x.dtype)
    if kernel == (1, 1) and padding == (0, 0):
        x, stride = _thin(x, stride, size), (1, 1)
    window = _Window(kernel, stride, (-padding[0], -padding[1]), dilation)
    source, out = _Source(x, prologue=prologue), y
    if _is_pointwise(window, source, y):
        source, out = source.folded(), _fold(y)
    wide_bias = None if bias is None else widen(bias, y.dtype)

    def finish(rows: np.ndarray, band: Band) -> list[Tile]:
        if wide_bias is not None:
            for (view,) in wide(rows):
                view += wide_bias[: view.shape[1]]
        return [tile_moments(rows)] if statistics else []

    wanted = bias is not None or statistics
    matrices = _group_matrices(weight, groups)
    tiles = _correlate([_Job(source, matrices, out, window, finish if wanted else None)])
    return y, merge_moments(tiles, y.shape[3], y.dtype) if statistics else None


class _Phase(NamedTuple):
    """Along one axis: the input positions of one phase, and the taps they see, in source order.

    Position number m reads the gradient at m + offset + t * dilation through taps[t].
    """

    positions: slice
    taps: list[int]
    offset: int
    dilation: int


def _phases(size: int, kernel: int, stride: int, padding: int, dilation: int) -> list[_Phase]:
    phases = []
    for phase in range(stride):
        start = (phase - padding) % stride
        taps = [t for t in reversed(range(kernel)) if (t * dilation - phase) % stride == 0]
        first = (start + padding - phase) // stride
        offset = first - (taps[0] * dilation - phase) // stride if taps else 0
        step = (taps[0] - taps[1]) * dilation // stride if len(taps) > 1 else 1
        phases.append(_Phase(slice(start, size, stride), taps, offset, step))
    return phases


def _transposed(weight: np.ndarray, rows: list[int], columns: list[int], groups: int) -> np.ndarray:
    """The chosen taps with input and output channels exchanged: (groups, taps * D, C).

    Laid out as (groups, C, taps * D) and returned transposed, which the BLAS reads as quickly and
    which copies whole runs of D.
    """
    kh, kw, channels, total = weight.shape
    outer = total // groups
    parts = weight.reshape(kh, kw, channels, groups, outer)
    matrices = np.empty((groups, channels, len(rows), len(columns), outer), weight.dtype)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            matrices[:, :, i, j] = parts[row, column].transpose(1, 0, 2)
    return matrices.reshape(groups, channels, -1).transpose(0, 2, 1)


def conv2d_grad_input(
    grad: np.ndarray,
    weight: np.ndarray,
    input_shape: tuple[int, ...],
    *,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    norm_grad: NormGrad | None = None,
    mask: tuple[np.ndarray, Prologue, np.ndarray] | None = None,
) -> tuple[np.ndarray, GradSums | None]:
    """Gradient to the input, dx[i] = sum of grad[o] w[t] over o*stride + t*dilation - padding = i.

    With norm_grad, grad is the gradient above a batch norm, and what passes through the norm is
    formed as it is read. mask = (z, prologue, mean) says that the input was that activation of z:
    dx is then zeroed where the activation was cut by its relu, and the sums of dx and of
    dx * (z - mean) come along.
    """
    dx = np.empty(input_shape, grad.dtype)
    channels = input_shape[3]
    source = _Source(grad, norm_grad=norm_grad)
    jobs = []
    if mask is not None:
        z, activation, mean = mask
        vectors = [widen(v, grad.dtype) for v in (activation.scale, activation.shift, mean)]

    def masked(z: np.ndarray) -> Callable[[np.ndarray, Band], list]:
        def finish(rows: np.ndarray, band: Band) -> list[tuple[np.ndarray, np.ndarray]]:
            values = _band_rows(z, band)
            if activation.relu:
                for out, value in wide(rows, values):
                    t = scratch("activation", value.shape, value.dtype)
                    np.multiply(value, vectors[0][: t.shape[1]], out=t)
                    t += vectors[1][: t.shape[1]]
                    keep_positive(out, t)
            return [tile_grad_sums(rows, values, vectors[2])]

        return finish

    vertical, horizontal = (
        _phases(input_shape[1 + i], weight.shape[i], stride[i], padding[i], dilation[i])
        for i in range(2)
    )
    for v in vertical:
        for h in horizontal:
            part = (slice(None), v.positions, h.positions)
            out = dx[part]
            if not (v.taps and h.taps):
                out[...] = 0
                continue
            window = _Window(
                (len(v.taps), len(h.taps)), (1, 1), (v.offset, h.offset), (v.dilation, h.dilation)
            )
            matrices = _transposed(weight, v.taps, h.taps, groups)
            reader, values = source, None if mask is None else z[part]
            if _is_pointwise(window, source, out):
                reader, out = source.folded(), _fold(out)
                values = None if values is None else _fold(values)
            finish = None if values is None else masked(values)
            jobs.append(_Job(reader, matrices, out, window, finish))
    sums = _correlate(jobs)
    return dx, None if mask is None else merge_grad_sums(sums, channels, grad.dtype)


def conv2d_grad_weight(
    x: np.ndarray,
    grad: np.ndarray,
    kernel_size: Pair,
    *,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    prologue: Prologue | None = None,
    norm_grad: NormGrad | None = None,
) -> np.ndarray:
    """Gradient to the weights (kh,kw,Cin/groups,Cout): dw[t] = sum over o of x[o, t]^T grad[o].

    x is seen through its prologue and grad through norm_grad, each formed as it is read. Every
    worker sums its own bands; the workers' sums are added in their order.
    """
    kernel: Pair = kernel_size
    if kernel == (1, 1) and padding == (0, 0):
        x, stride = _thin(x, stride, grad.shape[1:3]), (1, 1)
    window = _Window(kernel, stride, (-padding[0], -padding[1]), dilation)
    source, above = _Source(x, prologue=prologue), _Source(grad, norm_grad=norm_grad)
    if _is_pointwise(window, source, grad):
        source, above = source.folded(), above.folded()
    count, height, width, channels_out = above.shape
    columns = _Columns(source, window, (height, width), groups, channels_out)
    gradients = _Columns(above, _POINT, (height, width), 1, channels_out)
    inner, outer = columns.taps * x.shape[3] // groups, channels_out // groups
    limit = columns.limit()

    def body(start: int, stop: int, worker: int) -> np.ndarray:
        total = np.zeros((groups, inner, outer), grad.dtype)
        product = scratch("product", total.shape, total.dtype)
        for band in bands(start, stop, height, limit):
            rows = gradients.matrix(band)[0]
            if not above.plain:  # rows lie in the scratch that the columns will gather through
                kept = scratch("gradients", rows.shape, rows.dtype)
                kept[...] = rows
                rows = kept
            columns.transposed_times(rows, band, product)
            total += product
        return total

    work = width * inner * channels_out
    parts = parallel_for(count * height, body, grain=1 + GRAIN_FLOPS // max(1, work))
    total = np.zeros((groups, inner, outer), grad.dtype)
    for part in parts:
        total += part
    return np.ascontiguousarray(total.transpose(1, 0, 2)).reshape(
        *kernel, x.shape[3] // groups, channels_out
    )
