"""What is recorded while a program runs, and who looks on.

`no_grad` stops the recording. An `Observer` is told of every op applied and of every addition of a
gradient: the step-through page, profilers and tests look in through it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .device import Array

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .autograd import Node
    from .distributed import NormPool
    from .tensor import Tensor


class Observer:
    """Looks on while programs run: override what is of interest and pass it to `observe`."""

    def forward(self, node: Node, output: Tensor) -> None:
        """An op has been applied, recorded or not (``node.recording``)."""

    def start(self, root: Tensor, grad: Array, nodes: Sequence[Node]) -> None:
        """A backward walk begins at `root` with the gradient `grad`; it will pass `nodes` in this
        order, none of which has let go of anything yet."""

    def backward(self, node: Node, grad: Array, outgoing: Sequence[Array | None]) -> None:
        """The walk is at `node`: `grad` came in, `outgoing` is about to be added to its inputs."""

    def accumulate(self, target: Node | Tensor, before: Array | None, grad: Array,
                   after: Array) -> None:
        """`grad` has reached `target`, the node that made an intermediate result or a leaf tensor:
        `before` is the sum of what had arrived earlier (None at first), `after` the sum now."""

    def deposit(self, leaf: Tensor, before: Array | None) -> None:
        """The sum at `leaf` is complete and part of ``leaf.grad``, which was `before`."""


class _State(threading.local):
    recording = True
    fused = True
    observers: tuple[Observer, ...] = ()
    pool: NormPool | None = None  # with whom batch norms in training share their statistics

    def tell(self, event: str, *what: Any) -> None:
        """Call the method `event` of all who look on."""
        for observer in self.observers:
            getattr(observer, event)(*what)


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
