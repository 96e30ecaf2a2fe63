"""Formulas with their numbers, of ops whose formulas need words or are too large to be written out:
of a product, a convolution or a pooling one element, of a batch norm one channel.

Each is a function of the application (and of the gradient and what backward sent), entered for its
ops in `FORWARD` or `BACKWARD`; it gives no text where there would be too many numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

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

from .equations import (
    RETURNED,
    SENT,
    Place,
    Step,
    equation,
    factor,
    middle,
    number,
    placed,
    shown,
    size,
)
from .expressions import key_text

TERMS = 9  # of a sum that is written out

Outgoing = Sequence[Array | None]
_Forward = Callable[[Step, Array], str | None]
_Backward = Callable[[Step, Array, Outgoing], Iterable[str]]
FORWARD: dict[type[Function], _Forward] = {}
BACKWARD: dict[type[Function], _Backward] = {}


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
    text = " + ".join(f"{factor(a)} · {factor(b)}" for a, b in pairs)
    expected = sum(float(a) * float(b) for a, b in pairs)
    if constant is not None:
        text, expected = f"{text} + {factor(np.asarray(constant))}", expected + constant
    return [equation([placed(name, place), text], expected, actual[place], gave,
                     sum(abs(float(a) * float(b)) for a, b in pairs))]


@_enter(FORWARD, Linear, MatMul)
def _product(step: Step, y: Array) -> str | None:
    a, b = step.arrays[:2]
    bias = step.arrays[2] if len(step.arrays) > 2 else None
    if a.ndim != 2 or b.ndim != 2 or not y.size:
        return None
    terms = [(a, (0, k), b, (k, 0)) for k in range(a.shape[1])]
    constant = None if bias is None else float(bias[0])
    return "\n".join(_element("y", (0, 0), terms, y, RETURNED, constant)) or None


@_enter(BACKWARD, Linear, MatMul)
def _product_back(step: Step, g: Array, outgoing: Outgoing) -> Iterable[str]:
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
        yield _total(placed(step.gradient(2), (0,)), g[:, 0], outgoing[2][0])


def _total(left: str, column: Array, actual: Array) -> str:
    values = to_device(column, "cpu").reshape(-1)
    return equation([left, " + ".join(factor(v) for v in values)],
                    values.sum(dtype=np.float64), actual, SENT, size(values))


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


@_enter(FORWARD, Conv2d)
def _convolved(step: Step, y: Array) -> str | None:
    x, weight, bias = step.arrays
    if not y.size or weight.shape[2] > TERMS:
        return None
    _, i, j, _ = place = middle(y.shape)
    read = _windows(step.node, x, weight.shape[:2])
    terms = [(x, (0, p, q, c), weight, (a, b, c, 0))
             for a, b, p, q in read(i, j) for c in range(weight.shape[2])]
    constant = None if bias is None else float(bias[0])
    return "\n".join(_element("y", place, terms, y, RETURNED, constant)) or None


@_enter(BACKWARD, Conv2d)
def _convolved_back(step: Step, g: Array, outgoing: Outgoing) -> Iterable[str]:
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
        yield _total(placed(step.gradient(2), (0,)), g[..., 0], outgoing[2][0])


@_enter(FORWARD, MaxPool2d, AvgPool2d, GlobalAvgPool)
def _pooled(step: Step, y: Array) -> str | None:
    x = step.arrays[0]
    if not y.size or step.node.options.get("source") is not None:
        return None
    kernel = x.shape[1:3] if step.op is GlobalAvgPool else step.node.options["kernel"]
    count = int(np.prod(kernel))
    if count > TERMS:
        return None
    if step.op is GlobalAvgPool:
        place: Place = (0, 0)
        values = to_device(x[0, :, :, 0], "cpu").reshape(-1)
    else:
        place = _, i, j, _ = middle(y.shape)
        values = np.asarray([float(x[0, p, q, 0])
                             for _, _, p, q in _windows(step.node, x, kernel)(i, j)])
    largest = step.op is MaxPool2d
    text = (f"max({', '.join(map(shown, values))})" if largest
            else f"({' + '.join(map(factor, values))}) / {count}")
    expected = values.max() if largest else values.sum(dtype=np.float64) / count
    return equation([placed("y", place), text], expected, y[place], RETURNED, size(values))


@_enter(BACKWARD, GlobalAvgPool)
def _pooled_back(step: Step, g: Array, outgoing: Outgoing) -> Iterable[str]:
    if outgoing[0] is not None and g.size:
        count = int(np.prod(step.arrays[0].shape[1:3]))
        yield equation([placed(step.gradient(0), (0, 0, 0, 0)), f"{factor(g[0, 0])} / {count}"],
                       float(g[0, 0]) / count, outgoing[0][0, 0, 0, 0], SENT)


@_enter(FORWARD, Sum, Mean, Max)
def _reduced_forward(step: Step, y: Array) -> str | None:
    function, axes = step.op, step.node.options["axes"]
    if not step.small(y) or y.size != 1:
        return None
    values = step.host(0)
    terms = [shown(v) if function is Max else factor(v) for v in values.reshape(-1)]
    keepdims = step.node.options["keepdims"]
    if function is Max:
        return equation([f"max({', '.join(terms)})"], values.max(axis=axes, keepdims=keepdims),
                        y, RETURNED)
    if function is Sum:
        return equation([" + ".join(terms)], values.sum(axis=axes, keepdims=keepdims), y, RETURNED,
                        size(values))
    return equation([f"({' + '.join(terms)}) / {len(terms)}"],
                    values.mean(axis=axes, keepdims=keepdims), y, RETURNED, size(values))


@_enter(BACKWARD, Sum, Mean)
def _reduced_back(step: Step, g: Array, outgoing: Outgoing) -> Iterable[str]:
    if outgoing[0] is None or not step.small(g):
        return
    axes, shape = step.node.options["axes"], outgoing[0].shape
    count = int(np.prod([shape[a] for a in axes]))
    host = to_device(g, "cpu").reshape([1 if a in axes else n for a, n in enumerate(shape)])
    if step.op is Mean:
        parts = [step.gradient(0), f"g / {count}", f"{factor(g)} / {count}"]
        yield equation(parts, np.broadcast_to(host / count, shape), outgoing[0], SENT)
    else:
        yield equation([step.gradient(0), "g for each", f"{shown(g)} for each"],
                       np.broadcast_to(host, shape), outgoing[0], SENT)


@_enter(FORWARD, Softmax, LogSoftmax)
def _softmaxed(step: Step, y: Array) -> str | None:
    if not step.small(y):
        return None
    x, name = step.host(0), step.names[0]
    with np.errstate(over="ignore"):
        powers = np.exp(x)
    total = powers.sum(axis=-1, keepdims=True)
    if not np.isfinite(total).all() or not total.all():
        return None
    total_text = shown(total.reshape(x.shape[:-1]) if x.ndim > 1 else total[0])
    if step.op is Softmax:
        return equation([f"e^{name} / Σ e^{name}", f"{shown(powers)} / {total_text}"],
                        powers / total, y, RETURNED)
    return equation([f"{name} - log Σ e^{name}", f"{shown(x)} - log {total_text}"],
                    x - np.log(total), y, RETURNED, size(x))


@_enter(BACKWARD, Softmax, LogSoftmax)
def _softmaxed_back(step: Step, g: Array, outgoing: Outgoing) -> Iterable[str]:
    if outgoing[0] is None or not step.small(g):
        return
    host = to_device(g, "cpu")
    y = to_device(step.node.saved[0], "cpu")
    if step.op is Softmax:
        product = (host * y).sum(axis=-1, keepdims=True)
        inner = factor(product.reshape(y.shape[:-1]) if y.ndim > 1 else product[0])
        yield equation([step.gradient(0), "y · (g - Σ g · y)",
                        f"{shown(y)} · ({shown(host)} - {inner})"], y * (host - product),
                       outgoing[0], SENT, size(host))
    else:
        total = host.sum(axis=-1, keepdims=True)
        inner = factor(total.reshape(y.shape[:-1]) if y.ndim > 1 else total[0])
        yield equation([step.gradient(0), "g - e^y · Σ g",
                        f"{shown(host)} - {shown(np.exp(y))} · {inner}"],
                       host - np.exp(y) * total, outgoing[0], SENT, size(host))


def _probabilities(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


@_enter(FORWARD, CrossEntropy)
def _cross_entropy(step: Step, y: Array) -> str | None:
    if not step.small(y):
        return None
    labels = to_device(step.node.options["labels"], "cpu")
    p = _probabilities(step.host(0))
    chosen = p[np.arange(len(labels)), labels]
    if not chosen.all():
        return None
    losses = " ".join(f"- log {shown(v)}" for v in chosen).replace("- ", "-", 1)
    reduction = step.node.options["reduction"]
    if reduction == "none":
        losses, expected = ", ".join(f"-log {shown(v)}" for v in chosen), -np.log(chosen)
    elif reduction == "mean":
        losses = f"({losses}) / {len(labels)}" if len(labels) > 1 else losses
        expected = -np.log(chosen).mean()
    else:
        expected = -np.log(chosen).sum()
    return (f"softmax({step.names[0]}) = {shown(p)}, label {shown(labels)}\n"
            + equation([losses], expected, y, RETURNED, size(step.host(0))))


@_enter(BACKWARD, CrossEntropy)
def _cross_entropy_back(step: Step, g: Array, outgoing: Outgoing) -> Iterable[str]:
    if outgoing[0] is None or not step.small(g):
        return
    labels = to_device(step.node.options["labels"], "cpu")
    mean = step.node.options["reduction"] == "mean"
    p, host = _probabilities(step.host(0)), to_device(g, "cpu")
    correct = np.eye(p.shape[1])[labels]
    share = f" / {len(labels)}" if mean else ""
    expected = (host[:, None] if host.ndim else host) * (p - correct) / (
        len(labels) if mean else 1)
    yield equation([step.gradient(0), f"g{share} · (softmax({step.names[0]}) - onehot(label))",
                    f"{factor(host)}{share} · ({shown(p)} - {shown(correct)})"],
                   expected, outgoing[0], SENT, size(host))


def _statistics(step: Step) -> tuple[np.ndarray, float, float, np.ndarray] | None:
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


@_enter(FORWARD, BatchNorm)
def _normalised(step: Step, y: Array) -> str | None:
    found = _statistics(step)
    if found is None:
        return None
    values, mean, variance, hat = found
    gamma, beta = (float(step.arrays[i][0]) for i in (1, 2))
    return (f"channel 0: {step.names[0]} = {shown(values)}, μ = {number(mean)}, "
            f"σ² = {number(variance)}\nx̂ = {shown(hat)}\n"
            + equation(["γ · x̂ + β", f"{factor(np.asarray(gamma))} · x̂ + "
                        f"{factor(np.asarray(beta))}"], gamma * hat + beta,
                       y[..., 0].reshape(-1), RETURNED,
                       abs(gamma) * size(hat) + abs(beta)))


@_enter(BACKWARD, BatchNorm)
def _normalised_back(step: Step, g: Array, outgoing: Outgoing) -> Iterable[str]:
    found = _statistics(step)
    if found is None:
        return
    _, _, variance, hat = found
    grad = to_device(g[..., 0], "cpu").reshape(-1).astype(np.float64)
    yield f"channel 0: g = {shown(grad)}, x̂ = {shown(hat)}"
    if outgoing[0] is not None:
        scale = float(step.arrays[1][0]) / np.sqrt(variance + step.node.options["eps"])
        sent = outgoing[0][..., 0].reshape(-1)
        text, formula, expected = "g", "γ / √(σ² + ε) · g", scale * grad
        if step.node.options["mode"] == "train":
            means = grad.mean(), (grad * hat).mean()
            text = f"(g - {factor(means[0])} - x̂ · {factor(means[1])})"
            formula = "γ / √(σ² + ε) · (g - mean(g) - x̂ · mean(g · x̂))"
            expected = scale * (grad - means[0] - hat * means[1])
        yield equation([step.gradient(0), formula, f"{factor(scale)} · {text}"], expected, sent,
                       SENT, size(scale * grad, scale * hat * grad))
    for slot, formula, terms in ((1, "Σ g · x̂", grad * hat), (2, "Σ g", grad)):
        sent = outgoing[slot]
        if sent is not None:
            yield equation([step.gradient(slot), formula], terms.sum(), sent[0], SENT,
                           size(terms))


def _one_frame_on(step: Step, y: np.ndarray, x: np.ndarray) -> np.ndarray | None:
    """What each frame takes up: x of the frame before it; None where frames are left out."""
    if y.shape != x.shape:
        return None
    frames = step.node.options["frames"]
    chunks = x.reshape(-1, frames, *x.shape[1:])
    return np.concatenate([np.zeros_like(chunks[:, :1]), chunks[:, :-1]], 1).reshape(y.shape)


@_enter(FORWARD, TemporalSkip)
def _skipped(step: Step, y: Array) -> str | None:
    before = _one_frame_on(step, step.host(0), step.host(1)) if step.small(y) else None
    if before is None:
        return None
    return equation([f"{step.names[0]} + {step.names[1]} of the frame before",
                     f"{shown(step.host(0))} + {shown(before)}"], step.host(0) + before, y,
                    RETURNED)


@_enter(BACKWARD, TemporalSkip)
def _skipped_back(step: Step, g: Array, outgoing: Outgoing) -> Iterable[str]:
    if not step.small(g) or _one_frame_on(step, step.host(0), step.host(1)) is None:
        return
    host, frames = to_device(g, "cpu"), step.node.options["frames"]
    chunks = host.reshape(-1, frames, *host.shape[1:])
    after = np.concatenate([chunks[:, 1:], np.zeros_like(chunks[:, :1])], 1).reshape(host.shape)
    if outgoing[0] is not None:
        yield equation([step.gradient(0), "g", shown(host)], host, outgoing[0], SENT)
    if outgoing[1] is not None:
        yield equation([step.gradient(1), "g of the frame after"], after, outgoing[1], SENT)


@_enter(FORWARD, Index)
def _indexed(step: Step, y: Array) -> str | None:
    if not step.small(y):
        return None
    key = step.node.options["key"]
    keys = tuple(to_device(k, "cpu") if hasattr(k, "dtype") else k
                 for k in (key if isinstance(key, tuple) else (key,)))
    return equation([f"{step.names[0]}[{key_text(key)}]",
                     f"{shown(step.host(0))}[{key_text(key)}]"], step.host(0)[keys], y, RETURNED)
