"""The formulas of one step with its numbers put in, to be followed by hand.

"w · x = 2 · 3 = 6" where arrays are small; of larger products one element is worked out. The result
is what the op returned and what its backward sent, not what the formula comes to: where the two
differ, the text says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from tensorlite.autograd import Function, Node
from tensorlite.device import Array, to_device
from tensorlite.ops.convolution import Conv2d
from tensorlite.ops.linear import Linear, MatMul
from tensorlite.ops.loss import CrossEntropy, LogSoftmax, Softmax
from tensorlite.ops.normalisation import BatchNorm
from tensorlite.ops.pooling import AvgPool2d, GlobalAvgPool, MaxPool2d
from tensorlite.ops.recurrence import TemporalSkip
from tensorlite.ops.reduction import Max, Mean, Sum
from tensorlite.ops.shape import Index
from tensorlite.tensor import Tensor

from .expressions import (
    Expression,
    evaluate,
    expression,
    kept,
    key_text,
    op_of,
    reduced,
    substitute,
    summed,
    summed_axes,
    symbols,
)

MOST = 6  # elements of an array that is written out
TERMS = 9  # of a sum that is written out

Outgoing = Sequence[Array | None]
Place = tuple[int, ...]


@np.errstate(all="ignore")
def forward_numbers(node: Node, output: Tensor,
                    names: Sequence[str | None] | None = None) -> str | None:
    """The op's formula with the numbers of this application; None where they are too many.

    names: of the variables that hold the inputs, where they are known.
    """
    step = _Step(node, names)
    y = output.data
    if step.empty:
        return None
    written = expression(node)
    if written is not None and step.small(y):
        return _forward_expression(step, written, y)
    if written is not None and written.elementwise and y.size:
        return _forward_expression(step, written, y, _middle(y.shape))
    special = _FORWARD.get(step.op)
    text = None if special is None else special(step, y)
    if text is None and written is None and step.small(y):
        taken = ", ".join(_text(array) for array in step.arrays if array is not None)
        text = f"{node.name}({taken}) = {_text(y)}"
    return text


@np.errstate(all="ignore")
def backward_numbers(node: Node, grad: Array, outgoing: Outgoing,
                     names: Sequence[str | None] | None = None) -> str | None:
    """The formulas of the gradients with the numbers of this step, a line for each input whose
    gradient was sent; None where they are too many."""
    step = _Step(node, names)
    lines: list[str] = []
    if step.empty:
        return None
    written = expression(node)
    if written is not None and step.small(grad):
        lines = _backward_expression(step, written, grad, outgoing)
    elif written is not None and written.elementwise and grad.size:
        lines = _backward_expression(step, written, grad, outgoing, _middle(grad.shape))
    elif step.op in _BACKWARD:
        lines = list(_BACKWARD[step.op](step, grad, outgoing))
    if not lines and written is None and step.small(grad):
        lines = [f"{step.gradient(slot)} = {_text(sent)}, from g = {_text(grad)}"
                 for slot, sent in enumerate(outgoing) if sent is not None]
    return "\n".join(lines) or None


class _Step:
    """One application of an op: its arrays (None for an input left out), what to call them."""

    def __init__(self, node: Node, names: Sequence[str | None] | None) -> None:
        self.node, self.op = node, op_of(node)
        self.arrays: list[Any] = [None if t is None else t.data for t in node.inputs]
        self.slots = symbols(node)
        self.names = [_called(name) or slot
                      for name, slot in zip(names or [None] * len(self.slots), self.slots,
                                            strict=True)]
        if len(set(self.names)) < len(set(node.inputs)):  # two tensors of one name
            self.names = list(self.slots)

    @property
    def empty(self) -> bool:
        """Whether there are no numbers to put in."""
        return any(array is not None and not array.size for array in self.arrays)

    def small(self, *others: Array) -> bool:
        """Whether the inputs and `others` are all small enough to be written out."""
        return all(array.size <= MOST for array in (*self.arrays, *others) if array is not None)

    def host(self, slot: int) -> np.ndarray:
        """An input, on the CPU."""
        return to_device(self.arrays[slot], "cpu")

    def values(self, place: Place | None = None, grad: Array | None = None
               ) -> dict[str, np.ndarray]:
        """What formulas have names for, of the whole arrays or of the element at `place`."""
        arrays = dict(zip(self.slots, self.arrays, strict=True)) | kept(self.node)
        if grad is not None:
            arrays["g"] = grad
        return {name: to_device(array, "cpu") if place is None else _picked(array, place)
                for name, array in arrays.items() if array is not None}

    def renamed(self, text: str) -> str:
        """A formula in terms of the variables of the program."""
        return substitute(text, dict(zip(self.slots, self.names, strict=True)))

    def gradient(self, slot: int) -> str:
        """"∂x"; for one tensor in two places also which place."""
        name = self.names[slot]
        place = f" (as {self.slots[slot]})" if self.names.count(name) > 1 else ""
        return f"∂{name}{place}"


def _called(name: str | None) -> str | None:
    """The name of a tensor as a formula can have it: a variable's, a parameter's own."""
    last = (name or "").partition("%")[0].partition(" (")[0].rpartition(".")[2]
    fits = re.fullmatch(r"[A-Za-z_]\w*(\[\d+\])?", last, re.ASCII)
    return last if fits and last not in ("g", "y", "m", "e") else None


def _number(value: float) -> str:
    text = f"{float(value):.4g}"
    return "0" if text == "-0" else text


def _text(array: Array) -> str:
    """An array as nested lists, a scalar as a number, to 4 significant digits."""
    data = to_device(array, "cpu") if hasattr(array, "dtype") else np.asarray(array)
    if data.ndim == 0:
        return _number(float(data))
    return f"[{', '.join(_text(part) for part in data)}]"


def _factor(array: Array) -> str:
    """`_text` for the middle of a formula."""
    text = _text(array)
    return f"({text})" if text.startswith("-") else text


def _agree(actual: np.ndarray, expected: np.ndarray, operands: float) -> bool:
    """Whether they are the same but for rounding, which is relative to the size of the `operands`,
    of which sums and differences may leave little."""
    if actual.shape != expected.shape:
        return False
    if not np.isfinite(operands):
        operands = 0.0
    good = np.isfinite(expected)
    wide, close = actual.astype(np.float64), expected.astype(np.float64)
    size = np.abs(close, where=good, out=np.zeros(close.shape)).max(initial=0.0)
    tolerance = 1e-2 if actual.dtype.itemsize < 4 else 1e-4
    rounding = 64 * float(np.finfo(actual.dtype).eps) * operands if actual.dtype.kind == "f" else 0
    return bool(np.allclose(wide[good], close[good], rtol=tolerance,
                            atol=tolerance * size + rounding))


def _equation(parts: Sequence[str], expected: Array, actual: Array, gave: str,
              operands: float = 0.0) -> str:
    """"a · b = 2 · 3 = 6", of its parts and the result; with what the formula comes to where the op
    `gave` something else. operands: see `_agree`."""
    actual = np.asarray(to_device(actual, "cpu"))
    expected = np.asarray(expected)
    agree = _agree(actual, expected, operands)
    chain = [*parts, _text(actual if agree else expected)]
    text = " = ".join(part for i, part in enumerate(chain) if i == 0 or part != chain[i - 1])
    return text if agree else f"{text}, but {gave} {_text(actual)}"


RETURNED, SENT = "the op returned", "its backward sent"


def _forward_expression(step: _Step, written: Expression, y: Array,
                        place: Place | None = None) -> str:
    values = step.values(place)
    put_in = substitute(written.forward, {k: _factor(v) for k, v in values.items()})
    if place is not None:
        parts, y = [_placed("y", place), put_in], _picked(y, place)
    else:
        parts = [step.renamed(written.forward), put_in]
    return _equation(parts, evaluate(written.forward, values), y, RETURNED)


def _backward_expression(step: _Step, written: Expression, grad: Array, outgoing: Outgoing,
                         place: Place | None = None) -> list[str]:
    values, lines = step.values(place, grad), []
    for slot, sent in enumerate(outgoing):
        if sent is None:
            continue
        text, shape = written.backward[slot], step.arrays[slot].shape
        axes = summed_axes(written.full[slot], shape)
        put_in = _text(values["g"]) if text == "g" else substitute(
            text, {k: _factor(v) for k, v in values.items()})
        value = evaluate(text, values)
        if place is None:
            lines.append(_equation([step.gradient(slot), reduced(step.renamed(text), axes),
                                    reduced(put_in, axes)], summed(value, shape), sent, SENT,
                                   _size(value) if axes else 0.0))
        elif not axes:
            put_in = _placed("g", place) if text == "g" else put_in
            lines.append(_equation([_placed(step.gradient(slot), place), put_in], value,
                                   _picked(sent, place), SENT))
    return lines


def _middle(shape: tuple[int, ...]) -> Place:
    """The element that stands for a large array: of images one in the middle of the first."""
    if len(shape) == 4:
        return 0, shape[1] // 2, shape[2] // 2, 0
    return (0,) * len(shape)


def _picked(array: Array, place: Place) -> np.ndarray:
    """The element that has a part in the output's element at `place`."""
    own = place[len(place) - array.ndim:]
    return to_device(array[tuple(i if n > 1 else 0 for i, n in zip(own, array.shape, strict=True))],
                     "cpu")


