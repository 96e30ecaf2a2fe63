"""One table of all ops: how to draw a call of each, and what NumPy or SciPy says it should give.

`test_ops.py` turns every row into property tests: forward against the reference, gradients against
central differences, float32 against float64, arguments left alone; on every device there is. An op
without a row fails the test of completeness there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.signal
import scipy.special
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tensorlite as tl
from tensorlite.ops.convolution import Conv2d
from tensorlite.ops.elementwise import (
    Add,
    Divide,
    Dropout,
    Exp,
    Log,
    Multiply,
    Negative,
    Power,
    ReLU,
    Sigmoid,
    Subtract,
    Tanh,
)
from tensorlite.ops.linear import Linear, MatMul
from tensorlite.ops.loss import REDUCTIONS, CrossEntropy, LogSoftmax, Softmax
from tensorlite.ops.normalisation import MODES, BatchNorm
from tensorlite.ops.pooling import AvgPool2d, GlobalAvgPool, MaxPool2d
from tensorlite.ops.recurrence import GRU, TemporalSkip
from tensorlite.ops.reduction import Max, Mean, Sum
from tensorlite.ops.shape import Concatenate, Index, Pad, Reshape, ToDevice, Transpose

Draw = Callable[[st.SearchStrategy], Any]


@dataclass
class Call:
    """An op at the float64 `inputs`: ``run(*tensors)`` is what ``reference(*inputs)`` computes."""

    inputs: list[np.ndarray]
    run: Callable[..., tl.Tensor]
    reference: Callable[..., np.ndarray]
    options: dict[str, Any] = field(default_factory=dict)  # shown when a test fails


@dataclass
class OpCase:
    """A public op, the Function that carries it, and a strategy of calls."""

    name: str
    function: type[tl.Function]
    calls: st.SearchStrategy[Call]


CASES: list[OpCase] = []


def case(name: str, function: type[tl.Function]) -> Callable:
    """Enter into the table what the decorated ``body(draw) -> Call`` draws."""

    def enter(body: Callable[[Draw], Call]) -> Callable[[Draw], Call]:
        CASES.append(OpCase(name, function, st.composite(body)()))
        return body

    return enter


# What calls are drawn from. Hypothesis draws shapes, options and a seed; the values come from the
# seed, scaled so that float32 has no excuse.


def rng(draw: Draw) -> np.random.Generator:
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1)))


def normal(draw: Draw, *shape: int) -> np.ndarray:
    return rng(draw).standard_normal(shape)


def uniform(draw: Draw, low: float, high: float, *shape: int) -> np.ndarray:
    return rng(draw).uniform(low, high, shape)


def apart(draw: Draw, *shape: int) -> np.ndarray:
    """Values in [-1, 1] that all differ, by far more than a finite difference's step, and from 0:
    for functions with kinks at equal values or at zero."""
    n = int(np.prod(shape))
    return ((rng(draw).permutation(n) + 0.25 - n / 2) * 2 / max(n, 1)).reshape(shape)


def a_shape(draw: Draw, least: int = 0, most: int = 4, side: int = 0) -> tuple[int, ...]:
    return draw(hnp.array_shapes(min_dims=least, max_dims=most, min_side=side, max_side=4))


def two_shapes(draw: Draw) -> tuple[tuple[int, ...], ...]:
    return draw(hnp.mutually_broadcastable_shapes(
        num_shapes=2, max_dims=3, min_side=0, max_side=3)).input_shapes


def length(draw: Draw, least: int = 1, most: int = 4) -> int:
    return draw(st.integers(least, most))


def one_or_two(draw: Draw, least: int, most: int) -> int | tuple[int, int]:
    """A number, or one for each of height and width."""
    numbers = st.integers(least, most)
    return draw(st.one_of(numbers, st.tuples(numbers, numbers)))


def both(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def some_axes(draw: Draw, ndim: int) -> int | tuple[int, ...] | None:
    if ndim == 0:
        return draw(st.sampled_from([None, ()]))
    axes = hnp.valid_tuple_axes(ndim)
    return draw(st.one_of(st.none(), st.integers(-ndim, ndim - 1), axes))


# Elementwise


@case("add", Add)
def _add(draw: Draw) -> Call:
    return Call([normal(draw, *s) for s in two_shapes(draw)], tl.add, np.add)


@case("subtract", Subtract)
def _subtract(draw: Draw) -> Call:
    return Call([normal(draw, *s) for s in two_shapes(draw)], tl.subtract, np.subtract)


@case("multiply", Multiply)
def _multiply(draw: Draw) -> Call:
    return Call([normal(draw, *s) for s in two_shapes(draw)], tl.multiply, np.multiply)


@case("divide", Divide)
def _divide(draw: Draw) -> Call:
    a, b = two_shapes(draw)
    sign = draw(st.sampled_from([-1, 1]))
    return Call([normal(draw, *a), sign * uniform(draw, 0.5, 2, *b)], tl.divide, np.divide)


@case("power", Power)
def _power(draw: Draw) -> Call:
    a, b = two_shapes(draw)
    inputs = [uniform(draw, 0.5, 2, *a), uniform(draw, -2, 2, *b)]
    return Call(inputs, tl.power, lambda a, b: np.exp(b * np.log(a)))


@case("negative", Negative)
def _negative(draw: Draw) -> Call:
    return Call([normal(draw, *a_shape(draw))], tl.negative, np.negative)


@case("exp", Exp)
def _exp(draw: Draw) -> Call:
    return Call([normal(draw, *a_shape(draw))], tl.exp, np.exp)


@case("log", Log)
def _log(draw: Draw) -> Call:
    return Call([uniform(draw, 0.2, 5, *a_shape(draw))], tl.log, np.log)


@case("tanh", Tanh)
def _tanh(draw: Draw) -> Call:
    return Call([normal(draw, *a_shape(draw))], tl.tanh, lambda x: 1 - 2 / (np.exp(2 * x) + 1))


@case("sigmoid", Sigmoid)
def _sigmoid(draw: Draw) -> Call:
    return Call([normal(draw, *a_shape(draw))], tl.sigmoid, scipy.special.expit)


@case("relu", ReLU)
def _relu(draw: Draw) -> Call:
    return Call([apart(draw, *a_shape(draw))], tl.relu, lambda x: np.where(x > 0, x, 0))


@case("dropout", Dropout)
def _dropout(draw: Draw) -> Call:
    seed, p = draw(st.integers(0, 99)), draw(st.sampled_from([0.1, 0.5, 0.9]))

    def run(x: tl.Tensor) -> tl.Tensor:
        return tl.dropout(x, p, training=True, rng=np.random.default_rng(seed))

    def reference(x: np.ndarray) -> np.ndarray:
        keep = np.random.default_rng(seed).random(x.shape, dtype=np.float32) >= p
        return np.where(keep, x / (1 - p), 0)

    return Call([normal(draw, *a_shape(draw))], run, reference, {"p": p, "seed": seed})


# Matrix products


@case("matmul", MatMul)
def _matmul(draw: Draw) -> Call:
    shapes = draw(hnp.mutually_broadcastable_shapes(
        signature=np.matmul.signature, max_dims=2, min_side=0, max_side=3)).input_shapes
    return Call([normal(draw, *s) for s in shapes], tl.matmul, np.matmul)


@case("linear", Linear)
def _linear(draw: Draw) -> Call:
    leading, c_in, c_out = a_shape(draw, 0, 3), length(draw, 0), length(draw, 0)
    inputs = [normal(draw, *leading, c_in), normal(draw, c_in, c_out)]
    if draw(st.booleans()):
        inputs.append(normal(draw, c_out))
    return Call(inputs, tl.linear, lambda x, w, b=0: np.einsum("...i,io->...o", x, w) + b)


# Reductions


@case("sum", Sum)
def _sum(draw: Draw) -> Call:
    x = normal(draw, *a_shape(draw))
    options = {"axis": some_axes(draw, x.ndim), "keepdims": draw(st.booleans())}
    return Call([x], lambda x: tl.sum(x, **options), lambda x: np.add.reduce(x, **options), options)


@case("mean", Mean)
def _mean(draw: Draw) -> Call:
    x = normal(draw, *a_shape(draw, side=1))
    options = {"axis": some_axes(draw, x.ndim), "keepdims": draw(st.booleans())}
    return Call([x], lambda x: tl.mean(x, **options), lambda x: np.mean(x, **options), options)


@case("max", Max)
def _max(draw: Draw) -> Call:
    x = apart(draw, *a_shape(draw, side=1))
    options = {"axis": some_axes(draw, x.ndim), "keepdims": draw(st.booleans())}
    return Call([x], lambda x: tl.max(x, **options), lambda x: np.maximum.reduce(x, **options),
                options)


# Moving elements about


@case("reshape", Reshape)
def _reshape(draw: Draw) -> Call:
    x = normal(draw, *a_shape(draw))
    lengths = draw(st.permutations(x.shape))
    if len(lengths) > 1 and draw(st.booleans()):  # join two axes
        lengths = [lengths[0] * lengths[1], *lengths[2:]]
    if lengths and x.size and draw(st.booleans()):
        lengths[draw(st.integers(0, len(lengths) - 1))] = -1
    return Call([x], lambda x: tl.reshape(x, lengths), lambda x: np.reshape(x, lengths),
                {"shape": lengths})


@case("transpose", Transpose)
def _transpose(draw: Draw) -> Call:
    x = normal(draw, *a_shape(draw))
    axes = draw(st.one_of(st.none(), st.permutations(range(x.ndim))))
    if axes is not None:
        axes = [a - x.ndim * draw(st.booleans()) for a in axes]
    return Call([x], lambda x: tl.transpose(x, axes), lambda x: np.transpose(x, axes),
                {"axes": axes})


@case("index", Index)
def _index(draw: Draw) -> Call:
    x = normal(draw, *a_shape(draw, least=1, side=1))
    keys = [hnp.basic_indices(x.shape, allow_newaxis=True),
            hnp.integer_array_indices(x.shape, result_shape=hnp.array_shapes(max_dims=2)),
            hnp.arrays(np.bool_, x.shape), hnp.arrays(np.bool_, x.shape[:1])]
    key = draw(st.one_of(keys))
    return Call([x], lambda x: tl.index(x, key), lambda x: x[key], {"key": key})


def _several(draw: Draw, axis_lengths: Callable[[], int]) -> tuple[list[np.ndarray], int]:
    lengths = list(a_shape(draw, least=1, most=3))
    axis = draw(st.integers(-len(lengths), len(lengths) - 1))
    arrays = []
    for _ in range(length(draw, 1, 3)):
        lengths[axis] = axis_lengths()
        arrays.append(normal(draw, *lengths))
    return arrays, axis


@case("concatenate", Concatenate)
def _concatenate(draw: Draw) -> Call:
    arrays, axis = _several(draw, lambda: length(draw, 0, 3))
    return Call(arrays, lambda *t: tl.concatenate(t, axis), lambda *a: np.concatenate(a, axis),
                {"axis": axis})


@case("stack", Concatenate)
def _stack(draw: Draw) -> Call:
    arrays, axis = _several(draw, lambda: 2)
    return Call(arrays, lambda *t: tl.stack(t, axis), lambda *a: np.stack(a, axis), {"axis": axis})


@case("pad", Pad)
def _pad(draw: Draw) -> Call:
    x = normal(draw, *a_shape(draw, most=3))
    widths = [(length(draw, 0, 2), length(draw, 0, 2)) for _ in x.shape]
    value = draw(st.sampled_from([0.0, -1.5]))

    def reference(x: np.ndarray) -> np.ndarray:
        out = np.full([a + n + b for n, (a, b) in zip(x.shape, widths, strict=True)], value)
        out[tuple(slice(a, a + n) for n, (a, _) in zip(x.shape, widths, strict=True))] = x
        return out

    return Call([x], lambda x: tl.pad(x, widths, value), reference,
                {"widths": widths, "value": value})


@case("to_device", ToDevice)
def _to_device(draw: Draw) -> Call:
    return Call([normal(draw, *a_shape(draw))], lambda x: tl.ops.to_device(x, "cpu"), np.copy)


# Convolution and pooling


def windows(x: np.ndarray, kernel: Any, stride: Any, padding: Any, value: float) -> np.ndarray:
    """Every window of the padded x (N, H, W, C), as (N, H', W', C, kh, kw)."""
    (kh, kw), (sh, sw), (ph, pw) = both(kernel), both(stride), both(padding)
    x = np.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)), constant_values=value)
    views = np.lib.stride_tricks.sliding_window_view(x, (kh, kw), axis=(1, 2))
    return views[:, ::sh, ::sw]


def conv2d_reference(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, *,
                     stride: Any = 1, padding: Any = 0, dilation: Any = 1,
                     groups: int = 1) -> np.ndarray:
    """A convolution as a sum of SciPy's correlations of one channel with one dilated filter."""
    (sh, sw), (ph, pw), (dh, dw) = both(stride), both(padding), both(dilation)
    kh, kw, c_group, c_out = weight.shape
    dilated = np.zeros(((kh - 1) * dh + 1, (kw - 1) * dw + 1, c_group, c_out))
    dilated[::dh, ::dw] = weight
    x = np.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)))
    rows, columns = x.shape[1] - dilated.shape[0] + 1, x.shape[2] - dilated.shape[1] + 1
    y = np.zeros((len(x), rows, columns, c_out))
    for n in range(len(x)):
        for o in range(c_out):
            first = o // (c_out // groups) * c_group
            for i in range(c_group):
                y[n, :, :, o] += scipy.signal.correlate(
                    x[n, :, :, first + i], dilated[:, :, i, o], "valid", "direct")
    return y[:, ::sh, ::sw] + (0 if bias is None else bias)


