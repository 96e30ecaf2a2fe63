"""How an equation with numbers in it is written, and the application of an op that it is about."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from tensorlite.autograd import Node
from tensorlite.device import Array, to_device

from .expressions import kept, op_of, substitute, symbols

MOST = 6  # elements of an array that is written out
RETURNED, SENT = "the op returned", "its backward sent"

Place = tuple[int, ...]


class Step:
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
        return {name: to_device(array, "cpu") if place is None else picked(array, place)
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


def number(value: float) -> str:
    text = f"{float(value):.4g}"
    return "0" if text == "-0" else text


def shown(array: Array) -> str:
    """An array as nested lists, a scalar as a number, to 4 significant digits."""
    data = to_device(array, "cpu") if hasattr(array, "dtype") else np.asarray(array)
    if data.ndim == 0:
        return number(float(data))
    return f"[{', '.join(shown(part) for part in data)}]"


def factor(array: Array) -> str:
    """`shown` for the middle of a formula."""
    text = shown(array)
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


def equation(parts: Sequence[str], expected: Array, actual: Array, gave: str,
             operands: float = 0.0) -> str:
    """"a · b = 2 · 3 = 6", of its parts and the result; with what the formula comes to where the op
    `gave` something else. operands: see `_agree`."""
    actual = np.asarray(to_device(actual, "cpu"))
    expected = np.asarray(expected)
    agree = _agree(actual, expected, operands)
    chain = [*parts, shown(actual if agree else expected)]
    text = " = ".join(part for i, part in enumerate(chain) if i == 0 or part != chain[i - 1])
    return text if agree else f"{text}, but {gave} {shown(actual)}"


def size(*arrays: np.ndarray) -> float:
    return float(sum(np.abs(array).sum(dtype=np.float64) for array in arrays))


def placed(name: str, place: Place) -> str:
    return f"{name}[{', '.join(map(str, place))}]"


def middle(shape: tuple[int, ...]) -> Place:
    """The element that stands for a large array: of images one in the middle of the first."""
    if len(shape) == 4:
        return 0, shape[1] // 2, shape[2] // 2, 0
    return (0,) * len(shape)


def picked(array: Array, place: Place) -> np.ndarray:
    """The element that has a part in the output's element at `place`."""
    own = place[len(place) - array.ndim:]
    return to_device(array[tuple(i if n > 1 else 0 for i, n in zip(own, array.shape, strict=True))],
                     "cpu")