# Ops whose formulas need words, and one element of large products.

_Forward = Callable[[_Step, Array], str | None]
_Backward = Callable[[_Step, Array, Outgoing], Iterable[str]]
_FORWARD: dict[type[Function], _Forward] = {}
_BACKWARD: dict[type[Function], _Backward] = {}


def _enter(table: dict, *functions: type[Function]) -> Callable:
    def enter(text: Callable) -> Callable:
        table.update(dict.fromkeys(functions, text))
        return text

    return enter


Term = tuple[Array, Place, Array, Place]  # array[place] · other[place]


def _element(name: str, place: Place, terms: Sequence[Term], actual: Array, gave: str,
             constant: float | None = None) -> list[str]:
    """One element as a sum of products: "y[0, 1] = 1 · 2 + 3 · 4 = 14"; [] if there are too many.
    """
    if not 0 < len(terms) <= TERMS:
        return []
    pairs = [(a[i], b[j]) for a, i, b, j in terms]
    text = " + ".join(f"{_factor(a)} · {_factor(b)}" for a, b in pairs)
    expected = sum(float(a) * float(b) for a, b in pairs)
    if constant is not None:
        text, expected = f"{text} + {_factor(np.asarray(constant))}", expected + constant
    return [_equation([_placed(name, place), text], np.asarray(expected),
                      to_device(actual[place], "cpu"), gave,
                      sum(abs(float(a) * float(b)) for a, b in pairs))]


