"""Stepping through a recording in the terminal, a command a line.

At each step it shows what the page shows: the op with its formulas and numbers, the program's line,
what went in and came out; in the backward walk what was sent where, and where paths meet.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable
from typing import IO

import numpy as np

from .steps import COMPLETE, MODEL, NONE, Gradient, Steps, number, written
from .tape import Check, Event, OpRecord, Piece, Summary, Tape

HELP = """\
n [COUNT]   next step, or COUNT steps on
b [COUNT]   back
m           on to the next meeting of paths
g WHERE     go to a step (17), an op (#12, or the next conv2d), the next step
            about a tensor (loss) or in a module (block1.0)
p [NAME]    print a tensor, its value and its gradient as they are at this step;
            without NAME those of this step
i           the program around the line of this step (l does the same)
w           where in the program and the model this step is
t           table of the modules with the norms of their gradients
h           this help
q           leave
An empty line repeats the last command."""

FEW = 8  # values shown on the line of a tensor
PRINTED = 128  # values that are printed; of more, those at the edges
AROUND = 4  # lines of the program before and after the one of a step
BARS = "▁▂▃▄▅▆▇█"


class Stepper:
    """Steps through `tape`, writing to `out`; see HELP for the commands."""

    def __init__(self, tape: Tape, out: IO[str], colour: bool = False, width: int = 80) -> None:
        self.tape, self.steps = tape, Steps(tape)
        self.at = 0
        self._out, self._colour, self._width = out, colour, width
        self._last = ""
        self._commands: dict[str, Callable[[str], object]] = {
            "n": self._next, "b": self._back, "m": self._meeting, "g": self._go,
            "p": self._print, "i": self._listing, "l": self._listing, "w": self._where,
            "t": self._table, "h": self._help}

    def run(self, lines: Iterable[str]) -> None:
        """Show the first step, then do the commands that come, to the last or to q."""
        for note in self.tape.notes:
            self._say(note, "note")
        self.show()
        for line in lines:
            if not self.do(line):
                return

    def do(self, line: str) -> bool:
        """Do one command; whether to go on."""
        line = line.strip() or self._last
        self._last = line
        word, _, rest = line.partition(" ")
        if word == "q":
            return False
        if word in self._commands:
            self._commands[word](rest.strip())
        elif word:
            self._say(f"{word}: no such command; h lists them")
        return True

    # Moving

    def _next(self, count: str) -> None:
        self._move(count, 1)

    def _back(self, count: str) -> None:
        self._move(count, -1)

    def _move(self, count: str, direction: int) -> None:
        if count and not count.isdecimal():
            self._say(f"COUNT: expected a number of steps, got {count!r}")
            return
        last = len(self.tape.events) - 1
        to = min(max(self.at + direction * int(count or 1), 0), last)
        if to == self.at:
            self._say(f"this is the {'last' if direction > 0 else 'first'} step")
            return
        self._to(to)

    def _to(self, step: int) -> None:
        self.at = step
        self.show()

    def _meeting(self, _: str) -> None:
        for k in range(self.at + 1, len(self.tape.events)):
            if any(piece.before is not None for piece in self.tape.events[k].pieces):
                self._to(k)
                return
        self._say("no paths meet after this step")

    def _go(self, where: str) -> None:
        if where.isdecimal():
            if not 1 <= int(where) <= len(self.tape.events):
                self._say(f"g: there are steps 1 to {len(self.tape.events)}, not {where}")
            else:
                self._to(int(where) - 1)
            return
        if not where:
            self._say("g: go where? A step's number, an op, a tensor or a module")
            return
        about = [k for k, event in enumerate(self.tape.events) if self._is_about(event, where)]
        if not about:
            self._say(f"g: no step is about {where!r}")
            return
        later = [k for k in about if k > self.at]
        if not later:
            self._say(f"(no step after this one is about {where!r}; from the start again)")
        self._to(later[0] if later else about[0])

    def _is_about(self, event: Event, where: str) -> bool:
        if event.op is not None:
            op = self.tape.ops[event.op]
            if where in (op.op, f"#{event.op}"):
                return True
            if op.module is not None and f"{op.module or MODEL}.".startswith(f"{where}."):
                return True
        return any(self.steps.concerns(event, t) for t in self._named(where))

    def _named(self, name: str) -> list[int]:
        return [t for t, record in enumerate(self.tape.tensors)
                if name in (record.name, f"%{t}")]

    # Showing

    def show(self) -> None:
        """Show the step."""
        event = self.tape.events[self.at]
        {"forward": self._forward, "start": self._start, "backward": self._backward}[event.kind](
            event)

    def _forward(self, event: Event) -> None:
        op = self._op(event)
        self._title(f"forward · {op.op} #{event.op}", op)
        self._formula(op.forward, event.numbers)
        for slot, tensor in enumerate(op.inputs):
            if tensor is not None:
                self._row("in " if slot == 0 else "", op.slots[slot], tensor,
                          self.tape.tensors[tensor].value, self._notes(op, slot))
        self._row("out", "y", op.output, self.tape.tensors[op.output].value)
        if op.saved:
            shapes = ", ".join(_shape(kept["shape"]) for kept in op.saved)
            self._say(f"saved for backward: {shapes}, {op.saved_bytes:,} bytes", indent=4)
        elif not op.recorded:
            self._say("not recorded for backward", indent=4)

    def _notes(self, op: OpRecord, slot: int) -> str:
        shift = op.shifts[slot]
        notes = [op.roles[slot], f"from {_count(shift, 'frame')} earlier" if shift else None]
        return ", ".join(note for note in notes if note)

    def _start(self, event: Event) -> None:
        assert event.tensor is not None and event.grad is not None
        self._title("backward begins", None)
        name = self.tape.tensors[event.tensor].name
        self._say(f"at {name}, with the gradient ∂{name}/∂{name} = {self._short(event.grad)}"
                  if not event.grad.shape else
                  f"at {name}, with the gradient {self._short(event.grad)}")

    def _backward(self, event: Event) -> None:
        op = self._op(event)
        self._title(f"backward · {op.op} #{event.op}", op)
        self._formula(op.backward, event.numbers)
        if event.grad is not None:
            self._row("g  ", "y", op.output, event.grad)
        self._check("    ", self.tape.tensors[op.output].numeric, "of the whole program")
        for piece in event.pieces:
            self._piece(op, piece)
        for unsent in event.unsent:
            self._say(f"to  {op.slots[unsent.slot]}: nothing")
            self._check("    ", unsent.check, "of this op")
        if not event.pieces and not event.unsent:
            self._say("no input wants a gradient", indent=4)

    def _piece(self, op: OpRecord, piece: Piece) -> None:
        self._row("to ", op.slots[piece.slot], piece.tensor, piece.grad,
                  self._notes(op, piece.slot))
        if piece.before is not None:
            self._say(f"◆ paths meet: {self._short(piece.before)} + {self._short(piece.grad)} = "
                      f"{self._short(piece.after)}", "meeting", indent=4)
        if not piece.sum_right:
            self._say("✗ WRONG: this is not the sum of the two", "wrong", indent=4)
        self._check("    ", piece.check, "of this op")
        progress = self.steps.gradient(piece.tensor, self.at)
        name = self.tape.tensors[piece.tensor].name
        if piece.deposited:
            held = "" if piece.held is None else f", which held {self._short(piece.held)}"
            self._say(f"complete; added to {name}.grad{held}", indent=4)
            self._check("    ", self.tape.tensors[piece.tensor].numeric, "of the whole program")
        elif progress.status != COMPLETE:
            self._say(f"{progress.arrived} of {progress.expected} pieces so far", indent=4)

    def _check(self, lead: str, check: Check | None, what: str) -> None:
        if check is None:
            return
        count = len(check.where)
        which = "every element" if check.every else f"{count} elements"
        if check.right:
            self._say(f"{lead}✓ equals central differences {what}, {which}", "right")
            return
        where, analytic, numeric = worst(check)
        self._say(f"{lead}✗ WRONG: {where} it is {number(analytic)}, central differences {what} "
                  f"give {number(numeric)}", "wrong")

    def _title(self, text: str, op: OpRecord | None) -> None:
        left = f"── step {self.at + 1} of {len(self.tape.events)} · {text} "
        right = "" if op is None or op.module is None else f" {op.module or MODEL}"
        self._say(f"{left}{'─' * max(self._width - len(left) - len(right), 2)}{right}", "title")
        if op is None:
            return
        place = []
        if op.source is not None:
            function = f" in {op.source['function']}" if op.source["function"] else ""
            place.append(f"{op.source['file']}:{op.source['line']}{function}: {op.source['text']}")
        if op.frames:
            place.append(f"{'frame' if len(op.frames) == 1 else 'frames'} "
                         f"{', '.join(map(str, op.frames))}")
        for line in place:
            self._say(line, "place")

    def _formula(self, formula: str, numbers: str | None) -> None:
        for line in formula.splitlines():
            self._say(line, "formula", indent=2)
        for line in (numbers or "").splitlines():
            self._say(f"↳ {line}", indent=2)

    def _row(self, lead: str, slot: str, tensor: int, summary: Summary | None,
             notes: str = "") -> None:
        record = self.tape.tensors[tensor]
        name = f"{slot}: {record.name}" if slot != record.name else slot
        shown = "" if summary is None else self._short(summary)
        self._say(f"{lead:3} {name} {_shape(record.shape)}  {shown}"
                  + (f"  ({notes})" if notes else ""), hang=6)

    def _short(self, summary: Summary) -> str:
        """Few values, or the norm of many."""
        if summary.values is not None and len(summary.values) <= FEW:
            return written(summary)
        bad = f", {summary.nonfinite} NaN or ∞" if summary.nonfinite else ""
        return f"norm {number(summary.norm)}{bad}"

    # Looking closer

    def _print(self, name: str) -> None:
        event = self.tape.events[self.at]
        op = None if event.op is None else self.tape.ops[event.op]
        found = self._named(name) if name else []
        if op is not None:
            shown = [*op.inputs, op.output]
            slots = dict(zip([*op.slots, "y"], shown, strict=True))
            tensor = slots.get(name)
            if not found and tensor is not None:
                found = [tensor]
            if not name:
                found = list(dict.fromkeys(t for t in shown if t is not None))
        elif not name and event.tensor is not None:
            found = [event.tensor]
        if not found:
            self._say(f"p: no tensor is called {name!r}")
        for tensor in found:
            self._tensor(tensor)

    def _tensor(self, tensor: int) -> None:
        record = self.tape.tensors[tensor]
        frames = f", frames {', '.join(map(str, record.frames))}" if record.frames else ""
        self._say(f"{record.name} {_shape(record.shape)} {record.dtype}, {record.kind}{frames}",
                  "title")
        if not self.steps.computed(tensor, self.at):
            self._say("value: not yet computed", indent=2)
        elif record.value is not None:
            self._whole("value", record.value)
        if not record.requires_grad:
            self._say("gradient: none is wanted", indent=2)
            return
        gradient = self.steps.gradient(tensor, self.at)
        if gradient.summary is None:
            self._say(f"gradient: {gradient.status}", indent=2)
            return
        count = (f", {gradient.arrived} of {gradient.expected} pieces"
                 if gradient.status != COMPLETE else "")
        self._whole(f"gradient ({gradient.status}{count})", gradient.summary)
        if gradient.held is not None:
            self._whole("added to .grad, which held", gradient.held)

    def _whole(self, what: str, summary: Summary) -> None:
        statistics = f"norm {number(summary.norm)}"
        if summary.min is not None and len(summary.values or [0, 0]) > 1:
            statistics += (f", min {number(summary.min)}, max {number(summary.max)}, "
                           f"mean {number(summary.mean)}")
        if summary.nonfinite:
            statistics += f", {summary.nonfinite} NaN or ∞"
        self._say(f"{what}: {statistics}", indent=2)
        if summary.values is not None:
            texts = [number(value) for value in summary.values]
            column = max(map(len, texts), default=0)
            array = np.array([text.rjust(column) for text in texts], object)
            text = np.array2string(array.reshape(summary.shape), max_line_width=self._width - 4,
                                   separator=", ", threshold=PRINTED, formatter={"all": str})
            self._out.write(textwrap.indent(text, "    ") + "\n")
        if summary.histogram is not None:
            counts = summary.histogram["counts"]
            bars = "".join(BARS[-(-count * (len(BARS) - 1) // max(counts))] for count in counts)
            self._say(f"{number(summary.histogram['low'])} {bars} "
                      f"{number(summary.histogram['high'])}  "
                      f"(of {summary.histogram['of']} elements)", indent=4)

    def _listing(self, _: str) -> None:
        source = self._source()
        if source is None:
            self._say("no line of the program is known for this step")
            return
        lines = self.tape.sources.get(source["file"], [])
        self._say(source["file"], "title")
        for k in range(max(source["line"] - AROUND, 1),
                       min(source["line"] + AROUND, len(lines)) + 1):
            here = k == source["line"]
            text = f"{'>' if here else ' '}{k:4}  {lines[k - 1]}"
            self._out.write(self._painted(text[: self._width], "formula" if here else "") + "\n")

    def _source(self) -> dict | None:
        event = self.tape.events[self.at]
        return None if event.op is None else self.tape.ops[event.op].source

    def _where(self, _: str) -> None:
        event = self.tape.events[self.at]
        if event.op is None:
            self._say(f"step {self.at + 1}: backward begins, outside any module")
            return
        op = self.tape.ops[event.op]
        module = "outside any module" if op.module is None else (
            f"in module {op.module or MODEL} ({op.module_type})")
        self._say(f"step {self.at + 1}: {event.kind} of {op.op} #{event.op}, {module}")
        if op.source is not None:
            self._say(f"{op.source['file']}, line {op.source['line']}", indent=2)
        if op.frames:
            self._say(f"of {_count(len(op.frames), 'frame')}: "
                      f"{', '.join(map(str, op.frames))}", indent=2)

    def _table(self, _: str) -> None:
        self._out.write(table(self.steps, self.at) + "\n")

    def _help(self, _: str) -> None:
        self._out.write(HELP + "\n")

    # Writing

    def _op(self, event: Event) -> OpRecord:
        assert event.op is not None
        return self.tape.ops[event.op]

    def _say(self, text: str, style: str = "", indent: int = 0, hang: int = 4) -> None:
        lines = textwrap.wrap(text, self._width, initial_indent=" " * indent,
                              subsequent_indent=" " * (indent + hang), break_on_hyphens=False,
                              drop_whitespace=True, replace_whitespace=False)
        for line in lines:
            self._out.write(self._painted(line, style) + "\n")

    def _painted(self, text: str, style: str) -> str:
        code = {"title": "1", "formula": "36", "meeting": "1;33", "wrong": "1;31", "right": "32",
                "place": "2", "note": "33"}.get(style)
        return f"\033[{code}m{text}\033[0m" if self._colour and code else text


def worst(check: Check) -> tuple[str, float | None, float | None]:
    """Where backward and central differences differ most, and what they say there: at an element,
    or along the random direction where it takes all elements to see it."""
    size = max((abs(n) for n in check.numeric if n is not None), default=0.0) or 1.0
    found = [(_apart(a, n) / size, f"at element {where}", a, n) for where, a, n, smooth in
             zip(check.where, check.analytic, check.numeric, check.smooth, strict=True) if smooth]
    if check.along is not None:
        a, n = check.along["analytic"], check.along["numeric"]
        found.append((_apart(a, n) / (abs(n or 1.0)) / 1e3, "along a random direction", a, n))
    _, where, analytic, numeric = max(found, key=lambda one: one[0])
    return where, analytic, numeric


def _apart(a: float | None, b: float | None) -> float:
    """How far two numbers are apart; what is not finite is infinitely far."""
    return math.inf if a is None or b is None else abs(a - b)


def table(steps: Steps, step: int) -> str:
    """The modules at a step, with the norms of their gradients, as text."""
    rows = [("module", "type", "ops", "∂ output", "∂ parameters")]
    for row in steps.modules(step):
        rows.append((_cut(row.path, 30), _cut(row.type, 16), str(row.ops), _norm(row.output),
                     "" if not row.parameters else
                     "not yet" if row.norm is None else number(row.norm)))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join("  ".join(cell.ljust(width) if i < 2 else cell.rjust(width)
                               for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
                     .rstrip() for row in rows)


def _norm(gradient: Gradient) -> str:
    if gradient.status == NONE or gradient.summary is None:
        return "not yet"
    partial = "" if gradient.status == COMPLETE else " so far"
    return f"{number(gradient.summary.norm)}{partial}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"…{text[1 - width:]}"


def _shape(shape: list[int]) -> str:
    return "scalar" if not shape else f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def step(tape: Tape) -> None:
    """Step through `tape` with the commands of standard input."""
    terminal = sys.stdout.isatty()
    width = max(40, min(shutil.get_terminal_size((80, 24)).columns, 100)) if terminal else 80
    colour = terminal and "NO_COLOR" not in os.environ
    Stepper(tape, sys.stdout, colour, width).run(_commands())


def _commands() -> Iterable[str]:
    """Lines of standard input, asked for where someone is there to ask."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    while True:
        try:
            yield input("(flow) ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
