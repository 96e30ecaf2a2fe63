"""What is recorded while a program runs, and who looks on.

`no_grad` stops the recording. An `Observer` is told of every op applied and of every addition of a
gradient: the step-through page, profilers and tests look in through it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .device import Array

if TYPE_CHECKING:
    from .autograd import Node
    from .tensor import Tensor


class Observer:
    """Looks on while programs run: override what is of interest and pass it to `observe`."""

    def forward(self, node: Node, output: Tensor) -> None:
        """An op has been applied, recorded or not (``node.recording``)."""

    def accumulate(self, target: Node | Tensor, before: Array | None, grad: Array,
                   after: Array) -> None:
        """`grad` has reached `target`, the node that made an intermediate result or a leaf tensor:
        `before` is the sum of what had arrived earlier (None at first), `after` the sum now."""


class _State(threading.local):
    recording = True
    fused = True
    observers: tuple[Observer, ...] = ()


state = _State()  # each thread has its own


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Within it, or in a function decorated with ``@no_grad()``, nothing is recorded."""
    before, state.recording = state.recording, False
    try:
        yield
    finally:
        state.recording = before


@contextlib.contextmanager
def observe(observer: Observer) -> Iterator[Observer]:
    """Within it, `observer` is told of every op applied and every gradient added."""
    before = state.observers
    state.observers = (*before, observer)
    try:
        yield observer
    finally:
        state.observers = before