def _placed(name: str, place: Place) -> str:
    return f"{name}[{', '.join(map(str, place))}]"


@_enter(_FORWARD, Linear, MatMul)
def _product(step: _Step, y: Array) -> str | None:
    a, b = step.arrays[:2]
    bias = step.arrays[2] if len(step.arrays) > 2 else None
    if a.ndim != 2 or b.ndim != 2 or not y.size:
        return None
    terms = [(a, (0, k), b, (k, 0)) for k in range(a.shape[1])]
    constant = None if bias is None else float(bias[0])
    return "\n".join(_element("y", (0, 0), terms, y, RETURNED, constant)) or None


@_enter(_BACKWARD, Linear, MatMul)
def _product_back(step: _Step, g: Array, outgoing: Outgoing) -> Iterable[str]:
    a, b = step.arrays[:2]
    if a.ndim != 2 or b.ndim != 2 or not g.size or not a.size:
        return
    if outgoing[0] is not None:
        terms = [(g, (0, k), b, (0, k)) for k in range(g.shape[1])]
        yield from _element(step.gradient(0), (0, 0), terms, outgoing[0], SENT)
    if outgoing[1] is not None:
        terms = [(a, (k, 0), g, (k, 0)) for k in range(a.shape[0])]
        yield from _element(step.gradient(1), (0, 0), terms, outgoing[1], SENT)
    if len(outgoing) > 2 and outgoing[2] is not None and len(g) <= TERMS:
        yield _total(_placed(step.gradient(2), (0,)), g[:, 0], outgoing[2][0])


