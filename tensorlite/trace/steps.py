"""What is known at a step of a tape: which tensors there are, how far each gradient has come, and a
table of the model's modules. For the terminal and the notebook; the page has its own in JavaScript.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from .tape import Event, Piece, Summary, Tape

MODEL = "(model)"  # the path of the model itself
NONE, PARTIAL, COMPLETE = "not yet computed", "a partial sum", "complete"


@dataclass
class Gradient:
    """How far a tensor's gradient has come: `status`, and `summary` of the sum so far, of `arrived`
    out of `expected` pieces. held: what a leaf's ``.grad`` held before this backward; optional."""

    status: str
    summary: Summary | None = None
    arrived: int = 0
    expected: int = 0
    held: Summary | None = None


@dataclass
class ModuleRow:
    """A module's line in the table: its ops, the gradient of its output, and the norm of those of
    all its parameters (None: not yet computed; `parameters`: how many there are)."""

    path: str
    type: str
    ops: int
    output: Gradient
    parameters: int
    norm: float | None


class Steps:
    """The events of a tape by tensor and by op."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.made: dict[int, int] = {}  # tensor: event whose op made it
        self.starts = [k for k, event in enumerate(tape.events) if event.kind == "start"]
        self._pieces: dict[int, list[tuple[int, Piece]]] = defaultdict(list)  # with their events
        for k, event in enumerate(tape.events):
            if event.kind == "forward" and event.op is not None:
                self.made.setdefault(tape.ops[event.op].output, k)
            for piece in event.pieces:
                self._pieces[piece.tensor].append((k, piece))

    def computed(self, tensor: int, step: int) -> bool:
        """Whether the value of a tensor is there at `step`."""
        return self.made.get(tensor, -1) <= step

    def gradient(self, tensor: int, step: int) -> Gradient:
        """How far the gradient of a tensor has come at `step`."""
        start = max((k for k in self.starts if k <= step), default=None)
        if start is None:
            return Gradient(NONE)
        end = min((k for k in self.starts if k > start), default=len(self.tape.events))
        pieces = [(k, piece) for k, piece in self._pieces[tensor] if start < k < end]
        arrived = [piece for k, piece in pieces if k <= step]
        root = self.tape.events[start].tensor == tensor
        if arrived:
            whole = len(arrived) == len(pieces)
            return Gradient(COMPLETE if whole else PARTIAL, arrived[-1].after,
                            len(arrived) + root, len(pieces) + root, arrived[-1].held)
        if root:
            return Gradient(PARTIAL if pieces else COMPLETE, self.tape.events[start].grad, 1,
                            len(pieces) + 1)
        if pieces or self.tape.tensors[tensor].kind == "result":
            return Gradient(NONE, expected=len(pieces))
        earlier = [piece for k, piece in self._pieces[tensor] if k < start]  # an earlier backward's
        return Gradient(COMPLETE, earlier[-1].after, 1, 1) if earlier else Gradient(NONE)

    def concerns(self, event: Event, tensor: int) -> bool:
        """Whether an event makes, reads, or sends a gradient to a tensor."""
        if event.kind == "start" or event.op is None:
            return event.tensor == tensor
        op = self.tape.ops[event.op]
        if op.output == tensor:
            return True
        if event.kind == "forward":
            return tensor in op.inputs
        return any(piece.tensor == tensor for piece in event.pieces)

    def modules(self, step: int) -> list[ModuleRow]:
        """The table of modules at `step`, in the order of the program; ops outside any as "-"."""
        rows: list[ModuleRow] = []
        ops: dict[str, list[int]] = defaultdict(list)
        for event in self.tape.events[: step + 1]:
            if event.kind == "forward" and event.op is not None:
                module = self.tape.ops[event.op].module
                ops["-" if module is None else module or MODEL].append(event.op)
        for path, numbers in ops.items():
            last = self.tape.ops[numbers[-1]]
            held = dict.fromkeys(t for n in numbers for t in self.tape.ops[n].inputs
                                 if t is not None and self.tape.tensors[t].requires_grad
                                 and self.tape.tensors[t].op is None)
            found = [self.gradient(t, step).summary for t in held]
            norms = [summary.norm for summary in found if summary is not None]
            rows.append(ModuleRow(path, last.module_type or "", len(numbers),
                                  self.gradient(last.output, step), len(held),
                                  math.hypot(*norms) if norms else None))
        return rows


def number(value: float | None) -> str:
    """A number as it is shown: to 4 significant digits; None is what JSON has no word for."""
    if value is None or math.isnan(value):
        return "NaN or ∞"
    text = f"{value:.4g}"
    return "0" if text == "-0" else text


def written(summary: Summary) -> str:
    """All values of a summary as nested lists; "" where they were not kept."""
    if summary.values is None:
        return ""
    values = [number(v) for v in summary.values]
    for length in reversed(summary.shape):
        if not length:
            return "[]"
        values = [f"[{', '.join(values[i:i + length])}]" for i in range(0, len(values), length)]
    return values[0]
