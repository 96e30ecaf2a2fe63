"""Two-dimensional convolution on the CPU: forward, and the gradients to input and weights.

Three ways are chosen between: Winograd's filtering for 3x3 kernels where it wins (`winograd`), one
walk for both gradients of a 1x1 kernel (`pointwise`), and what is here for all else. The output is
walked in bands of lines. For a band the input pixels under every tap of the kernel are gathered
into a matrix that fits the cache (`_Columns`), and one matrix product per band does the arithmetic:
no copy of a whole layer exists. Small images share a band, so tiny layers are not ruled by Python's
overhead. Each worker owns a contiguous run of lines, or of output channels where pixels are few.

A band's input may be formed while it is gathered and its output finished while it is in the cache
(`bands`), which is what fused operations use.

The gradient to the input is itself a correlation of the output's gradient: with stride s, the
input pixels of one phase (position modulo s) see a fixed subset of the taps, and each phase is a
stride-1 correlation with that subset, flipped.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tensorlite.kernels.contract import (
    Epilogue,
    GradSums,
    Mask,
    Moments,
    NormGrad,
    Prologue,
)
from tensorlite.kernels.cpu import memory, pointwise, winograd
from tensorlite.kernels.cpu.bands import (
    GRAIN_VALUES,
    Band,
    Finish,
    Source,
    add_in_order,
    band_view,
    finish_forward,
    finish_later,
    finish_masked,
)
from tensorlite.kernels.cpu.normalisation import merge_grad_sums, merge_moments
from tensorlite.kernels.cpu.threads import bands, get_num_threads, parallel_for, scratch
from tensorlite.kernels.geometry import Pair, Window, output_size, phases

# Bytes a band's matrices may take. Measured on Zen 3 (1 MB of L2, 32 MB of L3): 2 MB beats 1 MB by
# up to 5 % on small layers, whose bands are then fewer, and equals it on large ones.
WORKSPACE = 1 << 21
THIN_OUTPUTS, THIN_INPUTS = 32, 4  # channels up to which a product is thin (see _Columns)
MIN_PIXELS = 256  # fewer rows and a product spends its time reading the weights
# Pixels a worker should have, else the workers share output channels, so many each: packing the
# weights takes 10 % of a product of 100 rows, 2 % of one of 200 (OpenBLAS on Zen 3).
FEW_PIXELS, MIN_OUTPUTS = 150, 64
GRAIN_FLOPS = 1 << 21  # multiply-adds below which a second thread costs more than it brings


_POINT = Window((1, 1), (1, 1), (0, 0), (1, 1))


class _Columns:
    """A source gathered band by band, and the two products taken of what was gathered.

    Usually a band becomes the matrix (groups, pixels, taps * channels). Where the product is thin
    (few output channels, or hardly any input channels) that copy would cost as much as the
    arithmetic, so only the taps along a line are gathered: (images, width, lines, kw * channels).
    Those of kh adjoining lines then lie side by side, and for each output line the matrix
    (images * width, taps * channels) is a view. That is a third of the copy for a 3x3 kernel.
    """

    def __init__(
        self, source: Source, window: Window, out_size: Pair, groups: int, outputs: int
    ) -> None:
        self.source, self.window, self.groups, self.outputs = source, window, groups, outputs
        self.width = out_size[1]
        self.dtype = source.array.dtype
        _, self.source_height, self.source_width, self.channels = source.shape
        self.span = self._reach(out_size[1], 1)
        same = out_size == self.source.shape[1:3]
        self.pointwise = window[:3] == _POINT[:3] and same and groups == 1
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
        return self.source.padded(band[:2], (first, lines), (window.offset[1], self.span))

    def matrix(self, band: Band, out: np.ndarray | None = None) -> np.ndarray:
        """The gathered band, (groups, pixels, taps * channels), in `out` if that is given."""
        if self.pointwise:
            return self.source.rows(band, "pixels")[None]
        pixels = self._pixels(band)
        images, lines = band[1] - band[0], band[3] - band[2]
        count = images * lines * self.width
        (kh, kw), (sh, sw), _, (dh, dw) = self.window
        channels = self.channels // self.groups
        a, b, c, d = pixels.strides
        shape = (self.groups, images, lines, self.width, kh, kw, channels)
        strides = (channels * d, a, b * sh, c * sw, b * dh, c * dw, d)
        gathered = scratch("columns", shape, self.dtype) if out is None else out.reshape(shape)
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


def _group_matrices(weight: np.ndarray, groups: int) -> np.ndarray:
    """(kh, kw, C, groups * D) -> (groups, kh * kw * C, D)."""
    matrix = weight.reshape(-1, groups, weight.shape[3] // groups)
    return matrix.transpose(1, 0, 2) if groups > 1 else matrix.reshape(1, len(matrix), -1)


class _Job(NamedTuple):
    """One correlation: out (N,OH,OW,D) from matrices (groups, taps * C, D / groups).

    finish(rows, band) may change its band's rows, contiguous (pixels, D), before they reach out;
    what it returns is handed to the caller.
    """

    source: Source
    matrices: np.ndarray
    out: np.ndarray
    window: Window
    finish: Finish | None


def _correlate(jobs: list[_Job]) -> list:
    """Do the jobs, each worker its share of every one; join what finish returned, in order."""
    jobs = [job for job in jobs if job.out.size]
    if len(jobs) == 1 and _has_few_pixels(jobs[0]):
        return _correlate_channels(jobs[0])
    lines = [job.out.shape[0] * job.out.shape[1] for job in jobs]
    most = max(lines, default=0)
    gathered = [
        _Columns(job.source, job.window, job.out.shape[1:3], len(job.matrices), job.out.shape[3])
        for job in jobs
    ]

    def share(job: _Job, columns: _Columns, start: int, stop: int) -> list:
        height, channels = job.out.shape[1], job.out.shape[3]
        direct = job.out.flags.c_contiguous
        left: list = []
        for band in bands(start, stop, height, columns.limit()):
            view = band_view(job.out, band)
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
        for job, columns, count in zip(jobs, gathered, lines, strict=True):
            left += share(job, columns, start * count // most, stop * count // most)
        return left

    # Multiply-adds a line of the longest job, all jobs together.
    work = sum(job.out.size * job.matrices.shape[1] for job in jobs) // max(1, most)
    parts = parallel_for(most, body, grain=1 + GRAIN_FLOPS // max(1, work))
    return [item for part in parts for item in part]


def _correlate_channels(job: _Job) -> list:
    """Do a job of few pixels with the output's channels, not its lines, shared by the workers."""
    count, height, width, outputs = job.out.shape
    columns = _Columns(job.source, job.window, (height, width), 1, outputs)
    weights = job.matrices[0]
    rows = job.out.reshape(-1, outputs)
    if columns.pointwise:
        matrix = columns.matrix((0, count, 0, height))[0]
    else:
        matrix = memory.empty((len(rows), len(weights)), rows.dtype)

        def gather(start: int, stop: int, worker: int) -> None:
            for band in bands(start, stop, height, columns.limit()):
                first, last = band[0] * height + band[2], (band[1] - 1) * height + band[3]
                columns.matrix(band, matrix[first * width : last * width])

        parallel_for(count * height, gather, grain=1 + GRAIN_VALUES // (width * len(weights)))

    def multiply(start: int, stop: int, worker: int) -> None:
        np.matmul(matrix, weights[:, start:stop], out=rows[:, start:stop])

    parallel_for(outputs, multiply, grain=MIN_OUTPUTS)
    return finish_later(job.out, job.finish)


def _has_few_pixels(job: _Job) -> bool:
    """Whether sharing a job's lines would leave each worker a product of too few rows."""
    count, height, width, outputs = job.out.shape
    return (
        count * height * width < FEW_PIXELS * get_num_threads()
        and outputs >= 2 * MIN_OUTPUTS
        and len(job.matrices) == 1
        and job.source.shape[3] > THIN_INPUTS
        and job.out.flags.c_contiguous
    )


def _thin(x: np.ndarray, stride: Pair, out_size: Pair) -> np.ndarray:
    """The pixels a strided 1x1 kernel sees."""
    return x[:, :: stride[0], :: stride[1]][:, : out_size[0], : out_size[1]]


def _is_winograd(
    x: np.ndarray,
    weight: np.ndarray,
    size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    kept: bool = False,
) -> bool:
    """Whether Winograd's filtering can do a convolution with outputs of `size`, and is quicker."""
    return (
        weight.shape[:2] == (3, 3)
        and (stride, dilation, groups) == ((1, 1), (1, 1), 1)
        and max(padding) <= 2
        and winograd.wins(len(x), size, x.shape[3], weight.shape[3], kept)
    )


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
    epilogue: Epilogue | None = None,
    kept: dict[str, np.ndarray] | None = None,
) -> tuple[np.ndarray, Moments | None]:
    """Cross-correlation y[o] = sum_t x[o*stride + t*dilation - padding] w[t] + bias.

    x (N,H,W,Cin), weight (kh,kw,Cin/groups,Cout) -> y (N,OH,OW,Cout). A prologue is applied to x
    as it is read; padding is zeros after it. With statistics, the moments of y come along; an
    epilogue is applied to y after them. `kept` keeps what depends on the weight alone from one call
    to the next, for a weight that does not change.
    """
    kernel: Pair = weight.shape[:2]
    size = output_size(x.shape, kernel, stride, padding, dilation)
    y = memory.empty((len(x), *size, weight.shape[3]), x.dtype)
    alone = bias is None and not statistics
    if epilogue and alone and epilogue.scale is not None and 2 * weight.size < y.size:
        # Scaling the weights is less work than scaling the outputs.
        weight, epilogue = weight * epilogue.scale, epilogue._replace(scale=None)
    finish = finish_forward(bias, statistics, epilogue, y.dtype)
    if _is_winograd(x, weight, size, stride, padding, dilation, groups, kept is not None):
        tiles = winograd.forward(Source(x, prologue=prologue), weight, y, padding, finish, kept)
        return y, merge_moments(tiles, y.shape[3], y.dtype) if statistics else None
    if kernel == (1, 1) and padding == (0, 0):
        x, stride = _thin(x, stride, size), (1, 1)
    source = Source(x, prologue=prologue)
    window = Window(kernel, stride, (-padding[0], -padding[1]), dilation)
    matrices = _group_matrices(weight, groups)
    tiles = _correlate([_Job(source, matrices, y, window, finish)])
    return y, merge_moments(tiles, y.shape[3], y.dtype) if statistics else None