def _total(left: str, column: Array, actual: Array) -> str:
    values = to_device(column, "cpu").reshape(-1)
    return _equation([left, " + ".join(_factor(v) for v in values)],
                     np.asarray(values.sum(dtype=np.float64)), to_device(actual, "cpu"), SENT,
                     _size(values))


def _size(*arrays: np.ndarray) -> float:
    return float(sum(np.abs(array).sum(dtype=np.float64) for array in arrays))


def _windows(node: Node, x: Array, kernel: tuple[int, int]
             ) -> Callable[[int, int], list[tuple[int, ...]]]:
    """For the window at (i, j): its (a, b, row, column) that lie within x."""
    options = node.options
    (down, along), (top, left) = options["stride"], options["padding"]
    height, width = kernel
    (da, db) = options.get("dilation", (1, 1))

    def read(i: int, j: int) -> list[tuple[int, ...]]:
        places = [(a, b, down * i - top + da * a, along * j - left + db * b)
                  for a in range(height) for b in range(width)]
        return [p for p in places if 0 <= p[2] < x.shape[1] and 0 <= p[3] < x.shape[2]]

    return read


@_enter(_FORWARD, Conv2d)
def _convolved(step: _Step, y: Array) -> str | None:
    x, weight, bias = step.arrays
    if not y.size or weight.shape[2] > TERMS:
        return None
    _, i, j, _ = place = _middle(y.shape)
    read = _windows(step.node, x, weight.shape[:2])
    terms = [(x, (0, p, q, c), weight, (a, b, c, 0))
             for a, b, p, q in read(i, j) for c in range(weight.shape[2])]
    constant = None if bias is None else float(bias[0])
    return "\n".join(_element("y", place, terms, y, RETURNED, constant)) or None


