"""What the tests of kernels on rows of channels share: cases, a cramped emulator, agreement."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np
import pytest
from hypothesis import strategies as st

from tensorlite.kernels.cuda import rows
from tensorlite.kernels.cuda.compiler import Kernel
from tensorlite.kernels.cuda.launch import running_on, sums_dtype
from tests.cuda_on_cpu.emulator import SCHEDULES, Emulator

DTYPES = ("float16", "float32", "float64")

# Channel counts: odd ones, ones whose vectors are fewer, as many and more than a block is wide.
arrays = dict(
    seed=st.integers(0, 2**31),
    shape=st.tuples(st.integers(1, 6), st.integers(1, 9), st.sampled_from([1, 3, 8, 33, 40, 264])),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(["plain", "strided", "transposed", "reversed"]),
    blocks=st.sampled_from([1, 3, 2048]),
)
orders = st.sampled_from(SCHEDULES)


@contextlib.contextmanager
def cramped(family: ModuleType, blocks: int = 2048, schedule: str = "forward") -> Iterator[None]:
    """Kernels run in the emulator, in at most so many blocks; those that are not in the list of
    `family` fail."""
    emulator, known = Emulator(schedule), set(family.kernels())

    def run(kernel: Kernel, *arguments: object) -> None:
        assert kernel in known
        emulator(kernel, *arguments)

    with pytest.MonkeyPatch.context() as patch, running_on(run):
        patch.setattr(rows, "BLOCKS", blocks)
        patch.setattr(rows, "RUNS", blocks)
        patch.setattr(rows, "LEAST", 1)
        yield


def wide(*given: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(a.astype(np.float64) for a in given)


def vectors_of(make_array: Callable[..., np.ndarray], seed: int, shape: tuple[int, ...],
               dtype: str, count: int) -> list[np.ndarray]:
    """Per-channel vectors as they come beside arrays of a shape and dtype."""
    return [make_array(seed + i, shape[-1:], sums_dtype(dtype).name, "plain")
            for i in range(count)]


def assert_near(actual: np.ndarray, expected: np.ndarray, magnitude: np.ndarray | float) -> None:
    """Agree with a float64 reference to 64 roundings of `magnitude`, the sum of the absolute values
    of the terms, in what sums are formed in; a half is rounded once more."""
    assert actual.shape == expected.shape
    bound = 64 * np.finfo(sums_dtype(actual.dtype)).eps * np.broadcast_to(magnitude, actual.shape)
    if actual.dtype == np.float16:
        bound = bound + np.abs(expected) * 2.0**-11 + 2.0**-25
    worst = np.max(np.abs(actual.astype(np.float64) - expected) - bound, initial=-1.0)
    assert worst <= 0, f"beyond the bound by {worst}"


def misaligned(a: np.ndarray) -> np.ndarray:
    """A contiguous copy of a that starts an element after an address that vectors may have."""
    buffer = np.empty(a.size + 1, a.dtype)
    assert buffer.ctypes.data % 16 == 0
    copy = buffer[1:].reshape(a.shape)
    copy[...] = a
    return copy
