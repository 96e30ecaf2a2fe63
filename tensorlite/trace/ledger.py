"""Where the gradient of a parameter comes from, by path and by frame.

A residual block ends in a sum: of its residual branch, its spatial skip and, in time, what the
frame before brought by the temporal skip. Backwards the gradient that has arrived at this joint
goes along all of them. Every op's backward is linear in the gradient, batch norm's with its mean
terms included: so cut the gradient at the joint into parts, one for each path and each frame of
what the path comes from, walk each part back on its own, and the parts that reach a parameter add
up to its gradient, together with the rest, which does not come by this joint.

The walks are the engine's own, `autograd.walk`, from the terms of the sum. The rest is no
difference: it is a walk from the loss with the joint's gradient set to zero. That all of it adds up
is therefore a check, and `Ledger` says how well it does.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tensorlite.autograd import Node, walk
from tensorlite.device import Array, array_module, to_device
from tensorlite.ops.fused import BlockJoin
from tensorlite.recording import state
from tensorlite.tensor import Tensor

from .labels import Labels
from .tape import Ledger

SHOWN = 6  # elements of a parameter, those where its gradient is largest
UNNAMED = "other"  # a term of the sum that was given no role


class Part(NamedTuple):
    """What of the gradient at a joint goes back to one frame of one term of the sum."""

    role: str
    frame: int | None
    term: Tensor
    grad: Array


@np.errstate(all="ignore")
def ledgers(root: Tensor, grad: Array, nodes: Sequence[Node], names: Mapping[Tensor, str],
            labels_of: Callable[[Tensor], Labels | None],
            place: Callable[[Node], tuple[str, int]], joints: Iterable[Node] | None = None,
            progress: Callable[[int, int], object] | None = None) -> list[Ledger]:
    """A `Ledger` for each joint, from the program's first to its last.

    root, grad, nodes: of a backward walk that is about to begin (`Observer.start`). names: of the
    parameters; a ledger has those that the joint depends on. labels_of: the frames that a tensor
    holds (see `labels`). place: a joint's block and its op's number. joints: those of `find_joints`
    by default. progress: called with joints done and all.

    Nothing is left behind: no ``.grad`` changes, nothing is released, and observers and hooks are
    not called. Where a hook changes a gradient, the ledger is of the program without it.
    """
    chosen = sorted(find_joints(nodes) if joints is None else joints, key=lambda node: node.rank)
    result: list[Ledger] = []
    if not chosen:
        return result
    with _undisturbed(root, nodes) as leaves:
        at: dict[Node, Array] = {}
        whole = _follow(root, grad, leaves, chosen, at)
        where = {leaf: _largest(whole[leaf]) for leaf in names if leaf in whole}
        for done, joint in enumerate(chosen):
            if progress is not None:
                progress(done, len(chosen))
            if joint in at:
                block, op = place(joint)
                result.append(_ledger(root, grad, joint, at[joint], whole, where, names, leaves,
                                      block, op, labels_of))
    if progress is not None:
        progress(len(chosen), len(chosen))
    return result


def enter(book: Ledger, name: str, grad: Array) -> None:
    """Note in a ledger the gradient that the program itself came to, of the parameter `name`."""
    entry = book.parameters.get(name)
    if entry is not None:
        values = np.asarray(to_device(grad, "cpu"), np.float64)
        entry["run"] = {"norm": _number(np.linalg.norm(values)),
                        "values": _numbers(values, np.array(entry["where"]))}


def find_joints(nodes: Iterable[Node]) -> list[Node]:
    """The sums of named parts among `nodes`, in their order: of a sum in several steps the last.

    Fused joints are passed over: their walks leave sums for each other and cannot be cut.
    """
    named = [node for node in nodes if any(node.function.roles) and node.function is not BlockJoin]
    inner = {term.node for node in named
             for role, term in zip(node.function.roles, node.inputs, strict=True)
             if role is None and term is not None}
    return [node for node in named if node not in inner]


def parts(joint: Node, grad: Array,
          labels_of: Callable[[Tensor], Labels | None]) -> list[Part]:
    """The parts of `grad`, the gradient of the joint's sum; those that are zero are left out."""
    found = []
    for role, term, piece in _terms(joint, grad):
        labels = np.asarray(-1) if (held := labels_of(term)) is None else held
        for frame in np.unique(labels).tolist():
            here = array_module(piece).asarray(labels == frame)
            part = array_module(piece).zeros_like(piece)
            part[here] = piece[here]
            found.append(Part(role, None if frame < 0 else frame, term, part))
    return [part for part in found if part.grad.any()]


def _terms(node: Node, grad: Array) -> Iterator[tuple[str, Tensor, Array]]:
    """The terms of a sum, which may have been made in several steps, and the gradient of each."""
    for role, term, piece in zip(node.function.roles, node.inputs, node.backward(grad),
                                 strict=True):
        if term is None or piece is None:
            continue
        if role is None and term.node is not None and find_joints([term.node]):
            yield from _terms(term.node, piece)
        else:
            yield role or UNNAMED, term, piece