@_enter(_BACKWARD, Conv2d)
def _convolved_back(step: _Step, g: Array, outgoing: Outgoing) -> Iterable[str]:
    x, weight, _ = step.arrays
    if not g.size or g[..., 0].size > 64:  # an element of ∂weight has as many terms
        return
    read = _windows(step.node, x, weight.shape[:2])
    used = [(n, i, j, *place) for n in range(g.shape[0]) for i in range(g.shape[1])
            for j in range(g.shape[2]) for place in read(i, j)]
    if outgoing[0] is not None:
        row, column = x.shape[1] // 2, x.shape[2] // 2
        outputs = range(weight.shape[3] // step.node.options["groups"])
        terms = [(g, (n, i, j, o), weight, (a, b, 0, o)) for n, i, j, a, b, p, q in used
                 if (n, p, q) == (0, row, column) for o in outputs]
        yield from _element(step.gradient(0), (0, row, column, 0), terms, outgoing[0], SENT)
    if outgoing[1] is not None:
        centre = (weight.shape[0] // 2, weight.shape[1] // 2)
        terms = [(x, (n, p, q, 0), g, (n, i, j, 0)) for n, i, j, a, b, p, q in used
                 if (a, b) == centre]
        yield from _element(step.gradient(1), (*centre, 0, 0), terms, outgoing[1], SENT)
    if outgoing[2] is not None and g[..., 0].size <= TERMS:
        yield _total(_placed(step.gradient(2), (0,)), g[..., 0], outgoing[2][0])


@_enter(_FORWARD, MaxPool2d, AvgPool2d, GlobalAvgPool)
def _pooled(step: _Step, y: Array) -> str | None:
    x = step.arrays[0]
    if not y.size or step.node.options.get("source") is not None:
        return None
    place: Place
    if step.op is GlobalAvgPool:
        place, window = (0, 0), x[0, :, :, 0]
        count = window.size
    else:
        kernel = step.node.options["kernel"]
        place = _middle(y.shape)
        window = [x[0, p, q, 0] for _, _, p, q in _windows(step.node, x, kernel)(*place[1:3])]
        count = int(np.prod(kernel))
    if count > TERMS:
        return None
    values = np.asarray([float(v) for v in np.ravel(window)] if isinstance(window, list)
                        else to_device(window, "cpu").reshape(-1))
    largest = step.op is MaxPool2d
    text = (f"max({', '.join(map(_text, values))})" if largest
            else f"({' + '.join(map(_factor, values))}) / {count}")
    expected = values.max() if largest else values.sum(dtype=np.float64) / count
    return _equation([_placed("y", place), text], np.asarray(expected),
                     to_device(y[place], "cpu"), RETURNED, _size(values))


@_enter(_BACKWARD, GlobalAvgPool)
def _pooled_back(step: _Step, g: Array, outgoing: Outgoing) -> Iterable[str]:
    if outgoing[0] is not None and g.size:
        count = int(np.prod(step.arrays[0].shape[1:3]))
        yield _equation([_placed(step.gradient(0), (0, 0, 0, 0)),
                         f"{_factor(g[0, 0])} / {count}"], np.asarray(float(g[0, 0]) / count),
                        to_device(outgoing[0][0, 0, 0, 0], "cpu"), SENT)


@_enter(_FORWARD, Sum, Mean, Max)
def _reduced_forward(step: _Step, y: Array) -> str | None:
    function, axes = step.op, step.node.options["axes"]
    if not step.small(y) or y.size != 1:
        return None
    values = step.host(0)
    terms = [_text(v) if function is Max else _factor(v) for v in values.reshape(-1)]
    keepdims = step.node.options["keepdims"]
    if function is Max:
        return _equation([f"max({', '.join(terms)})"], values.max(axis=axes, keepdims=keepdims),
                         y, RETURNED)
    if function is Sum:
        return _equation([" + ".join(terms)], values.sum(axis=axes, keepdims=keepdims), y, RETURNED,
                         _size(values))
    return _equation([f"({' + '.join(terms)}) / {len(terms)}"],
                     values.mean(axis=axes, keepdims=keepdims), y, RETURNED, _size(values))


@_enter(_BACKWARD, Sum, Mean)
def _reduced_back(step: _Step, g: Array, outgoing: Outgoing) -> Iterable[str]:
    if outgoing[0] is None or not step.small(g):
        return
    axes, shape = step.node.options["axes"], outgoing[0].shape
    count = int(np.prod([shape[a] for a in axes]))
    host = to_device(g, "cpu").reshape([1 if a in axes else n for a, n in enumerate(shape)])
    if step.op is Mean:
        parts = [step.gradient(0), f"g / {count}", f"{_factor(g)} / {count}"]
        yield _equation(parts, np.broadcast_to(host / count, shape), outgoing[0], SENT)
    else:
        yield _equation([step.gradient(0), "g for each", f"{_text(g)} for each"],
                        np.broadcast_to(host, shape), outgoing[0], SENT)


@_enter(_FORWARD, Softmax, LogSoftmax)
def _softmaxed(step: _Step, y: Array) -> str | None:
    if not step.small(y):
        return None
    x, name = step.host(0), step.names[0]
    with np.errstate(over="ignore"):
        powers = np.exp(x)
    total = powers.sum(axis=-1, keepdims=True)
    if not np.isfinite(total).all() or not total.all():
        return None
    total_text = _text(total.reshape(x.shape[:-1]) if x.ndim > 1 else total[0])
    if step.op is Softmax:
        return _equation([f"e^{name} / Σ e^{name}", f"{_text(powers)} / {total_text}"],
                         powers / total, y, RETURNED)
    return _equation([f"{name} - log Σ e^{name}", f"{_text(x)} - log {total_text}"],
                     x - np.log(total), y, RETURNED, _size(x))


@_enter(_BACKWARD, Softmax, LogSoftmax)
def _softmaxed_back(step: _Step, g: Array, outgoing: Outgoing) -> Iterable[str]:
    if outgoing[0] is None or not step.small(g):
        return
    host = to_device(g, "cpu")
    y = to_device(step.node.saved[0], "cpu")
    if step.op is Softmax:
        product = (host * y).sum(axis=-1, keepdims=True)
        inner = _factor(product.reshape(y.shape[:-1]) if y.ndim > 1 else product[0])
        yield _equation([step.gradient(0), "y · (g - Σ g · y)",
                         f"{_text(y)} · ({_text(host)} - {inner})"], y * (host - product),
                        outgoing[0], SENT, _size(host))
    else:
        total = host.sum(axis=-1, keepdims=True)
        inner = _factor(total.reshape(y.shape[:-1]) if y.ndim > 1 else total[0])
        yield _equation([step.gradient(0), "g - e^y · Σ g",
                         f"{_text(host)} - {_text(np.exp(y))} · {inner}"],
                        host - np.exp(y) * total, outgoing[0], SENT, _size(host))


def _probabilities(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


@_enter(_FORWARD, CrossEntropy)
def _cross_entropy(step: _Step, y: Array) -> str | None:
    if not step.small(y):
        return None
    labels = to_device(step.node.options["labels"], "cpu")
    p = _probabilities(step.host(0))
    chosen = p[np.arange(len(labels)), labels]
    if not chosen.all():
        return None
    losses = " ".join(f"- log {_text(v)}" for v in chosen).replace("- ", "-", 1)
    reduction = step.node.options["reduction"]
    if reduction == "none":
        losses, expected = ", ".join(f"-log {_text(v)}" for v in chosen), -np.log(chosen)
    elif reduction == "mean":
        losses = f"({losses}) / {len(labels)}" if len(labels) > 1 else losses
        expected = -np.log(chosen).mean()
    else:
        expected = -np.log(chosen).sum()
    return (f"softmax({step.names[0]}) = {_text(p)}, label {_text(labels)}\n"
            + _equation([losses], expected, y, RETURNED, _size(step.host(0))))


@_enter(_BACKWARD, CrossEntropy)
def _cross_entropy_back(step: _Step, g: Array, outgoing: Outgoing) -> Iterable[str]:
    if outgoing[0] is None or not step.small(g):
        return
    labels = to_device(step.node.options["labels"], "cpu")
    mean = step.node.options["reduction"] == "mean"
    p, host = _probabilities(step.host(0)), to_device(g, "cpu")
    correct = np.eye(p.shape[1])[labels]
    share = f" / {len(labels)}" if mean else ""
    expected = (host[:, None] if host.ndim else host) * (p - correct) / (
        len(labels) if mean else 1)
    yield _equation([step.gradient(0), f"g{share} · (softmax({step.names[0]}) - onehot(label))",
                     f"{_factor(host)}{share} · ({_text(p)} - {_text(correct)})"],
                    expected, outgoing[0], SENT, _size(host))


def _statistics(step: _Step) -> tuple[np.ndarray, float, float, np.ndarray] | None:
    """Of the first channel of a batch norm: x, μ, σ², x̂; None where they are too many."""
    options, x = step.node.options, step.arrays[0]
    if not x.size or x[..., 0].size > TERMS:
        return None
    values = to_device(x[..., 0], "cpu").reshape(-1).astype(np.float64)
    if options["mode"] == "train":
        mean, variance = values.mean(), values.var()
    else:
        mean, variance = (float(options[k][0]) for k in ("running_mean", "running_var"))
    return values, mean, variance, (values - mean) / np.sqrt(variance + options["eps"])


@_enter(_FORWARD, BatchNorm)
def _normalised(step: _Step, y: Array) -> str | None:
    found = _statistics(step)
    if found is None:
        return None
    values, mean, variance, hat = found
    gamma, beta = (float(step.arrays[i][0]) for i in (1, 2))
    return (f"channel 0: {step.names[0]} = {_text(values)}, μ = {_number(mean)}, "
            f"σ² = {_number(variance)}\nx̂ = {_text(hat)}\n"
            + _equation(["γ · x̂ + β", f"{_factor(np.asarray(gamma))} · x̂ + "
                         f"{_factor(np.asarray(beta))}"], gamma * hat + beta,
                        to_device(y[..., 0], "cpu").reshape(-1), RETURNED,
                        abs(gamma) * _size(hat) + abs(beta)))


@_enter(_BACKWARD, BatchNorm)
def _normalised_back(step: _Step, g: Array, outgoing: Outgoing) -> Iterable[str]:
    found = _statistics(step)
    if found is None:
        return
    _, _, variance, hat = found
    grad = to_device(g[..., 0], "cpu").reshape(-1).astype(np.float64)
    yield f"channel 0: g = {_text(grad)}, x̂ = {_text(hat)}"
    if outgoing[0] is not None:
        scale = float(step.arrays[1][0]) / np.sqrt(variance + step.node.options["eps"])
        sent = to_device(outgoing[0][..., 0], "cpu").reshape(-1)
        text, formula, expected = "g", "γ / √(σ² + ε) · g", scale * grad
        if step.node.options["mode"] == "train":
            means = grad.mean(), (grad * hat).mean()
            text = f"(g - {_factor(means[0])} - x̂ · {_factor(means[1])})"
            formula = "γ / √(σ² + ε) · (g - mean(g) - x̂ · mean(g · x̂))"
            expected = scale * (grad - means[0] - hat * means[1])
        yield _equation([step.gradient(0), formula, f"{_factor(scale)} · {text}"], expected, sent,
                        SENT, _size(scale * grad, scale * hat * grad))
    for slot, formula, terms in ((1, "Σ g · x̂", grad * hat), (2, "Σ g", grad)):
        sent = outgoing[slot]
        if sent is not None:
            yield _equation([step.gradient(slot), formula], terms.sum(), sent[0], SENT,
                            _size(terms))


def _one_frame_on(step: _Step, y: np.ndarray, x: np.ndarray) -> np.ndarray | None:
    """What each frame takes up: x of the frame before it; None where frames are left out."""
    if y.shape != x.shape:
        return None
    frames = step.node.options["frames"]
    chunks = x.reshape(-1, frames, *x.shape[1:])
    return np.concatenate([np.zeros_like(chunks[:, :1]), chunks[:, :-1]], 1).reshape(y.shape)


@_enter(_FORWARD, TemporalSkip)
def _skipped(step: _Step, y: Array) -> str | None:
    before = _one_frame_on(step, step.host(0), step.host(1)) if step.small(y) else None
    if before is None:
        return None
    return _equation([f"{step.names[0]} + {step.names[1]} of the frame before",
                      f"{_text(step.host(0))} + {_text(before)}"], step.host(0) + before, y,
                     RETURNED)


@_enter(_BACKWARD, TemporalSkip)
def _skipped_back(step: _Step, g: Array, outgoing: Outgoing) -> Iterable[str]:
    if not step.small(g) or _one_frame_on(step, step.host(0), step.host(1)) is None:
        return
    host, frames = to_device(g, "cpu"), step.node.options["frames"]
    chunks = host.reshape(-1, frames, *host.shape[1:])
    after = np.concatenate([chunks[:, 1:], np.zeros_like(chunks[:, :1])], 1).reshape(host.shape)
    if outgoing[0] is not None:
        yield _equation([step.gradient(0), "g", _text(host)], host, outgoing[0], SENT)
    if outgoing[1] is not None:
        yield _equation([step.gradient(1), "g of the frame after"], after, outgoing[1], SENT)


@_enter(_FORWARD, Index)
def _indexed(step: _Step, y: Array) -> str | None:
    if not step.small(y):
        return None
    key = step.node.options["key"]
    keys = tuple(to_device(k, "cpu") if hasattr(k, "dtype") else k
                 for k in (key if isinstance(key, tuple) else (key,)))
    return _equation([f"{step.names[0]}[{key_text(key)}]",
                      f"{_text(step.host(0))}[{key_text(key)}]"], step.host(0)[keys], y, RETURNED)