def conv2d_options(draw: Draw) -> dict[str, Any]:
    """Options of a convolution and the shapes that go with them."""
    groups, kernel = length(draw, 1, 3), (length(draw, 1, 3), length(draw, 1, 3))
    options = {"stride": one_or_two(draw, 1, 3), "padding": one_or_two(draw, 0, 2),
               "dilation": one_or_two(draw, 1, 2), "groups": groups}
    fits = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in
            zip(kernel, both(options["dilation"]), both(options["padding"]), strict=True)]
    height, width = (n + length(draw, 0, 3) for n in fits)
    c_in, c_out = length(draw, 1, 2), groups * length(draw, 1, 2)
    return {"options": options, "x": (length(draw, 0, 2), height, width, groups * c_in),
            "weight": (*kernel, c_in, c_out)}


@case("conv2d", Conv2d)
def _conv2d(draw: Draw) -> Call:
    drawn = conv2d_options(draw)
    options = drawn["options"]
    inputs = [normal(draw, *drawn["x"]), normal(draw, *drawn["weight"])]
    if draw(st.booleans()):
        inputs.append(normal(draw, drawn["weight"][3]))
    return Call(inputs, lambda *t: tl.conv2d(*t, **options),
                lambda *a: conv2d_reference(*a, **options), options)


