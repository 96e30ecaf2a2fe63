"""Two-dimensional convolution and matrix products on CUDA: forward, and the gradients to input and
weights.

All are products of matrices of which one, the input gathered through the window of every output
pixel, is only ever formed a tile at a time in shared memory (`src/convolution.cuh`). The forward
pass and the gradient to the input are one kernel, `correlate`: with stride s, the input pixels of
one phase (position modulo s) see a fixed subset of the taps, and each phase is a correlation of the
output's gradient with that subset, flipped. The gradient to the weights sums over pixels, which are
cut into runs so that there are enough blocks; the runs' sums are added in order.

Three methods are chosen from: plain arithmetic in the accumulator's type; tensor cores with
operands rounded to TF32, where `precision` allows it; and tensor cores on float16. What an op asks
for besides the product (a deferred activation read, bias, moments, residual, mask) is done on the
way in or out, while a tile is on the chip.

Kernels move 16 bytes at a time. Where channels do not come in runs of that (the three of a picture)
arrays are copied with channels of zeros added, one pass against several times as many loads.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from tensorlite.device import Array, array_module, is_on_gpu
from tensorlite.kernels.contract import Epilogue, GradSums, Mask, Moments, NormGrad, Prologue
from tensorlite.kernels.cuda import precision
from tensorlite.kernels.cuda.compiler import Kernel, kernel
from tensorlite.kernels.cuda.launch import NAMES, address, launch, sums_dtype, type_name
from tensorlite.kernels.cuda.rows import MERGED, merge_kernel, merge_kernels, merge_sums
from tensorlite.kernels.geometry import Pair, Phase, Window, output_size, phases

EMULATED = 90  # the compute capability, times ten, that NumPy arrays stand for
LIMIT = 2**31 - 256  # pixels of an output: they are counted by int, up to the end of a tile

BLOCKS = 200  # that occupy a large GPU: 132 multiprocessors, one or two blocks each
# Pixels summed in a run of the gradient to the weights: enough to be worth a block, and few enough
# that rounding does not add up (tensor cores round sums towards zero).
LEAST_RUN, LONGEST_RUN = 256, 4096
SIDE = 32  # of the squares of src/convolution_parts.cu
THREADS = 256  # of the kernels there


class _Tile(NamedTuple):
    """Rows and columns of the result that a block makes, and its threads."""

    rows: int
    columns: int
    threads: int

    def blocks(self, rows: int, columns: int) -> int:
        return _parts(rows, self.rows) * _parts(columns, self.columns)


SQUARE, TALL, SMALL = _Tile(128, 128, 256), _Tile(128, 64, 128), _Tile(64, 64, 128)


class _Method(NamedTuple):
    """A kind of arithmetic for arrays of a dtype, as src/product.cuh has it, and its tiles, largest
    first."""

    name: str
    dtype: str
    tiles: tuple[_Tile, ...]

    @property
    def width(self) -> int:
        """Elements moved at a time."""
        return 16 // np.dtype(self.dtype).itemsize

    @property
    def plain(self) -> bool:
        return self.name == "PLAIN"

    @property
    def operand(self) -> int:
        """Bytes of an operand's element in shared memory."""
        return (sums_dtype(self.dtype) if self.plain else np.dtype(self.dtype)).itemsize

    @property
    def step(self) -> int:
        """The depth of what lies in shared memory at a time."""
        return 64 // self.operand

    def shared(self, tile: _Tile, by_row: bool) -> int:
        """Bytes of the stages of operands (Layout in src/product.cuh)."""
        stages, pad = (2, 4) if self.plain else (4, 8)
        left = self.step * (tile.rows + pad)
        if by_row and not self.plain:
            left = tile.rows * (self.step + 16 // self.operand)
        return stages * (left + self.step * (tile.columns + pad)) * self.operand

    def choose(self, rows: int, columns: int, groups: int) -> _Tile:
        """The largest tile of which there are enough to occupy the GPU, and whose columns are not
        half beyond the result's; else the smallest."""
        for tile in self.tiles:
            if tile.blocks(rows, columns) * groups >= BLOCKS and columns > tile.columns // 2:
                return tile
        return self.tiles[-1]


TF32 = _Method("TF32", "float32", (SQUARE, TALL, SMALL))
HALF = _Method("HALF", "float16", (SQUARE, TALL, SMALL))
PLAIN = {
    "float16": _Method("PLAIN", "float16", (TALL, SMALL)),
    "float32": _Method("PLAIN", "float32", (TALL, SMALL)),
    "float64": _Method("PLAIN", "float64", (SMALL,)),
}


@functools.cache
def _product_kernel(source: str, name: str, method: _Method, tile: _Tile, prologue: bool) -> Kernel:
    return kernel(source, name, tile.threads, 75 if method.plain else 80, hot=True,
                  TYPE=type_name(method.dtype), METHOD=method.name, TILE_M=tile.rows,
                  TILE_N=tile.columns, PROLOGUE=int(prologue))


def _correlate_kernel(method: _Method, tile: _Tile, prologue: bool) -> Kernel:
    return _product_kernel("convolution.cu", "correlate", method, tile, prologue)


def _weights_kernel(method: _Method, tile: _Tile, prologue: bool) -> Kernel:
    return _product_kernel("convolution_weights.cu", "correlate_weights", method, tile, prologue)


def _exchange_kernel(dtype: Any) -> Kernel:
    return kernel("convolution_parts.cu", "exchange_channels", THREADS, TYPE=type_name(dtype))


def _add_kernel(dtype: Any) -> Kernel:
    return kernel("convolution_parts.cu", "add_parts", THREADS, TYPE=type_name(dtype))


def kernels() -> list[Kernel]:
    """Every kernel that may be launched here."""
    variants = [(method, tile, prologue) for method in (TF32, HALF, *PLAIN.values())
                for tile in method.tiles for prologue in (False, True)]
    return [
        *(_correlate_kernel(*variant) for variant in variants),
        *(_weights_kernel(*variant) for variant in variants),
        *(_exchange_kernel(dtype) for dtype in NAMES),
        *(_add_kernel(dtype) for dtype in ("float32", "float64")),
        *merge_kernels("merge_moments"),
        *merge_kernels("merge_sums"),
    ]


def _method(x: Array) -> _Method:
    """The arithmetic for an array, on its device."""
    type_name(x.dtype)  # raises a TypeError that names the dtypes
    arch = int(x.device.compute_capability) if is_on_gpu(x) else EMULATED
    if arch >= 80 and x.dtype == np.float16:
        return HALF
    if arch >= 80 and x.dtype == np.float32 and precision.tf32():
        return TF32
    return PLAIN[x.dtype.name]


def _parts(size: int, part: int) -> int:
    return -(-size // part)


def _up(size: int, multiple: int) -> int:
    return _parts(size, multiple) * multiple


def _aligned(a: Array) -> bool:
    return address(a) % 16 == 0


def _ready(a: Array, dtype: Any = None) -> Array:
    """a, contiguous, of a dtype if one is given, and where vectors can be read."""
    a = array_module(a).ascontiguousarray(a, dtype=dtype)
    return a if _aligned(a) else a.copy()


def _filled(a: Array, axis: int, groups: int, multiple: int) -> Array:
    """a made ready, with every group's part of an axis filled up with zeros to a multiple."""
    size = a.shape[axis] // groups
    if size % multiple == 0:
        return _ready(a)
    xp, before, after = array_module(a), a.shape[:axis], a.shape[axis + 1 :]
    filled = xp.zeros((*before, groups, _up(size, multiple), *after), a.dtype)
    where = (slice(None),) * (axis + 1) + (slice(size),)
    filled[where] = a.reshape(*before, groups, size, *after)
    return filled.reshape(*before, -1, *after)


def _ints(*values: int) -> tuple[np.int32, ...]:
    return tuple(np.int32(value) for value in values)


def _check_size(shape: tuple[int, ...]) -> int:
    """The number of pixels of an output."""
    pixels = int(np.prod(shape[:3], dtype=np.int64))
    if pixels >= LIMIT:
        raise ValueError(f"convolution: {pixels} output pixels, at most {LIMIT - 1} can be counted")
    return pixels


class _Input(NamedTuple):
    """An input (N,H,W,C) made ready, and the activation of it that is to be read."""

    x: Array
    scale: Array | None
    shift: Array | None
    relu: bool

    @classmethod
    def of(cls, x: Array, prologue: Prologue | None, groups: int, width: int) -> _Input:
        filled, dtype = _filled(x, 3, groups, width), sums_dtype(x.dtype)
        if prologue is None:
            return cls(filled, None, None, False)
        scale, shift = (_filled(_ready(v, dtype), 0, groups, width) for v in prologue[:2])
        return cls(filled, scale, shift, prologue.relu)

    def arguments(self, window: Window, groups: int) -> tuple[Any, ...]:
        """What both kernels are told of it."""
        _, height, width, channels = self.x.shape
        sizes = _ints(height, width, channels, channels // groups)
        return *sizes, *_ints(*window.kernel, *window.stride, *window.offset, *window.dilation)


class _Output(NamedTuple):
    """Where a correlation's (N, size, D) goes: pixel (i, j) to (i, j) * step + first of y."""

    y: Array
    size: Pair
    step: Pair = (1, 1)
    first: Pair = (0, 0)


class _Finish(NamedTuple):
    """What `correlate` does to a tile besides the product; see src/convolution.cu."""

    bias: Array | None = None
    scale: Array | None = None
    shift: Array | None = None
    other: Array | None = None
    relu: bool = False
    masked: bool = False
    mean: Array | None = None
    moments: Array | None = None
    sums: Array | None = None


def _correlate(method: _Method, tile: _Tile, source: _Input, weight: Array, out: _Output,
               window: Window, groups: int, finish: _Finish) -> None:
    """Launch `correlate`; weight (taps * channels, groups * outputs), filled like the source."""
    total = out.y.shape[3]
    outputs, pixels = total // groups, len(out.y) * out.size[0] * out.size[1]
    aligned = outputs % 4 == 0 and _aligned(out.y)
    room = (tile.rows * (tile.columns + 8) + 8 * tile.threads) * sums_dtype(method.dtype).itemsize
    launch(
        _correlate_kernel(method, tile, source.scale is not None),
        (tile.blocks(pixels, outputs), 1, groups),
        source.x, weight, out.y, source.scale, source.shift, np.int32(source.relu),
        finish.bias, finish.scale, finish.shift, finish.other, np.int32(finish.relu),
        np.int32(finish.masked), finish.mean, finish.moments, finish.sums,
        *source.arguments(window, groups),
        *_ints(pixels, *out.size, outputs, weight.shape[-1], total, aligned),
        *_ints(*out.y.shape[1:3], *out.step, *out.first),
        shared=max(method.shared(tile, by_row=True), room),
    )


def conv2d_forward(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    prologue: Prologue | None = None,
    statistics: bool = False,
    epilogue: Epilogue | None = None,
    kept: dict[str, Array] | None = None,
) -> tuple[Array, Moments | None]:
    """Cross-correlation y[o] = sum_t x[o*stride + t*dilation - padding] w[t] + bias.

    x (N,H,W,Cin), weight (kh,kw,Cin/groups,Cout) -> y (N,OH,OW,Cout). A prologue is applied to x
    as it is read; padding is zeros after it. With statistics, the moments of y come along; an
    epilogue is applied to y after them. Nothing that depends on the weight alone is worth being
    kept here, so `kept` is left as it is.
    """
    kernel: Pair = weight.shape[:2]
    size = output_size(x.shape, kernel, stride, padding, dilation)
    shape = (len(x), *size, weight.shape[3])
    window = Window(kernel, stride, (-padding[0], -padding[1]), dilation)
    y = array_module(x).empty(shape, x.dtype)
    return y, _forward(x, weight, y, window, groups, bias, prologue, statistics, epilogue)


def _forward(x: Array, weight: Array, y: Array, window: Window, groups: int,
             bias: Array | None = None, prologue: Prologue | None = None, statistics: bool = False,
             epilogue: Epilogue | None = None) -> Moments | None:
    """Fill y (contiguous) with the convolution; see conv2d_forward."""
    xp, dtype = array_module(x), sums_dtype(x.dtype)
    outputs, pixels = y.shape[3], _check_size(y.shape)
    if not y.size:
        return Moments(0, *xp.zeros((2, outputs), dtype)) if statistics else None
    method = _method(x)
    tile = method.choose(pixels, outputs // groups, groups)
    finish = _Finish()
    if bias is not None:
        finish = finish._replace(bias=_ready(bias, dtype))
    if epilogue is not None:
        scale, shift, residual, relu = epilogue
        finish = finish._replace(
            scale=None if scale is None else _ready(scale, dtype), shift=_ready(shift, dtype),
            other=None if residual is None else _ready(residual, x.dtype), relu=relu)
    if statistics:
        tiles = xp.empty((_parts(pixels, tile.rows), 2, outputs), np.float64)
        finish = finish._replace(moments=tiles)
    source = _Input.of(x, prologue, groups, method.width)
    matrix = _filled(_filled(weight, 2, 1, method.width), 3, groups, method.width)
    _correlate(method, tile, source, matrix, _Output(y, y.shape[1:3]), window, groups, finish)
    if not statistics:
        return None
    moments = xp.empty((2, outputs), dtype)
    launch(merge_kernel("merge_moments", dtype), (_parts(outputs, MERGED),), tiles, moments,
           *_ints(len(tiles), outputs), np.int64(pixels), np.int64(tile.rows))
    return Moments(pixels, moments[0], moments[1])


def _exchanged(weight: Array, rows: list[int], columns: list[int], groups: int,
               width: int) -> Array:
    """The chosen taps of a ready weight, each an even run, with input and output channels exchanged
    and filled up: (taps, D, groups * C)."""
    _, kernel_x, inner, outer = weight.shape
    outer //= groups
    inner_all, outer_all = _up(inner, width), _up(outer, width)
    taps = len(rows) * len(columns)
    out = array_module(weight).empty((taps, outer_all, groups * inner_all), weight.dtype)
    steps = (chosen[1] - chosen[0] if len(chosen) > 1 else 0 for chosen in (rows, columns))
    launch(
        _exchange_kernel(weight.dtype),
        (_parts(outer_all, SIDE), _parts(inner_all, SIDE), groups * taps),
        weight, out,
        *_ints(kernel_x, inner, outer, inner_all, outer_all, groups, len(rows), len(columns),
               rows[0], columns[0], *steps),
    )
    return out


def _count(part: Phase, size: int) -> int:
    return len(range(*part.positions.indices(size)))


def conv2d_grad_input(
    grad: Array,
    weight: Array,
    input_shape: tuple[int, ...],
    *,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    norm_grad: NormGrad | None = None,
    mask: Mask | None = None,
) -> tuple[Array, GradSums | None]:
    """Gradient to the input, dx[i] = sum of grad[o] w[t] over o*stride + t*dilation - padding = i.

    With norm_grad, grad is the gradient above a batch norm, and what passes through the norm is
    formed first. A mask says that the input was an activation of mask.z: dx is then zeroed where
    the activation was cut by its relu, and the sums of dx and of dx * (z - mean) come along.
    """
    xp, dtype, channels = array_module(grad), sums_dtype(grad.dtype), input_shape[3]
    _check_size(input_shape)
    vertical, horizontal = (
        phases(input_shape[1 + i], weight.shape[i], stride[i], padding[i], dilation[i])
        for i in range(2)
    )
    pairs = [(v, h) for v in vertical for h in horizontal]
    live = [(v, h) for v, h in pairs if v.taps and h.taps and grad.size]
    dx = (xp.zeros if len(live) < len(pairs) else xp.empty)(input_shape, grad.dtype)
    method, jobs, total = _method(grad), [], 0
    for v, h in live:
        size = _count(v, input_shape[1]), _count(h, input_shape[2])
        if pixels := len(dx) * size[0] * size[1]:
            tile = method.choose(pixels, channels // groups, groups)
            jobs.append((v, h, size, tile, slice(total, total + _parts(pixels, tile.rows))))
            total = jobs[-1][4].stop
    finish, sums = _Finish(), None
    if mask is not None:
        scale, shift, relu = mask.activation
        finish = _Finish(
            scale=_ready(scale, dtype), shift=_ready(shift, dtype), relu=relu, masked=True,
            other=_ready(mask.z, grad.dtype), mean=_ready(mask.mean, dtype))
        sums = xp.empty((total, 2, channels), dtype)
    if jobs:
        source = _Input.of(_formed(grad, norm_grad), None, groups, method.width)
        weight = _ready(weight)
    for v, h, size, tile, tiles in jobs:
        window = Window(
            (len(v.taps), len(h.taps)), (1, 1), (v.offset, h.offset), (v.dilation, h.dilation))
        matrix = _exchanged(weight, v.taps, h.taps, groups, method.width)
        out = _Output(dx, size, stride, (v.positions.start, h.positions.start))
        if sums is not None:
            finish = finish._replace(sums=sums[tiles])
        _correlate(method, tile, source, matrix, out, window, groups, finish)
    if sums is None:
        return dx, None
    return dx, GradSums(*(merge_sums(sums) if total else xp.zeros((2, channels), dtype)))


def _formed(grad: Array, norm_grad: NormGrad | None) -> Array:
    """What passes through a norm of the gradient above it."""
    if norm_grad is None:
        return grad
    if norm_grad.z is None:
        return (grad * norm_grad.scale).astype(grad.dtype, copy=False)
    from tensorlite.kernels.cuda.normalisation import norm_backward

    return norm_backward(grad, *norm_grad)


def conv2d_grad_weight(
    x: Array,
    grad: Array,
    kernel_size: Pair,
    *,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    prologue: Prologue | None = None,
    norm_grad: NormGrad | None = None,
) -> Array:
    """Gradient to the weights (kh,kw,Cin/groups,Cout): dw[t] = sum over o of x[o, t]^T grad[o].

    It is float32 for float16. x is seen through its prologue as it is read; what passes through
    norm_grad is formed first.
    """
    xp, dtype = array_module(x), sums_dtype(x.dtype)
    inner, total, pixels = x.shape[3] // groups, grad.shape[3], _check_size(grad.shape)
    shape = (*kernel_size, inner, total)
    if not (pixels and x.size and total):
        return xp.zeros(shape, dtype)
    method = _method(x)
    source = _Input.of(x, prologue, groups, method.width)
    above = _filled(_formed(grad, norm_grad), 3, groups, method.width)
    window = Window(kernel_size, stride, (-padding[0], -padding[1]), dilation)
    filled = source.x.shape[3] // groups
    depth, outputs = kernel_size[0] * kernel_size[1] * filled, total // groups
    # As large a tile as the result fills; runs of pixels make blocks enough.
    tile = next((t for t in method.tiles if depth > t.rows // 2 and outputs > t.columns // 2),
                method.tiles[-1])
    tiles = tile.blocks(depth, outputs) * groups
    runs = max(_parts(pixels, LONGEST_RUN), min(_parts(BLOCKS, tiles), pixels // LEAST_RUN), 1)
    span = _up(_parts(pixels, runs), method.step)
    runs = _parts(pixels, span)
    parts = xp.empty((runs, *kernel_size, filled, total), dtype)
    launch(
        _weights_kernel(method, tile, prologue is not None),
        (tile.blocks(depth, outputs), runs, groups),
        source.x, above, parts, source.scale, source.shift, np.int32(source.relu),
        *source.arguments(window, groups),
        *_ints(pixels, *grad.shape[1:3], span, outputs, above.shape[3], total, outputs % 2 == 0),
        shared=method.shared(tile, by_row=False),
    )
    dw = parts[0]
    if runs > 1:
        dw = xp.empty(parts.shape[1:], dtype)
        launch(_add_kernel(dtype), (min(_parts(dw.size, THREADS), 8 * BLOCKS),), parts, dw,
               np.int32(runs), np.int64(dw.size))
    return dw if filled == inner else xp.ascontiguousarray(dw[:, :, :inner])


def conv2d_backward(
    x: Array,
    grad: Array,
    weight: Array,
    *,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    needs: tuple[bool, bool] = (True, True),
    prologue: Prologue | None = None,
    norm_grad: NormGrad | None = None,
    mask: Mask | None = None,
) -> tuple[Array | None, GradSums | None, Array | None]:
    """Gradients to input and weights: dx, its sums where a mask asks for them, and dw.

    needs says which of dx and dw are wanted; the others are None. x is seen through its prologue
    and grad through norm_grad; see `conv2d_grad_input` for the mask.
    """
    dx = sums = dw = None
    if any(needs):
        grad = _formed(grad, norm_grad)  # once for both
    geometry: dict[str, Any] = {
        "stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if needs[0]:
        dx, sums = conv2d_grad_input(grad, weight, x.shape, mask=mask, **geometry)
    if needs[1]:
        dw = conv2d_grad_weight(x, grad, weight.shape[:2], prologue=prologue, **geometry)
    return dx, sums, dw


def matmul2d(a: Array, b: Array, out: Array | None = None) -> Array:
    """a @ b for 2-D operands (transposed views welcome), in `out` if that is given."""
    xp, dtype = array_module(a), np.result_type(a.dtype, b.dtype)
    shape = a.shape[0], b.shape[1]
    y = out
    if y is None or not (y.flags.c_contiguous and y.dtype == dtype):
        y = xp.empty(shape, dtype)
    if not a.shape[1]:
        y[...] = 0
    else:
        _forward(_ready(a, dtype)[None, None], _ready(b, dtype)[None, None], y[None, None],
                 Window((1, 1), (1, 1), (0, 0), (1, 1)), 1)
    if out is None or out is y:
        return y
    out[...] = y
    return out
