"""Stepping through the gradient flow: record a program, then look at it.

    >>> import tensorlite as tl
    >>> from tensorlite import trace
    >>> x = tl.Tensor([1.0, 2.0], requires_grad=True)
    >>> with trace.record() as tape:
    ...     loss = (x * x).sum()
    ...     loss.backward()
    >>> tape.save_html("flow.html")

Every op applied and every step of the backward walk becomes an event. It is all done by hooks that
the engine has anyway (`tensorlite.observe`), and costs nothing when no recording goes on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np

from tensorlite.ops.fused import unfused
from tensorlite.recording import observe, state
from tensorlite.tensor import Tensor

from . import labels, origin
from .inject import BUGS, inject
from .recorder import Recorder
from .tape import Tape

__all__ = ["BUGS", "Tape", "frame", "frames", "inject", "record"]


@contextlib.contextmanager
def record(title: str = "Gradient flow", *, check: bool = False, ledger: bool = False,
           progress: Callable[[str, int, int], object] | None = None) -> Iterator[Tape]:
    """Record what the program within it does; the tape is complete when the block ends.

    The program runs the simple ops, not the fused ones (`tensorlite.unfused`). What other threads
    do is not recorded.

    check: put derivatives by central differences beside those of backward, for every element of
        small tensors and a sample of large ones. Takes many times as long as the program. The
        forward of each op is run again: one of your own should do nothing but return its output.
    ledger: where paths of a residual block meet, follow the parts of the gradient separately to all
        parameters; see `Ledger`.
    progress: called as ``progress(what, done, total)`` while differences and ledgers are computed.
    """
    tape = Tape(title)
    try:
        with observe(Recorder(tape, check, ledger, progress)), unfused():
            yield tape
    finally:
        origin.let_go()


def frames(x: Tensor, axis: int = 1) -> Tensor:
    """Say that `axis` of `x` is time, for recordings that go on; returns `x`.

    What is made of x is then known by its frames, also where the axes (B, T, …) are folded into
    (B·T, …) or taken apart again.
    """
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis: {axis} is out of range for a tensor of shape {x.shape}")
    return _mark(x, labels.along_axis(x.shape, axis % x.ndim))


def frame(x: Tensor, t: int) -> Tensor:
    """Say that all of `x` is of frame `t`, counted from 0, for recordings that go on; returns `x`.
    """
    if not isinstance(t, int) or t < 0:
        raise ValueError(f"t: expected an integer >= 0, got {t!r}")
    return _mark(x, np.asarray(t))


def _mark(x: Tensor, marks: labels.Labels) -> Tensor:
    for observer in state.observers:
        if isinstance(observer, Recorder):
            observer.mark(x, marks)
    return x
