"""Records a program as it runs: the observer that writes a `Tape`.

It is told of every op applied, and of every step of the backward walk, by the engine's own hooks
(`recording.Observer`), and keeps summaries: no array outlives its use in the program.
"""

from __future__ import annotations

import linecache
import platform
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import tensorlite
from tensorlite.autograd import Node
from tensorlite.device import Array, array_module, fingerprint
from tensorlite.nn.module import Parameter
from tensorlite.recording import Observer
from tensorlite.tensor import Tensor

from . import check, formulas, labels, ledger, origin
from .summary import summarise
from .tape import Check, Event, Ledger, OpRecord, Piece, Summary, Tape, TensorRecord, Unsent

MOST_EVENTS = 20_000  # after which no new walk, and no op, is recorded


@dataclass
class _Walk:
    """A backward walk that goes on.

    event: its latest step. outputs: what each node that it has yet to pass has made, by rank.
    arrived: the sums at nodes and leaves so far, and `sums` these as arrays, where hooks or an
    earlier backward will make something else of them. pending: the inputs whose pieces are about to
    come. found: numerical gradients, by tensor. changed: nodes, by rank, to which a gradient comes
    that a hook has changed.
    """

    event: Event
    outputs: dict[int, Tensor]
    arrived: dict[Node | Tensor, Summary] = field(default_factory=dict)
    sums: dict[Node | Tensor, Array] = field(default_factory=dict)
    pending: list[tuple[int, Check | None]] = field(default_factory=list)
    found: dict[int, check.Derivatives] = field(default_factory=dict)
    changed: set[int] = field(default_factory=set)
    ledgers: list[Ledger] = field(default_factory=list)

    def goes_on(self) -> bool:
        """Whether there is something left to pass."""
        return bool(self.arrived) or any(t.node is not None and not t.node.released
                                         for t in self.outputs.values())


