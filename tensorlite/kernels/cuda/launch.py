"""Launching kernels on arrays: through CuPy on a GPU, or through a stand-in that a test installs.

The launchers of this package allocate with the array module of their inputs and name a device by
the arrays they got, so the same code runs on CuPy arrays and, under `running_on`, on NumPy arrays
given to an emulator.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tensorlite.device import Array, is_on_gpu
from tensorlite.kernels.cuda.compiler import Kernel, compile_kernel

Grid = tuple[int, ...]
# Runs a kernel on NumPy arrays: (kernel, grid, arguments, bytes of dynamic shared memory).
Runner = Callable[[Kernel, Grid, Sequence[Any], int], None]

NAMES = {"float16": "half16", "float32": "float", "float64": "double"}  # in the sources
STATIC_SHARED = 48 << 10  # bytes a block may have without asking

_runner: Runner | None = None


@contextlib.contextmanager
def running_on(runner: Runner) -> Iterator[None]:
    """Inside, kernels given NumPy arrays are run by `runner`."""
    global _runner
    before, _runner = _runner, runner
    try:
        yield
    finally:
        _runner = before


def type_name(dtype: Any) -> str:
    """What the sources call a dtype; TypeError for one that the kernels do not know."""
    try:
        return NAMES[np.dtype(dtype).name]
    except KeyError:
        raise TypeError(f"CUDA kernels take {', '.join(NAMES)}, got {dtype}") from None


def sums_dtype(dtype: Any) -> np.dtype:
    """What sums of a dtype are formed and kept in; also that of per-channel vectors beside it."""
    dtype = np.dtype(dtype)
    return np.dtype(np.float32) if dtype == np.float16 else dtype


def address(array: Array) -> int:
    """Where the first element of an array lies, in the memory that kernels see."""
    return array.data.ptr if is_on_gpu(array) else array.ctypes.data


def launch(kernel: Kernel, grid: Grid, *arguments: Array | np.generic | None,
           shared: int = 0) -> None:
    """Run a kernel on a grid of blocks (x, y, z at most), `kernel.threads` threads each.

    Arguments are contiguous arrays (their first element is passed; a view that starts inside
    another array is fine), NumPy scalars of exactly the parameter's type, or None for a null
    pointer. shared: bytes of dynamic shared memory. A grid without blocks launches nothing.
    """
    if 0 in grid:
        return
    if not all(a is None or hasattr(a, "dtype") for a in arguments):
        raise TypeError(f"{kernel}: arguments are arrays, NumPy scalars or None, got {arguments}")
    first: Any = next(a for a in arguments if hasattr(a, "dtype") and not isinstance(a, np.generic))
    if is_on_gpu(first):
        function = _function(kernel, first.device.id, shared)
        filled = tuple(np.uintp(0) if a is None else a for a in arguments)
        function(grid, (kernel.threads,), filled, shared_mem=shared)
    elif _runner is not None:
        _runner(kernel, grid, arguments, shared)
    else:
        raise RuntimeError(f"{kernel}: CUDA kernels take CuPy arrays, got NumPy arrays")


@functools.cache
def _function(kernel: Kernel, device: int, shared: int) -> Any:
    """The loaded kernel on a device, allowed as much shared memory as it asks for."""
    import cupy

    with cupy.cuda.Device(device):
        arch = int(cupy.cuda.Device(device).compute_capability)
        module = cupy.RawModule(path=str(compile_kernel(kernel, arch)))
        function = module.get_function(kernel.name)
        if shared > STATIC_SHARED:
            function.max_dynamic_shared_size_bytes = shared
        return function
