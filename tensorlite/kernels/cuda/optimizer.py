"""One update of all parameters: Adam, and before it a look at all gradients.

A few launches for any number of parameters, whatever their sizes: a table says where they lie. What
changes from step to step is in device memory (`control`, and a loss scaler's state), read and
written by the kernels themselves. So the host never waits, and launches can be captured and
replayed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tensorlite.device import Array, array_module
from tensorlite.kernels.cuda.compiler import Kernel, kernel
from tensorlite.kernels.cuda.launch import address, launch, type_name

MASTERS = ("float32", "float64")  # dtypes of parameters: an update is lost in 16 bits
PIECE = 8192  # elements a block
# Places in `control`: the host sets the first two, `prepare` works out the others.
LR, STEPS, NORM, SKIPPED, SCALE, FACTOR, RATE, EPSILON = range(8)
CONTROLS = 8


class Entry(NamedTuple):
    """A parameter: its values, their gradient, and Adam's two moments. All contiguous, of one size
    and dtype."""

    value: Array
    grad: Array
    first: Array
    second: Array


def kernels() -> list[Kernel]:
    """Every kernel that these launchers launch."""
    return [*map(_squares, MASTERS), _prepare(), *map(_adam, MASTERS)]


def _squares(dtype: Any) -> Kernel:
    return _on_parameters("gradient_squares", dtype)


def _adam(dtype: Any) -> Kernel:
    return _on_parameters("adam", dtype)


def _on_parameters(name: str, dtype: Any) -> Kernel:
    if np.dtype(dtype).name not in MASTERS:
        raise TypeError(f"Adam on a GPU updates parameters of {' or '.join(MASTERS)}, got {dtype}")
    return kernel("optimizer.cu", name, hot=True, TYPE=type_name(dtype), PIECE=PIECE)


def _prepare() -> Kernel:
    return kernel("optimizer.cu", "prepare_update", TYPE="double", PIECE=PIECE)


class Table:
    """Where parameters of one dtype lie, and how they are cut into pieces, in device memory.

    The memory of gradients is often the same as in the step before: then nothing is copied. A copy
    is queued behind the work before it and does not make the host wait.
    """

    def __init__(self) -> None:
        self._rows: np.ndarray | None = None
        self._sizes: list[int] = []
        self.blocks = 0
        self.table: Array = None
        self.pieces: Array = None

    def set(self, entries: Sequence[Entry]) -> None:
        """Describe these parameters, one at least; they are to be alive until the next time."""
        xp = array_module(entries[0].value)
        sizes = [entry.value.size for entry in entries]
        rows = np.array([(*map(address, entry), size)
                         for entry, size in zip(entries, sizes, strict=True)], np.uint64)
        if self._sizes != sizes:
            pieces = np.array([(i, start) for i, size in enumerate(sizes)
                               for start in range(0, size, PIECE)], np.int64)
            self._sizes, self._rows, self.blocks = sizes, None, len(pieces)
            self.pieces = xp.asarray(pieces)
        if self._rows is None or not np.array_equal(rows, self._rows):
            self._rows, self.table = rows, xp.asarray(rows)


def gradient_squares(tables: Iterable[tuple[Table, np.dtype]], like: Array) -> Array:
    """Sums of squares of pieces of all gradients, float64; all are finite just where the gradients
    are. like: any array on their device."""
    tables = list(tables)
    partial = array_module(like).empty(sum(table.blocks for table, _ in tables), np.float64)
    at = 0
    for table, dtype in tables:
        launch(_squares(dtype), (table.blocks,), table.table, table.pieces,
               partial[at : at + table.blocks])
        at += table.blocks
    return partial


def prepare(control: Array, partial: Array | None, scaling: Array | None,
            betas: tuple[float, float], eps: float, max_norm: float | None, growth_steps: int,
            largest: float) -> None:
    """Decide on a step of Adam, in `control` (see there), and move the loss scale on.

    control: float64, CONTROLS long; of it LR and STEPS are read. partial: from `gradient_squares`;
    None: update in any case. scaling: loss scale and good steps since it changed, float64, or None:
    halved where a gradient is not finite, doubled, up to `largest`, after `growth_steps` good ones.
    max_norm: gradients of a larger norm are scaled down to it.
    """
    launch(_prepare(), (1,), partial, np.int32(0 if partial is None else partial.size), control,
           scaling, np.float64(betas[0]), np.float64(betas[1]), np.float64(eps),
           np.float64(max_norm or 0), np.int32(growth_steps), np.float64(largest))


def adam(table: Table, dtype: np.dtype, control: Array, betas: tuple[float, float],
         weight_decay: float) -> None:
    """Adam's step on all parameters of a table, as `prepare` decided; in place."""
    beta1, beta2 = betas
    numbers = (beta1, 1 - beta1, beta2, 1 - beta2, weight_decay)
    launch(_adam(dtype), (table.blocks,), table.table, table.pieces, control,
           *map(np.float64, numbers))
