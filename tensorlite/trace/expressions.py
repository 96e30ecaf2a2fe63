"""The formulas that can be computed as they are written: of the elementwise ops and of products.

An `Expression` is text in the names of an op's inputs, `y` for its output and `g` for the gradient
of that. It is what the reader sees, and what is evaluated where numbers are put in: what is shown
and what is computed cannot differ.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorlite.autograd import Function, Node
from tensorlite.device import Array
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
from tensorlite.ops.fused import BlockJoin
from tensorlite.ops.linear import Linear, MatMul

Shape = tuple[int, ...]

JOIN_SLOTS = ("residual", "skip", "before")
SYMBOLS = {"gamma": "γ", "beta": "β"}


def slots(node: Node) -> tuple[str, ...]:
    """The names of an op's inputs, as its forward calls them."""
    if op_of(node) is BlockJoin:
        return JOIN_SLOTS[: len(node.inputs)]
    names: list[str] = []
    parameters = list(inspect.signature(node.function.forward).parameters.values())[1:]
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"x{i}" for i in range(len(node.inputs) - len(names))]
        elif parameter.kind is not parameter.KEYWORD_ONLY:
            names.append(parameter.name)
    return tuple(names[: len(node.inputs)])


def symbols(node: Node) -> tuple[str, ...]:
    """`slots`, as formulas write them."""
    return tuple(SYMBOLS.get(name, name) for name in slots(node))


@dataclass(frozen=True)
class Expression:
    """y = `forward`, and the gradient of each input: `backward`, of the shape `full` until it is
    summed over the axes along which the input was repeated. with_shapes: whether the shapes read
    well between the names. elementwise: whether each element is for itself. note: what else there
    is to say; optional."""

    forward: str
    backward: tuple[str, ...]
    full: tuple[Shape, ...]
    with_shapes: bool = False
    elementwise: bool = False
    note: str = ""


def summed_axes(full: Shape, shape: Shape) -> tuple[int, ...]:
    """The axes over which a gradient of shape `full` is summed for an input of `shape`."""
    added = len(full) - len(shape)
    return (*range(added), *(added + i for i, n in enumerate(shape) if n == 1 != full[added + i]))


def axes_text(axes: tuple[int, ...]) -> str:
    """"axis 0", "axes 0, 1"."""
    return f"{'axis' if len(axes) == 1 else 'axes'} {', '.join(map(str, axes))}"


def reduced(text: str, axes: tuple[int, ...]) -> str:
    """`text`, said to be summed over `axes`."""
    return f"Σ {_bracketed(text)} over {axes_text(axes)}" if axes else text


def _bracketed(text: str) -> str:
    return f"({text})" if text.startswith("-") else text


_NAME = re.compile(r"(?<![A-Za-z0-9_])[A-Za-z][A-Za-z0-9_]*(?![A-Za-z0-9_])")


def substitute(text: str, texts: Mapping[str, str]) -> str:
    """`text` with names replaced."""
    return _NAME.sub(lambda match: texts.get(match[0], match[0]), text)


_PYTHON = (("·", "*"), ("^", "**"), ("²", "**2"), ("ᵀ", ".mT"))
_FUNCTIONS = {"e": np.e, "log": np.log, "tanh": np.tanh, "max": np.maximum,
              "outer": np.multiply.outer}