def pool_options(draw: Draw) -> tuple[tuple[int, ...], dict[str, Any]]:
    """The shape of an input and the options of a pooling that fits it."""
    kernel = one_or_two(draw, 1, 3)
    padding = draw(st.sampled_from([0, tuple(k // 2 for k in both(kernel))]))
    stride = draw(st.one_of(st.none(), st.integers(1, 3)))
    fits = [max(1, k - 2 * p) for k, p in zip(both(kernel), both(padding), strict=True)]
    size = (n + length(draw, 0, 3) for n in fits)
    return ((length(draw, 0, 2), *size, length(draw, 1, 3)),
            {"kernel": kernel, "stride": stride, "padding": padding})


@case("max_pool2d", MaxPool2d)
def _max_pool2d(draw: Draw) -> Call:
    size, options = pool_options(draw)

    def reference(x: np.ndarray) -> np.ndarray:
        stride = options["stride"] or options["kernel"]
        return windows(x, options["kernel"], stride, options["padding"], -np.inf).max((-2, -1))

    return Call([apart(draw, *size)], lambda x: tl.max_pool2d(x, **options), reference, options)


@case("avg_pool2d", AvgPool2d)
def _avg_pool2d(draw: Draw) -> Call:
    size, options = pool_options(draw)

    def reference(x: np.ndarray) -> np.ndarray:
        stride = options["stride"] or options["kernel"]
        return windows(x, options["kernel"], stride, options["padding"], 0).mean((-2, -1))

    return Call([normal(draw, *size)], lambda x: tl.avg_pool2d(x, **options), reference, options)


@case("global_avg_pool", GlobalAvgPool)
def _global_avg_pool(draw: Draw) -> Call:
    x = normal(draw, length(draw, 0), length(draw), length(draw), length(draw, 0))
    return Call([x], tl.global_avg_pool, lambda x: np.einsum("nhwc->nc", x) / (
        x.shape[1] * x.shape[2]))


# Batch normalisation


@case("batch_norm", BatchNorm)
def _batch_norm(draw: Draw) -> Call:
    mode = draw(st.sampled_from(MODES))
    leading, channels = a_shape(draw, 1, 3, side=int(mode == "train")), length(draw)
    if mode == "train" and np.prod(leading) == 1:
        leading = (*leading, 2)
    eps = draw(st.sampled_from([1e-5, 1e-2]))
    # Different in each row, so that no variance comes out so small that it blows up rounding.
    x = apart(draw, *leading)[..., None] * uniform(draw, 0.5, 2, channels)
    inputs = [x + normal(draw, channels), uniform(draw, 0.5, 2, channels), normal(draw, channels)]
    running = normal(draw, channels), uniform(draw, 0.5, 2, channels)

    def run(x: tl.Tensor, gamma: tl.Tensor, beta: tl.Tensor) -> tl.Tensor:
        # Fresh copies: mode train writes to them.
        mean, var = (tl.Tensor(r.astype(x.dtype), device=x.device).data for r in running)
        return tl.batch_norm(x, gamma, beta, mean, var, mode=mode, eps=eps)

    def reference(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
        leading = tuple(range(x.ndim - 1))
        mean, var = (x.mean(leading), x.var(leading)) if mode == "train" else running
        return (x - mean) / np.sqrt(var + eps) * gamma + beta

    return Call(inputs, run, reference, {"mode": mode, "eps": eps})


# Losses


@case("softmax", Softmax)
def _softmax(draw: Draw) -> Call:
    x = normal(draw, *a_shape(draw, 0, 3), length(draw))
    return Call([x], tl.softmax, lambda x: scipy.special.softmax(x, axis=-1))


@case("log_softmax", LogSoftmax)
def _log_softmax(draw: Draw) -> Call:
    x = normal(draw, *a_shape(draw, 0, 3), length(draw))
    return Call([x], tl.log_softmax, lambda x: x - scipy.special.logsumexp(x, -1, keepdims=True))


@case("cross_entropy", CrossEntropy)
def _cross_entropy(draw: Draw) -> Call:
    how = draw(st.sampled_from(REDUCTIONS))
    rows, classes = length(draw, int(how == "mean"), 5), length(draw)
    labels = rng(draw).integers(classes, size=rows)

    def reference(logits: np.ndarray) -> np.ndarray:
        each = [np.log(np.exp(row).sum()) - row[i] for row, i in zip(logits, labels, strict=True)]
        return {"none": np.array, "sum": np.sum, "mean": np.mean}[how](each)

    return Call([3 * normal(draw, rows, classes)], lambda x: tl.cross_entropy(x, labels, how),
                reference, {"labels": labels, "reduction": how})


# Recurrence


@case("temporal_skip", TemporalSkip)
def _temporal_skip(draw: Draw) -> Call:
    chunks, frames, rest = length(draw, 0, 3), length(draw), a_shape(draw, 0, 2)
    dropped = draw(st.sampled_from(["none", "first of y", "last of x"])) if frames > 1 else "none"
    y = normal(draw, chunks * (frames - (dropped == "first of y")), *rest)
    x = normal(draw, chunks * (frames - (dropped == "last of x")), *rest)

    def reference(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        out = y.reshape(chunks, -1, *rest).copy() if y.size else y.copy()
        if y.size and frames > 1:
            before = x.reshape(chunks, -1, *rest)[:, : frames - 1]
            out[:, out.shape[1] - (frames - 1):] += before
        return out.reshape(y.shape)

    return Call([y, x], lambda y, x: tl.temporal_skip(y, x, frames), reference,
                {"frames": frames, "dropped": dropped})


def gru_reference(x: np.ndarray, lengths: Any, w_ih: np.ndarray, w_hh: np.ndarray,
                  b_ih: np.ndarray, b_hh: np.ndarray, h0: np.ndarray | None = None) -> np.ndarray:
    """A gated recurrent unit, one sequence and one step at a time."""
    hidden = len(w_hh)
    out = np.zeros((*x.shape[:2], hidden))
    for b, steps in enumerate([x.shape[1]] * len(x) if lengths is None else lengths):
        h = np.zeros(hidden) if h0 is None else h0[b]
        for t in range(steps):
            xr, xz, xn = np.split(x[b, t] @ w_ih + b_ih, 3)
            hr, hz, hn = np.split(h @ w_hh + b_hh, 3)
            r, z = scipy.special.expit(xr + hr), scipy.special.expit(xz + hz)
            h = (1 - z) * np.tanh(xn + r * hn) + z * h
            out[b, t] = h
    return out


@case("gru", GRU)
def _gru(draw: Draw) -> Call:
    batch, steps, features, hidden = (length(draw, n, 3) for n in (0, 0, 1, 1))
    steps += length(draw, 0, 2)
    lengths = draw(st.one_of(st.none(), st.lists(st.integers(0, steps), min_size=batch,
                                                 max_size=batch)))
    lengths = lengths if lengths is None else np.array(lengths, np.int64)
    inputs = [normal(draw, batch, steps, features), normal(draw, features, 3 * hidden),
              normal(draw, hidden, 3 * hidden), normal(draw, 3 * hidden), normal(draw, 3 * hidden)]
    if draw(st.booleans()):
        inputs.append(normal(draw, batch, hidden))
    return Call(inputs, lambda x, *rest: tl.gru(x, lengths, *rest),
                lambda x, *rest: gru_reference(x, lengths, *rest), {"lengths": lengths})
