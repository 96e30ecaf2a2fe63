"""The tape: recording a program as it runs, and walking it backwards.

A `Function` is an op: `forward` and `backward` on arrays, side by side. Applying one to tensors
makes a `Node` that remembers the inputs and what the op saved. `walk` visits the nodes from the
loss back, in the reverse of the order in which they were made, and adds gradients up where paths
meet: the chain rule, and all there is to it. ``Tensor.backward`` is a loop over `walk`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from . import kernels
from .device import Array, array_module, fingerprint, is_whole
from .exchange import numbers
from .recording import state
from .tensor import Tensor

_ranks = itertools.count()


class Node:
    """One application of a Function; the `ctx` of its forward and backward.

    inputs: the tensors it was applied to (None where an optional one was left out).
    needs: for each input, whether its gradient is wanted; backward may skip the others.
    rank: the place in the program's order; every input was made by a node of smaller rank.

    Forward keeps arrays with `save`, anything else as attributes.
    """

    def __init__(self, function: type[Function], inputs: tuple[Tensor | None, ...],
                 options: dict[str, Any]) -> None:
        self.function, self.inputs, self.options = function, inputs, options
        self.rank = next(_ranks)
        self.needs = tuple(t is not None and t.requires_grad for t in inputs)
        self.recording = state.recording and any(self.needs)
        self.hooks: list[Callable[[Array], Array | None]] = []
        self.released = False
        self._saved: tuple[tuple[Array, int], ...] = ()

    if TYPE_CHECKING:  # the attributes that a forward makes up are its own affair
        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...

    @property
    def name(self) -> str:
        return self.function.name

    def __repr__(self) -> str:
        return f"<{self.name} #{self.rank}>"

    def save(self, *arrays: Array) -> None:
        """Keep `arrays` for backward; they must not be changed in place until it has run."""
        if self.recording:
            self._saved = tuple((array, fingerprint(array)) for array in arrays)

    @property
    def saved(self) -> tuple[Array, ...]:
        """What `save` kept. RuntimeError if one of the arrays has been written to since."""
        for array, before in self._saved:
            if fingerprint(array) != before:
                raise RuntimeError(
                    f"{self.name}: an array of shape {array.shape} that it saved for backward was "
                    "changed in place before backward ran; change a copy, or run backward first")
        return tuple(array for array, _ in self._saved)

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        """The gradient of each input (None where it is not wanted), given that of the output."""
        grads = self.function.backward(self, grad)
        grads = list(grads) if isinstance(grads, tuple) else [grads]
        if len(grads) != len(self.inputs):
            raise RuntimeError(f"{self.name}: backward returned {len(grads)} gradients for "
                               f"{len(self.inputs)} inputs")
        for i, tensor in enumerate(self.inputs):
            if tensor is None or not tensor.requires_grad:
                grads[i] = None
            elif grads[i] is not None:
                shape = getattr(grads[i], "shape", None)
                if shape != tensor.shape:
                    got = type(grads[i]) if shape is None else f"a gradient of shape {shape}"
                    raise RuntimeError(f"{self.name}: backward returned {got} for an input of "
                                       f"shape {tensor.shape}")
                # (NumPy makes scalars of results without axes.)
                grads[i] = array_module(tensor.data).asarray(grads[i], dtype=tensor.dtype)
        state.tell("backward", self, grad, grads)
        return tuple(grads)

    def holds(self, array: Array) -> bool:
        """Whether `array` is one of those saved."""
        return any(array is kept for kept, _ in self._saved)

    def release(self) -> None:
        """Let go of the inputs and of all that forward kept."""
        self.__dict__ = {**Node(self.function, (), {}).__dict__, "rank": self.rank,
                         "released": True}


class Function:
    """An op. A subclass defines, as static methods,

    ``forward(ctx, *arrays, **options) -> array`` and
    ``backward(ctx, grad) -> array``, or a tuple of one for each input, None where there is none.

    Neither writes to its arguments; backward returns new arrays, `grad`, or views of `grad`.
    ``apply(*tensors, **options)`` runs forward and records it."""

    name: str
    roles: tuple[str | None, ...] = ()  # of a sum's inputs, where they play different parts
    forward: Callable[..., Array]
    backward: Callable[[Node, Array], Any]

    def __init_subclass__(cls) -> None:
        cls.name = cls.__dict__.get("name", cls.__name__.lower())

    @classmethod
    def apply(cls, *inputs: Any, **options: Any) -> Tensor:
        """Apply the op to tensors; arrays are taken as constants, None is passed on."""
        tensors = tuple(t if t is None or isinstance(t, Tensor) else Tensor(t) for t in inputs)
        devices = [t.device for t in tensors if t is not None]
        if len(set(devices)) > 1:
            raise ValueError(f"{cls.name}: inputs are on different devices: {', '.join(devices)}")
        node = Node(cls, tensors, options)
        output = Tensor(cls.forward(node, *(t if t is None else t.data for t in tensors),
                                    **options))
        if node.recording:
            output.node, output.requires_grad = node, True
        state.tell("forward", node, output)
        return output


class Step(NamedTuple):
    """One step of the backward walk: at `node`, `grad` came in and `outgoing` went to its inputs,
    None where no gradient is wanted."""

    node: Node
    grad: Array
    outgoing: tuple[Array | None, ...]


def walk(root: Tensor, grad: Array | None = None, retain_graph: bool = False,
         in_place: bool = False) -> Iterator[Step]:
    """Walk the tape back from `root`, yielding a `Step` for each node that it passes.

    A node is visited after all that used its result, so its gradient is complete. After the last
    use of a leaf, its hooks run and the sum is added to its ``.grad``. Unless `retain_graph`, each
    node lets go of what it saved when the caller asks for the next step.

    grad: d(loss)/d(root), of root's shape; may be left out when root has one element.
    in_place: form sums in the arrays of earlier steps: faster, for who does not look at them.
    Raises RuntimeError where there is nothing to differentiate, ValueError for a wrong `grad`,
    TypeError where a leaf of integers requires its gradient.
    """
    if not root.requires_grad:
        raise RuntimeError("backward: the result does not depend on a tensor that requires_grad")
    nodes = _reachable(root)
    uses = dict.fromkeys([root], 1) if root.node is None else {}  # of each leaf, still to come
    for node in nodes:
        if node.released:
            raise RuntimeError(f"{node.name}: backward has already passed this node and released "
                               "what it saved; use backward(retain_graph=True) the first time")
        for leaf in node.inputs:
            if leaf is not None and leaf.requires_grad and leaf.node is None:
                uses[leaf] = uses.get(leaf, 0) + 1
    for leaf in uses:  # its requires_grad may have been assigned to
        numbers(leaf.data, requires_grad=True)

    def arrive(tensor: Tensor, piece: Array | None, fresh: bool) -> None:
        if piece is not None:
            sums.add(tensor.node or tensor, piece, fresh)
        if tensor.node is None:
            uses[tensor] -= 1
            if uses[tensor] == 0:
                sums.deposit(tensor)

    sums, seed = _Sums(in_place and not state.observers), _seed(root, grad)
    state.tell("start", root, seed, nodes)
    arrive(root, seed, fresh=False)
    for node in nodes:
        incoming = sums.take(node)
        outgoing = (None,) * len(node.inputs) if incoming is None else node.backward(incoming)
        for tensor, piece in zip(node.inputs, outgoing, strict=True):
            if tensor is not None and tensor.requires_grad:
                fresh = (piece is not None and piece is not incoming and is_whole(piece)
                         and sum(piece is g for g in outgoing) == 1 and not node.holds(piece))
                arrive(tensor, piece, fresh)
        if incoming is not None:
            yield Step(node, incoming, outgoing)
        if not retain_graph:
            node.release()


class _Sums:
    """The gradients that have arrived at nodes and leaves which the walk has yet to pass."""

    def __init__(self, in_place: bool) -> None:
        self._in_place = in_place
        self._sums: dict[Node | Tensor, Array] = {}
        self._owned: set[Node | Tensor] = set()  # those whose array no one else holds

    def add(self, target: Node | Tensor, piece: Array, fresh: bool) -> None:
        before = self._sums.get(target)
        if before is None:
            after = piece
        elif target in self._owned:
            kernels.of(before).accumulate(before, piece)
            after, fresh = before, True
        elif fresh and self._in_place:
            kernels.of(piece).accumulate(piece, before)
            after = piece
        else:
            after, fresh = array_module(piece).asarray(before + piece), True
        self._sums[target] = after
        if fresh and self._in_place:
            self._owned.add(target)
        state.tell("accumulate", target, before, piece, after)

    def take(self, target: Node | Tensor) -> Array | None:
        """The sum at `target`, after its hooks; None if nothing arrived."""
        grad = self._sums.pop(target, None)
        for hook in tuple(target.hooks) if grad is not None else ():
            self._owned.discard(target)  # the hook may keep it
            replacement = hook(grad)
            if replacement is not None:
                if getattr(replacement, "shape", None) != grad.shape:
                    raise ValueError(f"hook: expected a gradient of shape {grad.shape}, got "
                                     f"{getattr(replacement, 'shape', type(replacement))}")
                grad = array_module(grad).asarray(replacement)
        return grad

    def deposit(self, leaf: Tensor) -> None:
        """Add the sum at `leaf` to its ``.grad``."""
        grad, before = self.take(leaf), leaf.grad
        if grad is None:
            return
        if before is not None:
            grad = before + grad
        elif leaf not in self._owned:
            grad = grad.copy()
        leaf.grad = array_module(leaf.data).asarray(grad)
        state.tell("deposit", leaf, before)


def _reachable(root: Tensor) -> list[Node]:
    """Every node that `root` depends on, the last made first."""
    found: set[Node] = set()
    frontier = [root.node] if root.node else []
    while frontier:
        node = frontier.pop()
        if node not in found:
            found.add(node)
            frontier += [t.node for t in node.inputs if t is not None and t.node is not None]
    return sorted(found, key=lambda node: node.rank, reverse=True)


def _seed(root: Tensor, grad: Array | None) -> Array:
    xp = array_module(root.data)
    if grad is None:
        if root.size != 1:
            raise ValueError(f"grad: needed to start backward from a tensor of shape {root.shape}; "
                             "only a scalar can do without")
        return xp.ones_like(root.data)
    grad = xp.asarray(grad.data if isinstance(grad, Tensor) else grad, dtype=root.dtype)
    if grad.shape != root.shape:
        raise ValueError(f"grad: expected the shape {root.shape} of the tensor, got {grad.shape}")
    return grad