def evaluate(text: str, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """What an expression comes to."""
    for symbol, spelling in _PYTHON:
        text = text.replace(symbol, spelling)
    with np.errstate(all="ignore"):
        return np.asarray(eval(text, dict(_FUNCTIONS), dict(values)))


def summed(value: np.ndarray, shape: Shape) -> np.ndarray:
    """A gradient summed over the axes along which an input of `shape` was repeated."""
    return value.sum(axis=summed_axes(value.shape, shape), keepdims=True).reshape(shape)


def key_text(key: Any) -> str:
    """The key of an index as it is written: "0, 1:"."""
    if isinstance(key, tuple):
        return ", ".join(key_text(part) for part in key) or "()"
    if isinstance(key, slice):
        ends = [("" if part is None else str(part)) for part in (key.start, key.stop)]
        return ":".join(ends + ([] if key.step is None else [str(key.step)]))
    if key is Ellipsis:
        return "..."
    if getattr(key, "ndim", 0):
        few = key.size <= 6 and key.ndim == 1
        return str(key.tolist()) if few else f"array of shape {key.shape}"
    return str(key)


_Make = Callable[[Node], Expression | None]
EXPRESSIONS: dict[type[Function], _Make] = {}


def op_of(node: Node) -> type[Function]:
    """The op whose formulas are those of `node`: what a subclass is of that changes neither forward
    nor backward."""
    function = node.function
    same = [base for base in function.__mro__
            if getattr(base, "forward", None) is function.forward
            and getattr(base, "backward", None) is function.backward]
    return same[-1]


def expression(node: Node) -> Expression | None:
    """The formulas of an op that can be computed as they are written; None for the others."""
    make = EXPRESSIONS.get(op_of(node))
    return None if make is None else make(node)


def kept(node: Node) -> dict[str, Array]:
    """What an op's backward expressions are in terms of besides its inputs and g, as its forward
    saved it: its output `y`, a dropout's mask `m`."""
    place = {Exp: ("y", 0), Tanh: ("y", 0), Sigmoid: ("y", 0), Power: ("y", 2),
             Dropout: ("m", 0)}.get(op_of(node))
    saved = node.saved if place is not None else ()
    return {place[0]: saved[place[1]]} if place is not None and saved else {}


def _elementwise(function: type[Function], forward: str, *backward: str,
                 note: str = "") -> None:
    def make(node: Node) -> Expression:
        full = np.broadcast_shapes(*_shapes(node))
        return Expression(forward, backward, (full,) * len(backward),
                          with_shapes=len(backward) == 2, elementwise=True, note=note)

    EXPRESSIONS[function] = make


def _shapes(node: Node) -> list[Shape]:
    return [tensor.shape for tensor in node.inputs if tensor is not None]


_elementwise(Add, "a + b", "g", "g")
_elementwise(Subtract, "a - b", "g", "-g")
_elementwise(Multiply, "a · b", "g · b", "g · a")
_elementwise(Divide, "a / b", "g / b", "-g · a / b²")
_elementwise(Power, "a^b", "g · b · a^(b - 1)", "g · y · log(a)")
_elementwise(Negative, "-x", "-g")
_elementwise(Exp, "e^x", "g · y")
_elementwise(Log, "log(x)", "g / x")
_elementwise(Tanh, "tanh(x)", "g · (1 - y²)")
_elementwise(Sigmoid, "1 / (1 + e^(-x))", "g · y · (1 - y)")
_elementwise(ReLU, "max(x, 0)", "g · (x > 0)", note="x > 0 counts 1 where it holds, else 0")
_elementwise(Dropout, "x · m", "g · m",
             note="m is drawn at random for each element: 1 / (1 - p) or, with probability p, 0")


def _matmul(node: Node) -> Expression | None:
    a, b = _shapes(node)
    if len(a) == len(b) == 1:
        return Expression("a @ b", ("g · b", "g · a"), (a, b), with_shapes=True)
    if len(a) == 1 and len(b) == 2:
        return Expression("a @ b", ("g @ bᵀ", "outer(a, g)"), (a, b), with_shapes=True)
    if len(a) == 2 and len(b) == 1:
        return Expression("a @ b", ("outer(g, b)", "aᵀ @ g"), (a, b), with_shapes=True)
    if len(a) == 1 or len(b) == 1:
        return None
    batch = np.broadcast_shapes(a[:-2], b[:-2])
    return Expression("a @ b", ("g @ bᵀ", "aᵀ @ g"), ((*batch, *a[-2:]), (*batch, *b[-2:])),
                      with_shapes=True)


def _linear(node: Node) -> Expression:
    x, weight, *bias = _shapes(node)
    y = (*x[:-1], weight[1])
    return Expression("x @ weight + bias" if bias else "x @ weight",
                      ("g @ weightᵀ", "xᵀ @ g" if len(x) > 1 else "outer(x, g)", "g"),
                      (x, (*x[:-2], *weight), y), with_shapes=True)


EXPRESSIONS[MatMul], EXPRESSIONS[Linear] = _matmul, _linear