@contextlib.contextmanager
def _undisturbed(root: Tensor, nodes: Sequence[Node]) -> Iterator[list[Tensor]]:
    """The leaves that a walk from `root` over `nodes` reaches. Within it, walks are not observed
    and call no hooks of the program's; at the end every leaf has the gradient it had."""
    inputs = [root, *(t for node in nodes for t in node.inputs if t is not None)]
    leaves = list(dict.fromkeys(t for t in inputs if t.node is None and t.requires_grad))
    grads = [leaf.grad for leaf in leaves]
    targets: list[Node | Tensor] = [*nodes, *leaves]
    hooks = [target.hooks for target in targets]
    observers, state.observers = state.observers, ()
    try:
        for target in targets:
            target.hooks = []
        yield leaves
    finally:
        state.observers = observers
        for target, kept in zip(targets, hooks, strict=True):
            target.hooks = kept
        for leaf, before in zip(leaves, grads, strict=True):
            leaf.grad = before


def _follow(root: Tensor, grad: Array, leaves: Sequence[Tensor], joints: Iterable[Node] = (),
            at: dict[Node, Array] | None = None) -> dict[Tensor, np.ndarray]:
    """The gradients of the leaves that `grad` at `root` reaches, in float64 on the CPU; `at` gets
    those at `joints`."""
    for leaf in leaves:
        leaf.grad = None
    wanted = set(joints)
    for step in walk(root, grad, retain_graph=True):
        if at is not None and step.node in wanted:
            at[step.node] = step.grad
    return {leaf: np.asarray(to_device(leaf.grad, "cpu"), np.float64)
            for leaf in leaves if leaf.grad is not None}


def _ledger(root: Tensor, grad: Array, joint: Node, at: Array, whole: Mapping[Tensor, np.ndarray],
            where: Mapping[Tensor, np.ndarray], names: Mapping[Tensor, str],
            leaves: Sequence[Tensor], block: str, op: int,
            labels_of: Callable[[Tensor], Labels | None]) -> Ledger:
    split = parts(joint, at, labels_of)
    sums = {leaf: np.zeros_like(whole[leaf]) for leaf in where}
    upstream: set[Tensor] = set()

    def entries(found: Mapping[Tensor, np.ndarray]) -> dict[Tensor, dict[str, Any]]:
        for leaf in sums.keys() & found.keys():
            sums[leaf] += found[leaf]
        return {leaf: _entry(found.get(leaf), whole[leaf], where[leaf]) for leaf in where}

    columns = []
    for part in split:
        found = _follow(part.term, part.grad, leaves)
        upstream.update(found)
        columns.append(entries(found))
    joint.hooks = [array_module(at).zeros_like]
    try:
        rest = entries(_follow(root, grad, leaves))
    finally:
        joint.hooks = []
    parameters = {}
    for leaf in where:
        if leaf in upstream:
            all_of_it = whole[leaf]
            parameters[names[leaf]] = {
                "shape": list(leaf.shape), "where": where[leaf].tolist(),
                "every": len(where[leaf]) == leaf.size,
                "whole": {"norm": _number(np.linalg.norm(all_of_it)),
                          "values": _numbers(all_of_it, where[leaf])},
                "parts": [column[leaf] for column in columns], "rest": rest[leaf],
                "error": _number(_error(sums[leaf], all_of_it))}
    return Ledger(block, op, [
        {"role": part.role, "frame": part.frame,
         "norm": _number(np.linalg.norm(np.asarray(to_device(part.grad, "cpu"), np.float64)))}
        for part in split], parameters)


def _entry(part: np.ndarray | None, whole: np.ndarray, where: np.ndarray) -> dict[str, Any]:
    """What a ledger says of one part of a parameter's gradient; None: nothing of it comes here."""
    if part is None:
        part = np.zeros_like(whole)
    square = np.vdot(whole, whole)
    return {"norm": _number(np.linalg.norm(part)),
            "share": _number(np.vdot(part, whole) / square) if square else None,
            "values": _numbers(part, where)}


def _largest(array: np.ndarray) -> np.ndarray:
    """The flat indices of the `SHOWN` largest elements, in order."""
    sizes = -np.abs(array.reshape(-1))
    few = sizes.size <= SHOWN
    return np.arange(sizes.size) if few else np.sort(np.argpartition(sizes, SHOWN)[:SHOWN])


def _error(total: np.ndarray, whole: np.ndarray) -> float:
    """The largest difference, relative to the largest element of `whole` unless that is zero."""
    return float(np.abs(total - whole).max(initial=0.0) / (np.abs(whole).max(initial=0.0) or 1.0))


def _numbers(array: np.ndarray, where: np.ndarray) -> list[float | None]:
    return [_number(x) for x in array.reshape(-1)[where]]


def _number(x: Any) -> float | None:
    """x for JSON, which has no NaN and no infinity."""
    return float(x) if math.isfinite(x) else None
