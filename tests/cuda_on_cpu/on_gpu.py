"""A pytest plugin for a machine with a GPU: what the emulator would run, the GPU runs.

    pytest -p tests.cuda_on_cpu.on_gpu tests/tensorlite/kernels/cuda

The arrays of a launch are copied to the device and back, whole: a view lies there where it lies in
its array. Each has an allocation of its own, so that compute-sanitizer sees where it ends.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tensorlite.device import require_cuda
from tensorlite.kernels.cuda import launch
from tensorlite.kernels.cuda.compiler import Kernel
from tests.cuda_on_cpu import emulator
from tests.cuda_on_cpu.memory import address

DEVICE = "cuda:0"


def pytest_configure(config: pytest.Config) -> None:
    try:
        cupy = require_cuda(DEVICE)
    except RuntimeError as missing:
        raise pytest.UsageError(str(missing)) from None
    cupy.cuda.set_allocator(None)  # no pool
    emulator.Emulator.__call__ = run  # type: ignore[method-assign]


def run(_: emulator.Emulator, kernel: Kernel, grid: tuple[int, ...], arguments: Sequence[Any],
        shared: int) -> None:
    """`Emulator.__call__`, on the GPU; skips a test whose kernel is given addresses in an array."""
    import cupy

    capability = int(cupy.cuda.Device(0).compute_capability)
    if capability < kernel.least:
        pytest.skip(f"{kernel} needs compute capability {kernel.least / 10}")
    there: dict[int, tuple[np.ndarray, Any]] = {}
    given = []
    for argument in arguments:
        if not isinstance(argument, np.ndarray):
            given.append(argument)
            continue
        if argument.dtype == np.uint64:
            pytest.skip(f"{kernel}: addresses of arrays on the host mean nothing on the GPU")
        whole = root(argument)
        if id(whole) not in there:
            there[id(whole)] = whole, cupy.asarray(np.frombuffer(_bytes(whole), np.uint8))
        start = address(argument) - address(whole)
        given.append(cupy.ndarray(argument.shape, argument.dtype,
                                  there[id(whole)][1].data + start))
    launch.launch(kernel, grid, *given, shared=shared)
    for whole, copy in there.values():
        ctypes.memmove(address(whole), copy.get().ctypes.data, whole.nbytes)


def root(array: np.ndarray) -> np.ndarray:
    """The array whose memory this one is part of."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _bytes(array: np.ndarray) -> Any:
    return (ctypes.c_char * array.nbytes).from_address(address(array))