def _transposed(weight: np.ndarray, rows: list[int], columns: list[int], groups: int) -> np.ndarray:
    """The chosen taps with input and output channels exchanged: (groups, taps * D, C).

    Laid out as (groups, C, taps * D) and returned transposed, which the BLAS reads as quickly and
    which copies whole runs of D.
    """
    kh, kw, channels, total = weight.shape
    outer = total // groups
    parts = weight.reshape(kh, kw, channels, groups, outer)
    matrices = memory.empty((groups, channels, len(rows), len(columns), outer), weight.dtype)

    def copy(start: int, stop: int, worker: int) -> None:
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                taken = parts[row, column, start:stop]
                matrices[:, start:stop, i, j] = taken.transpose(1, 0, 2)

    parallel_for(channels, copy, grain=1 + GRAIN_VALUES // (len(rows) * len(columns) * total))
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
    mask: Mask | None = None,
) -> tuple[np.ndarray, GradSums | None]:
    """Gradient to the input, dx[i] = sum of grad[o] w[t] over o*stride + t*dilation - padding = i.

    With norm_grad, grad is the gradient above a batch norm, and what passes through the norm is
    formed as it is read. A mask says that the input was an activation of mask.z: dx is then zeroed
    where the activation was cut by its relu, and the sums of dx and of dx * (z - mean) come along.
    """
    dx = memory.empty(input_shape, grad.dtype)
    channels = input_shape[3]
    source = Source(grad, norm_grad=norm_grad)
    jobs = []
    vertical, horizontal = (
        phases(input_shape[1 + i], weight.shape[i], stride[i], padding[i], dilation[i])
        for i in range(2)
    )
    for v in vertical:
        for h in horizontal:
            part = (slice(None), v.positions, h.positions)
            out = dx[part]
            if not (v.taps and h.taps):
                out[...] = 0
                continue
            window = Window(
                (len(v.taps), len(h.taps)), (1, 1), (v.offset, h.offset), (v.dilation, h.dilation)
            )
            matrices = _transposed(weight, v.taps, h.taps, groups)
            finish = None if mask is None else finish_masked(mask.z[part], mask, grad.dtype)
            jobs.append(_Job(source, matrices, out, window, finish))
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
    window = Window(kernel, stride, (-padding[0], -padding[1]), dilation)
    source, above = Source(x, prologue=prologue), Source(grad, norm_grad=norm_grad)
    count, height, width, channels_out = above.shape
    columns = _Columns(source, window, (height, width), groups, channels_out)
    inner, outer = columns.taps * x.shape[3] // groups, channels_out // groups
    limit = columns.limit()

    def body(start: int, stop: int, worker: int) -> np.ndarray:
        product = total = memory.empty((groups, inner, outer), grad.dtype)
        for band in bands(start, stop, height, limit):
            rows = above.rows(band, "gradients")
            columns.transposed_times(rows, band, product)
            if product is not total:
                total += product
            product = scratch("product", total.shape, total.dtype)
        return total

    work = width * inner * channels_out
    parts = parallel_for(count * height, body, grain=1 + GRAIN_FLOPS // max(1, work))
    total = add_in_order(parts, (groups, inner, outer), grad.dtype)
    return np.ascontiguousarray(total.transpose(1, 0, 2)).reshape(
        *kernel, x.shape[3] // groups, channels_out
    )


def conv2d_backward(
    x: np.ndarray,
    grad: np.ndarray,
    weight: np.ndarray,
    *,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    needs: tuple[bool, bool] = (True, True),
    prologue: Prologue | None = None,
    norm_grad: NormGrad | None = None,
    mask: Mask | None = None,
) -> tuple[np.ndarray | None, GradSums | None, np.ndarray | None]:
    """Gradients to input and weights: dx, its sums where a mask asks for them, and dw.

    needs says which of dx and dw are wanted; the others are None. x is seen through its prologue
    and grad through norm_grad; see `conv2d_grad_input` for the mask.
    """
    dx = sums = dw = None
    filtered = _is_winograd(x, weight, grad.shape[1:3], stride, padding, dilation, groups)
    if filtered or weight.shape[:2] == (1, 1) and padding == (0, 0) and groups == 1:
        above = Source(grad, norm_grad=norm_grad)
        dx = memory.empty(x.shape, grad.dtype) if needs[0] else None
        seen = x if filtered else _thin(x, stride, grad.shape[1:3])
        source = Source(seen, prologue=prologue) if needs[1] else None
        finish = None
        if mask is not None:
            z = mask.z if filtered else _thin(mask.z, stride, grad.shape[1:3])
            finish = finish_masked(z, mask, grad.dtype)
        if filtered:
            tiles, dw = winograd.backward(source, above, weight, dx, padding, finish)
        else:
            tiles, dw = pointwise.backward(source, above, weight[0, 0], dx, stride, finish)
            dw = None if dw is None else dw.reshape(weight.shape)
        if mask is not None and needs[0]:
            sums = merge_grad_sums(tiles, x.shape[3], grad.dtype)
        return dx, sums, dw
    geometry: dict[str, Any] = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "norm_grad": norm_grad,
    }
    if needs[0]:
        dx, sums = conv2d_grad_input(grad, weight, x.shape, mask=mask, **geometry)
    if needs[1]:
        dw = conv2d_grad_weight(x, grad, weight.shape[:2], prologue=prologue, **geometry)
    return dx, sums, dw
