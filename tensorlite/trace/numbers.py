"""The formulas of one step with its numbers put in, to be followed by hand.

"w · x = 2 · 3 = 6" where arrays are small; of larger products one element is worked out. The result
is what the op returned and what its backward sent, not what the formula comes to: where the two
differ, the text says so. Here are the ops whose formulas can be computed as they are written;
`worked` has the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tensorlite.autograd import Node
from tensorlite.device import Array
from tensorlite.tensor import Tensor

from . import worked
from .equations import (
    RETURNED,
    SENT,
    Place,
    Step,
    equation,
    factor,
    middle,
    picked,
    placed,
    shown,
    size,
)
from .expressions import Expression, evaluate, expression, reduced, substitute, summed, summed_axes


@np.errstate(all="ignore")
def forward_numbers(node: Node, output: Tensor,
                    names: Sequence[str | None] | None = None) -> str | None:
    """The op's formula with the numbers of this application; None where they are too many.

    names: of the variables that hold the inputs, where they are known.
    """
    step = Step(node, names)
    y = output.data
    if step.empty:
        return None
    written = expression(node)
    if written is not None and step.small(y):
        return _forward(step, written, y)
    if written is not None and written.elementwise and y.size:
        return _forward(step, written, y, middle(y.shape))
    special = worked.FORWARD.get(step.op)
    text = None if special is None else special(step, y)
    if text is None and written is None and step.small(y):
        taken = ", ".join(shown(array) for array in step.arrays if array is not None)
        text = f"{node.name}({taken}) = {shown(y)}"
    return text


@np.errstate(all="ignore")
def backward_numbers(node: Node, grad: Array, outgoing: worked.Outgoing,
                     names: Sequence[str | None] | None = None) -> str | None:
    """The formulas of the gradients with the numbers of this step, a line for each input whose
    gradient was sent; None where they are too many."""
    step = Step(node, names)
    lines: list[str] = []
    if step.empty:
        return None
    written = expression(node)
    if written is not None and step.small(grad):
        lines = _backward(step, written, grad, outgoing)
    elif written is not None and written.elementwise and grad.size:
        lines = _backward(step, written, grad, outgoing, middle(grad.shape))
    elif step.op in worked.BACKWARD:
        lines = list(worked.BACKWARD[step.op](step, grad, outgoing))
    if not lines and written is None and step.small(grad):
        lines = [f"{step.gradient(slot)} = {shown(sent)}, from g = {shown(grad)}"
                 for slot, sent in enumerate(outgoing) if sent is not None]
    return "\n".join(lines) or None


def _forward(step: Step, written: Expression, y: Array,
                        place: Place | None = None) -> str:
    values = step.values(place)
    put_in = substitute(written.forward, {k: factor(v) for k, v in values.items()})
    if place is not None:
        parts, y = [placed("y", place), put_in], picked(y, place)
    else:
        parts = [step.renamed(written.forward), put_in]
    return equation(parts, evaluate(written.forward, values), y, RETURNED)


def _backward(step: Step, written: Expression, grad: Array, outgoing: worked.Outgoing,
                         place: Place | None = None) -> list[str]:
    values, lines = step.values(place, grad), []
    for slot, sent in enumerate(outgoing):
        if sent is None:
            continue
        text, shape = written.backward[slot], step.arrays[slot].shape
        axes = summed_axes(written.full[slot], shape)
        put_in = shown(values["g"]) if text == "g" else substitute(
            text, {k: factor(v) for k, v in values.items()})
        value = evaluate(text, values)
        if place is None:
            lines.append(equation([step.gradient(slot), reduced(step.renamed(text), axes),
                                   reduced(put_in, axes)], summed(value, shape), sent, SENT,
                                  size(value) if axes else 0.0))
        elif not axes:
            put_in = placed("g", place) if text == "g" else put_in
            lines.append(equation([placed(step.gradient(slot), place), put_in], value,
                                  picked(sent, place), SENT))
    return lines