class Recorder(Observer):
    """Writes `tape`. See `trace.record` for the options."""

    def __init__(self, tape: Tape, differences: bool, ledgers: bool,
                 progress: Callable[[str, int, int], object] | None) -> None:
        self.tape, self._progress = tape, progress
        self._differences, self._ledgers = differences, ledgers
        self._models = origin.Models()
        self._numbers: weakref.WeakKeyDictionary[Tensor, int] = weakref.WeakKeyDictionary()
        self._labels: weakref.WeakKeyDictionary[Tensor, labels.Labels] = (
            weakref.WeakKeyDictionary())
        self._prints: dict[int, int] = {}  # of the values of leaves, by tensor
        self._ops: dict[int, int] = {}  # by rank of the node
        self._names: set[str] = set()
        self._full = False
        self._walks: list[_Walk] = []  # a hook or a backward may begin another one
        tape.versions = {"tensorlite": tensorlite.__version__, "numpy": np.__version__,
                         "python": platform.python_version()}

    # What a program says of its tensors

    def mark(self, tensor: Tensor, marks: labels.Labels) -> None:
        """Take `marks` for the frames of `tensor`, of its first axes."""
        self._labels[tensor] = marks
        known = labels.held(marks)
        if known:
            self.tape.frames = max(self.tape.frames or 0, known[-1] + 1)
        if tensor in self._numbers:
            self.tape.tensors[self._numbers[tensor]].frames = known

    # Forwards

    def forward(self, node: Node, output: Tensor) -> None:
        if self._is_full():
            return
        where = origin.find(node.inputs, self._models)
        self._op(node, output, where)
        self.tape.events.append(Event("forward", op=self._ops[node.rank],
                                      numbers=formulas.forward_numbers(node, output,
                                                                       self._input_names(node))))

    def _op(self, node: Node, output: Tensor, where: origin.Origin) -> None:
        """Write the op of `node` down, and the tensors that are new."""
        inputs = [None if t is None else self._tensor(t, where) for t in node.inputs]
        marks, shifts = labels.follow(node, output,
                                      [None if t is None else self._labels.get(t)
                                       for t in node.inputs])
        if marks is not None and labels.held(marks):
            self._labels[output] = marks
        number = len(self.tape.ops)
        self._ops[node.rank] = number
        record = self._tensor(output, where, op=number)
        before, after = formulas.formulas(node, output)
        kept: list[Array] = [array for array, _ in node._saved]
        saved = [{"shape": [int(n) for n in array.shape], "dtype": str(array.dtype),
                  "bytes": int(array.nbytes)} for array in kept]
        roles = [*node.function.roles, *[None] * len(inputs)][: len(inputs)]
        source = where.source
        if source is not None:
            source = {**source, "file": self._source(source["file"])}
        self.tape.ops.append(OpRecord(
            op=node.name, slots=list(formulas.slots(node)), inputs=inputs, output=record,
            options=_plain(node.options), forward=before, backward=after, roles=roles,
            shifts=shifts, frames=self.tape.tensors[record].frames, module=where.module,
            module_type=where.module_type, source=source, saved=saved,
            saved_bytes=sum(int(array.nbytes) for array in kept), recorded=bool(node.recording)))

    def _tensor(self, tensor: Tensor, where: origin.Origin, op: int | None = None) -> int:
        """The number of a tensor, written down if it is new, or a leaf with new values."""
        number = self._numbers.get(tensor)
        earlier = None
        if number is not None and self._has_moved(tensor, number):
            earlier, number = number, None
        if number is None:
            number = self._numbers[tensor] = len(self.tape.tensors)
            if tensor.node is None and op is None:
                self._prints[number] = fingerprint(tensor.data)
            kind = ("result" if op is not None or tensor.node is not None
                    else "parameter" if isinstance(tensor, Parameter)
                    else "leaf" if tensor.requires_grad else "constant")
            self.tape.tensors.append(TensorRecord(
                f"%{number}", kind, [int(n) for n in tensor.shape], str(tensor.dtype),
                bool(tensor.requires_grad), op, labels.held(self._labels.get(tensor)),
                self._summary(tensor.data, tensor)))
        record = self.tape.tensors[number]
        if op is not None:
            record.op = op
        if record.name.startswith("%"):
            self._name(tensor, record, where, earlier)
        return number

    def _has_moved(self, tensor: Tensor, number: int) -> bool:
        """Whether a leaf has other values than when it was written down as `number`."""
        return number in self._prints and fingerprint(tensor.data) != self._prints[number]

    def _name(self, tensor: Tensor, record: TensorRecord, where: origin.Origin,
              earlier: int | None) -> None:
        name = tensor.name or self._models.name(tensor)
        if earlier is not None:  # "w" has become "w (2)", and that "w (3)"
            name, _, count = self.tape.tensors[earlier].name.partition(" (")
            name = f"{name} ({int(count[:-1] or 1) + 1})"
        elif name is None and (record.kind != "result" or where.module is None):
            # (Variables inside a model's code have one name for many tensors.)
            name = origin.variable(tensor, where.caller, record.kind != "result")
        if name is not None:
            if name in self._names:
                name += record.name  # a variable used again
            self._names.add(name)
            record.name = name

    def _input_names(self, node: Node) -> list[str | None]:
        names = [None if t is None else self.tape.tensors[self._numbers[t]].name
                 for t in node.inputs]
        return [None if name is None or name.startswith("%") else name for name in names]

    def _source(self, file: str) -> str:
        path = origin.shown(file)
        if path not in self.tape.sources:
            self.tape.sources[path] = [line.rstrip("\n") for line in linecache.getlines(file)]
        return path

    def _summary(self, array: Array, tensor: Tensor) -> Summary:
        return summarise(array, self._labels.get(tensor), self.tape.frames,
                         weights=isinstance(tensor, Parameter))

    def _is_full(self) -> bool:
        """Whether there are so many events that nothing more is recorded; the tape says so."""
        if not self._full and len(self.tape.events) >= MOST_EVENTS:
            self._full = True
            self.tape.notes.append(f"The program went on: only its first {len(self.tape.events)} "
                                   "steps were recorded.")
        return self._full

    # Backwards

    def start(self, root: Tensor, grad: Array, nodes: Sequence[Node]) -> None:
        if self._is_full():
            return
        where = origin.Origin(None, None, None, origin.caller())
        tensors = [root, *(t for node in nodes for t in node.inputs if t is not None)]
        outputs = {t.node.rank: t for t in tensors if t.node is not None}
        for node in reversed(nodes):
            if node.rank not in self._ops:  # made before the recording
                self._op(node, outputs[node.rank], where)
        event = Event("start", tensor=self._tensor(root, where), grad=self._summary(grad, root))
        self.tape.events.append(event)
        walk = _Walk(event, outputs)
        self._walks = [*(walk for walk in self._walks if walk.goes_on()), walk]
        if self._ledgers:
            walk.ledgers = self._follow(root, grad, nodes)
        if self._differences:
            walk.found = self._differentiate(root, grad, nodes)

    def accumulate(self, target: Node | Tensor, before: Array | None, grad: Array,
                   after: Array) -> None:
        if self._full or not self._walks:
            return
        walk = self._walks[-1]
        tensor = target if isinstance(target, Tensor) else walk.outputs[target.rank]
        sent = self._summary(grad, tensor)
        earlier = walk.arrived.get(target)
        total = sent if before is None else self._summary(after, tensor)
        walk.arrived[target] = total
        if target.hooks or isinstance(target, Tensor):
            walk.sums[target] = after.copy() if target.hooks else after  # (a hook may write to it)
        if walk.event.kind == "start":
            return
        slot, found = walk.pending.pop(0)
        right = before is None or _is_sum(after, before, grad)
        walk.event.pieces.append(Piece(slot, self._numbers[tensor], sent, earlier, total,
                                       sum_right=right, check=found))

    def backward(self, node: Node, grad: Array, outgoing: Sequence[Array | None]) -> None:
        walk = None if self._full else self._at(lambda walk: node.rank in walk.outputs)
        if walk is None:
            return
        number = self._ops[node.rank]
        op = self.tape.ops[number]
        output = walk.outputs.pop(node.rank)
        record = self.tape.tensors[op.output]
        arrived, total = walk.arrived.pop(node), walk.sums.pop(node, grad)
        record.grad = self._summary(grad, output) if node.hooks else arrived
        stale = self._is_stale(node)
        found: list[Check | None] = [None] * len(outgoing)
        if self._differences:
            if not stale:
                found = check.check_op(node, grad, outgoing, output.data)
            self._compare(walk, op.output, total)
            if total is not grad and not _equal(total, grad):
                self._note(f"A hook changed the gradient of {record.name}: what lies before it is "
                           "not held against differences of the whole program.")
                walk.changed.add(node.rank)
            self._pass_over(walk, node, op)
        walk.pending = [(slot, found[slot]) for slot, piece in enumerate(outgoing)
                        if piece is not None]
        unsent = [Unsent(slot, tensor, one) for slot, (tensor, one, piece) in
                  enumerate(zip(op.inputs, found, outgoing, strict=True))
                  if piece is None and tensor is not None and one is not None and not one.right]
        numbers = None if stale else formulas.backward_numbers(node, grad, outgoing,
                                                               self._input_names(node))
        walk.event = Event("backward", op=number, grad=record.grad, unsent=unsent, numbers=numbers)
        self.tape.events.append(walk.event)

    def deposit(self, leaf: Tensor, before: Array | None) -> None:
        walk = None if self._full else self._at(lambda walk: leaf in walk.arrived)
        if walk is None:
            return
        number = self._numbers[leaf]
        record = self.tape.tensors[number]
        arrived, total = walk.arrived.pop(leaf), walk.sums.pop(leaf)
        assert leaf.grad is not None
        changed = before is not None or leaf.hooks
        record.grad = self._summary(leaf.grad, leaf) if changed else arrived
        pieces = walk.event.pieces
        if pieces:  # (There are none where backward starts at a leaf.)
            pieces[-1].deposited = True
            pieces[-1].held = None if before is None else self._summary(before, leaf)
        # (The difference of large sums is not what was added.)
        added = total
        if leaf.hooks:
            added = leaf.grad if before is None else _difference(leaf.grad, before)
        for book in walk.ledgers:
            ledger.enter(book, record.name, added)
        if self._differences:
            self._compare(walk, number, total)

    def _at(self, here: Callable[[_Walk], bool]) -> _Walk | None:
        """The walk that is `here`, and goes on: those begun within it have ended. None if it was
        not recorded from its start."""
        while self._walks and not here(self._walks[-1]):
            self._walks.pop()
        return self._walks[-1] if self._walks else None

    def _is_stale(self, node: Node) -> bool:
        """Whether leaves have other values now than when `node` was applied to them. (What it saved
        may still be that: ``w.data = w.data - step`` makes a new array.)"""
        inputs = self.tape.ops[self._ops[node.rank]].inputs
        return any(tensor is not None and number is not None and self._has_moved(tensor, number)
                   for tensor, number in zip(node.inputs, inputs, strict=True))

    def _pass_over(self, walk: _Walk, node: Node, op: OpRecord) -> None:
        """If a changed gradient comes to `node`, have none of its inputs compared."""
        if node.rank in walk.changed:
            for tensor, number in zip(node.inputs, op.inputs, strict=True):
                if tensor is not None and number is not None:
                    walk.found.pop(self._numbers[tensor], None)
                    if tensor.node is not None:
                        walk.changed.add(tensor.node.rank)

    def _note(self, text: str) -> None:
        if text not in self.tape.notes:
            self.tape.notes.append(text)

    # Beside the walk

    def _follow(self, root: Tensor, grad: Array, nodes: Sequence[Node]) -> list[Ledger]:
        def place(joint: Node) -> tuple[str, int]:
            number = self._ops[joint.rank]
            return self.tape.ops[number].module or "", number

        names: dict[Tensor, str] = {
            tensor: self.tape.tensors[number].name for tensor, number in self._numbers.items()
            if self.tape.tensors[number].kind in ("parameter", "leaf")}
        found = ledger.ledgers(root, grad, nodes, names, self._labels.get, place,
                               progress=self._tell("ledgers"))
        self.tape.ledgers += found
        return found

    def _tell(self, what: str) -> Callable[[int, int], object]:
        progress = self._progress
        return lambda done, total: None if progress is None else progress(what, done, total)

    def _differentiate(self, root: Tensor, grad: Array, nodes: Sequence[Node]
                       ) -> dict[int, check.Derivatives]:
        program = check.Program(root, grad, nodes, {n for n in nodes if self._is_stale(n)})
        tensors = program.tensors()
        found = {}
        tell = self._tell("differences")
        for done, tensor in enumerate(tensors):
            found[self._numbers[tensor]] = program.derivatives(tensor)
            tell(done + 1, len(tensors))
        return found

    def _compare(self, walk: _Walk, number: int, grad: Array) -> None:
        found = walk.found.pop(number, None)
        if found is not None:
            self.tape.tensors[number].numeric = check.compare(grad, found)


@np.errstate(all="ignore")
def _is_sum(after: Array, before: Array, grad: Array) -> bool:
    """Whether after = before + grad, up to rounding."""
    xp = array_module(after)
    return bool(xp.allclose(after, before + grad, rtol=1e-3 if after.dtype.itemsize < 4 else 1e-5,
                            atol=0, equal_nan=True))


@np.errstate(all="ignore")
def _difference(a: Array, b: Array) -> Array:
    return a - b


def _equal(a: Array, b: Array) -> bool:
    return bool(array_module(a).array_equal(a, b, equal_nan=True))


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """An op's options as JSON has them: arrays and generators are left out."""
    kept = {str(name): _json(value) for name, value in options.items()}
    return {name: value for name, value in kept.items() if value is not Ellipsis}


def _json(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    if isinstance(value, np.integer | np.floating | np.bool_):
        return _json(value.item())
    if isinstance(value, slice):
        parts = (value.start, value.stop) if value.step is None else (
            value.start, value.stop, value.step)
        return ":".join("" if part is None else str(part) for part in parts)
    if isinstance(value, tuple | list):
        items = [_json(item) for item in value]
        return Ellipsis if Ellipsis in items else items
    if isinstance(value, dict):
        return _plain(value)
    return Ellipsis
