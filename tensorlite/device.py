"""Where arrays live: device names, the array module of an array, and moving between devices.

NumPy arrays are on ``"cpu"``, CuPy arrays on ``"cuda:N"``. CuPy is imported only when a CUDA device
is asked for, so that ``import tensorlite`` stays quick and works without it.
"""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray or cupy.ndarray


def is_on_gpu(array: Array) -> bool:
    """Whether `array` is CuPy's."""
    return type(array) is not np.ndarray and type(array).__module__.partition(".")[0] == "cupy"


def array_module(array: Array) -> ModuleType:
    """``numpy`` or ``cupy``, whichever made `array`."""
    if is_on_gpu(array):
        import cupy

        return cupy
    return np


def device_of(array: Array) -> str:
    """``"cpu"`` or ``"cuda:N"``."""
    return f"cuda:{array.device.id}" if is_on_gpu(array) else "cpu"


def parse_device(device: str) -> str:
    """The canonical name of `device` (``"cuda"`` is ``"cuda:0"``); ValueError for anything else."""
    if device == "cpu":
        return device
    match = re.fullmatch(r"cuda(?::(\d+))?", device) if isinstance(device, str) else None
    if match is None:
        raise ValueError(f"device: got {device!r}, expected 'cpu', 'cuda' or 'cuda:N'")
    return f"cuda:{int(match.group(1) or 0)}"


def require_cuda(device: str) -> ModuleType:
    """CuPy, when the CUDA `device` can be used; else a RuntimeError that says what is missing."""
    try:
        import cupy
    except ImportError:
        raise RuntimeError(
            f"device {device!r}: CuPy is not installed; install it with: "
            "pip install 'recres[cuda]'"
        ) from None
    if not cupy.is_available():
        raise RuntimeError(f"device {device!r}: CuPy is installed but finds no CUDA device")
    index, count = int(device.partition(":")[2]), cupy.cuda.runtime.getDeviceCount()
    if index >= count:
        raise RuntimeError(f"device {device!r}: this machine has CUDA devices 0 to {count - 1}")
    return cupy


def visible_cards() -> list[str]:
    """The CUDA devices that this process sees, by the places that their names stand for: where they
    are on the machine's bus. RuntimeError as `require_cuda`."""
    runtime = require_cuda("cuda:0").cuda.runtime
    return [runtime.deviceGetPCIBusId(i) for i in range(runtime.getDeviceCount())]


def use_device(device: str) -> None:
    """Let this thread compute on `device` from here on. Operations on arrays of a CUDA device make
    their results on the thread's, which is "cuda:0" at first; RuntimeError where it is missing."""
    device = parse_device(device)
    if device != "cpu":
        require_cuda(device).cuda.Device(int(device.partition(":")[2])).use()


def to_device(array: Array, device: str) -> Array:
    """`array` itself when it is on `device` already, otherwise a copy there."""
    device = parse_device(device)
    if device_of(array) == device:
        return array
    if device == "cpu":
        return array.get()
    cupy = require_cuda(device)
    with cupy.cuda.Device(int(device.partition(":")[2])):
        return cupy.asarray(array)


def is_whole(array: Array) -> bool:
    """Whether `array` is no view of another: it owns its memory, or has it from a pool."""
    return type(array.base) is not type(array)


def fingerprint(array: Array) -> int:
    """A hash of the bytes of `array`, or of about 1000 evenly spread elements of a large one.

    It notices a write in place without another pass over memory (a write to a few elements of a
    large array can escape it). Arrays on a GPU are not read: 0.
    """
    if not isinstance(array, np.ndarray):
        return 0
    if array.size <= 4096:
        return hash(array.tobytes())
    flat = array.reshape(-1) if array.flags.c_contiguous else array.flat
    return hash(flat[:: array.size // 1009].tobytes())
