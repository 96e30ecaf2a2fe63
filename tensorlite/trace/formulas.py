"""The formula of every op, forward and backward, as the page and the terminal show it.

Formulas are plain text in the names of the op's inputs (`slots`), `y` for its output and `g` for
the gradient of that; the op's options and shapes are put in. `forward_numbers` and
`backward_numbers` put the numbers in as well, where they are few.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tensorlite.autograd import Function, Node
from tensorlite.ops.casting import Cast
from tensorlite.ops.convolution import Conv2d
from tensorlite.ops.fused import Activate, BlockJoin, ConvNorm, FoldedConvNorm
from tensorlite.ops.linear import MatMul
from tensorlite.ops.loss import CrossEntropy, LogSoftmax, Softmax
from tensorlite.ops.normalisation import BatchNorm
from tensorlite.ops.pooling import AvgPool2d, GlobalAvgPool, MaxPool2d
from tensorlite.ops.recurrence import GRU, TemporalSkip
from tensorlite.ops.reduction import Max, Mean, Sum
from tensorlite.ops.shape import Concatenate, Index, Pad, Reshape, ToDevice, Transpose
from tensorlite.tensor import Tensor

from .expressions import (
    EXPRESSIONS,
    Expression,
    Shape,
    axes_text,
    expression,
    key_text,
    op_of,
    reduced,
    slots,
    substitute,
    summed_axes,
    symbols,
)
from .numbers import backward_numbers, forward_numbers

__all__ = ["backward_numbers", "formulas", "forward_numbers", "slots"]

# The formula of the forward, and for each input the right-hand side of its gradient.
_Text = tuple[str, Sequence[str]]
_TEXTS: dict[type[Function], Callable[[Node], _Text]] = {}


def formulas(node: Node, output: Tensor | None = None) -> tuple[str, str]:
    """The formulas of one application of an op: forward, and backward for the inputs whose
    gradient is wanted; each a few lines. `output` is what it returned, for its shape."""
    written = expression(node)
    if written is not None:
        return _forward(node, output, written), _of_expression(node, output, written)
    op = op_of(node)
    if op not in _TEXTS:
        doc = (node.function.__doc__ or "").strip().splitlines()
        taken = ", ".join(slots(node))
        return doc[0] if doc else f"y = {node.name}({taken})", "by its own backward"
    forward, backward = _TEXTS[op](node)
    return forward + _shapes_line(node, output), _lines(node, backward)


def known() -> set[type[Function]]:
    """The ops that have formulas of their own here."""
    return {*_TEXTS, *EXPRESSIONS}


def _describes(function: type[Function]) -> Callable[[Callable[[Node], _Text]], Any]:
    def enter(text: Callable[[Node], _Text]) -> Callable[[Node], _Text]:
        _TEXTS[function] = text
        return text

    return enter


# How formulas of expressions get their shapes.


def _forward(node: Node, output: Tensor | None, written: Expression) -> str:
    if not written.with_shapes:
        note = f"\n({written.note})" if written.note else ""
        return f"y = {written.forward}{note}{_shapes_line(node, output)}"
    left = "y" if output is None else _with_shape("y", output.shape)
    return f"{left} = {_put_shapes(node, output, written.forward)}"


def _of_expression(node: Node, output: Tensor | None, written: Expression) -> str:
    def right(text: str, full: Shape, shape: Shape) -> str:
        product = "@" in text or "outer" in text
        shown = _put_shapes(node, output, text) if product else text
        return reduced(shown, summed_axes(full, shape))

    return _lines(node, [
        "" if tensor is None else right(text, full, tensor.shape)
        for tensor, text, full in zip(node.inputs, written.backward, written.full, strict=False)],
        written.with_shapes)


def _put_shapes(node: Node, output: Tensor | None, text: str) -> str:
    texts = {name: _with_shape(name, tensor.shape)
             for name, tensor in zip(symbols(node), node.inputs, strict=True) if tensor is not None}
    if output is not None:
        texts["g"] = _with_shape("g", output.shape)
    for name, tensor in zip(symbols(node), node.inputs, strict=True):
        if tensor is not None and f"{name}ᵀ" in text:
            turned = (*tensor.shape[:-2], *tensor.shape[:-3:-1])
            return substitute(text.replace(f"{name}ᵀ", f"{name}ᵀ {turned}"),
                              {k: v for k, v in texts.items() if k != name})
    return substitute(text, texts)


def _with_shape(name: str, shape: Shape) -> str:
    return f"{name} {shape}" if shape else name


def _shapes_line(node: Node, output: Tensor | None) -> str:
    """The shapes on a line of their own: "x (2, 3), weight (3,) → y (2, 3)"."""
    given = [_with_shape(name, tensor.shape)
             for name, tensor in zip(symbols(node), node.inputs, strict=True) if tensor is not None]
    if all(tensor is None or not tensor.shape for tensor in node.inputs):
        return ""
    made = "" if output is None else f" → {_with_shape('y', output.shape)}"
    return f"\n{', '.join(given)}{made}"


def _lines(node: Node, backward: Sequence[str], with_shapes: bool = False) -> str:
    wanted = [f"∂{_with_shape(name, tensor.shape) if with_shapes else name} = {text}"
              for name, tensor, text, need in zip(symbols(node), node.inputs, backward, node.needs,
                                                  strict=False)
              if tensor is not None and need]
    return "\n".join(wanted) or "no input wants a gradient"


def _input(node: Node) -> Tensor:
    """The first input, which no op can do without."""
    (tensor, *_) = node.inputs
    assert tensor is not None
    return tensor


# The ops whose formulas need words, or index by index.


@_describes(MatMul)  # of a stack of matrices and a vector: the others are expressions
def _matmul(node: Node) -> _Text:
    return "y = a @ b, matrix by matrix", ["g @ bᵀ, each g a column or row",
                                       "aᵀ @ g, each g a column or row, summed over the matrices"]


def _axes_of(node: Node) -> str:
    axes, ndim = node.options["axes"], _input(node).ndim
    return "all elements" if len(axes) == ndim else axes_text(axes)


@_describes(Sum)
def _sum(node: Node) -> _Text:
    return f"y = Σ x over {_axes_of(node)}", ["g, the same for every element of a sum"]


@_describes(Mean)
def _mean(node: Node) -> _Text:
    x = _input(node)
    count = math.prod(x.shape[a] for a in node.options["axes"])
    return (f"y = (Σ x) / {count} over {_axes_of(node)}",
            [f"g / {count}, the same for every element of a mean"])


@_describes(Max)
def _max(node: Node) -> _Text:
    return (f"y = max x over {_axes_of(node)}",
            ["g where x is the maximum, else 0; equal maxima share it evenly"])


@_describes(Softmax)
def _softmax(node: Node) -> _Text:
    return "y = e^x / Σ e^x over the last axis", ["y · (g - Σ g · y over the last axis)"]


@_describes(LogSoftmax)
def _log_softmax(node: Node) -> _Text:
    return "y = x - log Σ e^x over the last axis", ["g - e^y · (Σ g over the last axis)"]


@_describes(CrossEntropy)
def _cross_entropy(node: Node) -> _Text:
    rows, reduction = _input(node).shape[0], node.options["reduction"]
    each = "-log softmax(logits)[n, label[n]]"
    error = "(softmax(logits) - onehot(label))"
    if reduction == "mean":
        return f"y = 1/{rows} · Σ_n {each}", [f"g / {rows} · {error}"]
    if reduction == "sum":
        return f"y = Σ_n {each}", [f"g · {error}"]
    return f"y[n] = {each}", [f"g[n] · {error}[n]"]


@_describes(BatchNorm)
def _batch_norm(node: Node) -> _Text:
    x, mode = _input(node), node.options["mode"]
    hat = f"(x - μ) / √(σ² + {node.options['eps']:g})"
    if mode == "train":
        count = math.prod(x.shape[:-1])
        return (f"y = γ · x̂ + β, x̂ = {hat}\n"
                f"μ, σ² of the {count} values of each channel in this batch",
                [f"γ / √(σ² + ε) · (g - 1/{count} Σ g - x̂ · 1/{count} Σ g · x̂)\n"
                 "   (the two means: μ and σ² depend on x as well)",
                 "Σ g · x̂ for each channel", "Σ g for each channel"])
    return (f"y = γ · x̂ + β, x̂ = {hat}\n"
            f"μ, σ² are the running statistics (mode {mode!r}), constants",
            ["γ / √(σ² + ε) · g", "Σ g · x̂ for each channel", "Σ g for each channel"])


def _place(position: str, offset: str, stride: int, padding: int, dilation: int) -> str:
    """Where a window at `position` reads its row `offset`: "2i + a - 1"."""
    first = position if stride == 1 else f"{stride}{position}"
    second = offset if dilation == 1 else f"{dilation}{offset}"
    return f"{first} + {second}{f' - {padding}' if padding else ''}"


def _read(options: dict[str, Any]) -> tuple[str, str]:
    dilation = options.get("dilation", (1, 1))
    return (_place("i", "a", options["stride"][0], options["padding"][0], dilation[0]),
            _place("j", "b", options["stride"][1], options["padding"][1], dilation[1]))


def _convolution(geometry: dict[str, Any], g: str = "g") -> tuple[str, list[str]]:
    row, column = _read(geometry)
    groups = geometry["groups"]
    notes = ["x is 0 outside its borders"] * any(geometry["padding"])
    notes += [f"c counts within the group of o, of {groups}"] * (groups > 1)
    note = f"\n({'; '.join(notes)})" if notes else ""
    read, weight, grad = f"x[n, {row}, {column}, c]", "weight[a, b, c, o]", f"{g}[n, i, j, o]"
    return (f"Σ_{{a, b, c}} {read} · {weight}{{bias}}{note}",
            [f"Σ_{{a, b, o}} {grad} · {weight} over the (i, j) where\n"
             f"   y read this element of x: ({row}, {column}) is its place",
             f"Σ_{{n, i, j}} {grad} · {read}",
             f"Σ_{{n, i, j}} {grad}"])


@_describes(Conv2d)
def _conv2d(node: Node) -> _Text:
    forward, backward = _convolution(node.options)
    bias = "" if node.inputs[2] is None else " + bias[o]"
    return f"y[n, i, j, o] = {forward.replace('{bias}', bias)}", backward


def _window(options: dict[str, Any]) -> str:
    (height, width), (down, along) = options["kernel"], options["stride"]
    padding = options["padding"]
    border = f", padding {padding[0]} x {padding[1]}" if any(padding) else ""
    return f"{height} x {width}, moved by {down} x {along}{border}"


@_describes(MaxPool2d)
def _max_pool2d(node: Node) -> _Text:
    row, column = _read(node.options)
    deferred = "" if node.options["source"] is None else " of x's norm and relu"
    return (f"y[n, i, j, c] = max over (a, b) of x[n, {row}, {column}, c]{deferred}\n"
            f"windows of {_window(node.options)}",
            ["g of each window to the element that was its maximum, 0 to the others"])


@_describes(AvgPool2d)
def _avg_pool2d(node: Node) -> _Text:
    row, column = _read(node.options)
    count = math.prod(node.options["kernel"])
    return (f"y[n, i, j, c] = 1/{count} Σ_{{a, b}} x[n, {row}, {column}, c]\n"
            f"windows of {_window(node.options)}",
            [f"g / {count} of each window to each of its elements, added up where windows overlap"])


@_describes(GlobalAvgPool)
def _global_avg_pool(node: Node) -> _Text:
    height, width = _input(node).shape[1:3]
    return (f"y[n, c] = 1/{height * width} Σ_{{i, j}} x[n, i, j, c]",
            [f"g[n, c] / {height * width} for every (i, j)"])


@_describes(TemporalSkip)
def _temporal_skip(node: Node) -> _Text:
    # The op's own first input is called y: its output is `out` here.
    return (f"out[t] = y[t] + x[t - 1]; x[-1] = 0\nframes t in chunks of "
            f"{node.options['frames']}: each takes up what the frame before it passes on",
            ["g", "g one frame back: ∂x[t] = g[t + 1], 0 for the last frame of a chunk"])


@_describes(GRU)
def _gru(node: Node) -> _Text:
    return ("y = h, at each step t of each sequence\n"
            "r = σ(x[t] W_ir + b_ir + h[t-1] W_hr + b_hr)\n"
            "z = σ(x[t] W_iz + b_iz + h[t-1] W_hz + b_hz)\n"
            "n = tanh(x[t] W_in + b_in + r · (h[t-1] W_hn + b_hn))\n"
            "h[t] = (1 - z) · n + z · h[t-1]",
            ["δi[t] @ w_ihᵀ, with, from the last step to the first,\n"
             "   ∂h[t] = g[t] + what step t + 1 sent back\n"
             "   δn = ∂h[t] · (1 - z) · (1 - n²)\n"
             "   δz = ∂h[t] · (h[t-1] - n) · z · (1 - z)\n"
             "   δr = δn · (h[t-1] W_hn + b_hn) · r · (1 - r)\n"
             "   δi = (δr, δz, δn), δh = (δr, δz, r · δn)\n"
             "   sent back: ∂h[t] · z + δh @ w_hhᵀ",
             "Σ_t x[t]ᵀ @ δi[t]", "Σ_t h[t-1]ᵀ @ δh[t]", "Σ_t δi[t]", "Σ_t δh[t]",
             "what step 1 sent back"])


@_describes(Reshape)
def _reshape(node: Node) -> _Text:
    return (f"y = the elements of x in the shape {_tuple(node.options['shape'])}",
            [f"the elements of g in the shape {_input(node).shape}"])


def _tuple(shape: Any) -> str:
    return str(tuple(int(n) for n in shape)) if isinstance(shape, tuple | list) else f"({shape},)"


@_describes(Transpose)
def _transpose(node: Node) -> _Text:
    axes = node.options["axes"]
    back = tuple(sorted(range(len(axes)), key=lambda i: axes[i]))
    return f"y = x with its axes in the order {axes}", [f"g with its axes in the order {back}"]


@_describes(Index)
def _index(node: Node) -> _Text:
    key = key_text(node.options["key"])
    return f"y = x[{key}]", [f"0 everywhere, then ∂x[{key}] += g"]


@_describes(Concatenate)
def _concatenate(node: Node) -> _Text:
    axis, start, backward = node.options["axis"], 0, []
    for tensor in node.inputs:
        assert tensor is not None
        stop = start + tensor.shape[axis]
        backward.append(f"g[{':, ' * axis}{start}:{stop}]")
        start = stop
    return f"y = {', '.join(slots(node))} one after the other along axis {axis}", backward


@_describes(Pad)
def _pad(node: Node) -> _Text:
    inside = ", ".join(f"{before}:{before + n}" for (before, _), n in
                       zip(node.options["widths"], _input(node).shape, strict=True))
    return (f"y = {node.options['value']:g} everywhere, then y[{inside}] = x",
            [f"g[{inside}]" if inside else "g"])


@_describes(Cast)
def _cast(node: Node) -> _Text:
    return f"y = x as {node.options['dtype']}", [f"g as {_input(node).dtype}"]


@_describes(ToDevice)
def _to_device(node: Node) -> _Text:
    return f"y = x on {node.options['device']}", [f"g on {_input(node).device}"]


# The fused ops stand for several simple ones each.


@_describes(Activate)
def _activate(node: Node) -> _Text:
    if node.options["norm"].relu:
        return "y = max(z · scale + shift, 0), the norm of z stored after all", ["g · (y > 0)"]
    return "y = z · scale + shift, the norm of z stored after all", ["g"]


@_describes(ConvNorm)
def _conv_norm(node: Node) -> _Text:
    options = node.options
    forward, backward = _convolution(options["geometry"], "∂z")
    normed = "" if options["source"] is None else "; x read through its own norm"
    statistics = "this batch" if options["train"] else "the running statistics"
    mean_terms = " - mean(g) - ẑ · mean(g · ẑ)" if options["train"] else ""
    return (f"y = norm(z), z[n, i, j, o] = {forward.replace('{bias}', '')}{normed}\n"
            f"norm(z) = γ · ẑ + β, ẑ = (z - μ) / √(σ² + ε), by {statistics}",
            [f"{backward[0]}\n   ∂z = γ / √(σ² + ε) · (g{mean_terms})", backward[1],
             "Σ g · ẑ for each channel", "Σ g for each channel"])


@_describes(FoldedConvNorm)
def _folded_conv_norm(node: Node) -> _Text:
    forward, _ = _convolution(node.options["geometry"])
    text = f"norm({forward.splitlines()[0].replace('{bias}', '')})"
    text += "" if node.inputs[4] is None else " + residual"
    return f"y = max({text}, 0)" if node.options["relu"] else f"y = {text}", []


@_describes(BlockJoin)
def _block_join(node: Node) -> _Text:
    before = " + before[t - 1]" if len(node.inputs) > 2 else ""
    return (f"y[t] = max(residual[t] + skip[t]{before}, 0)",
            ["g · (y > 0)", "g · (y > 0)", "g · (y > 0) one frame back, 0 for a chunk's last"])
