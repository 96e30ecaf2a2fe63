"""Moving arrays between host and device while the device works, and what memory it has left.

A copy that overlaps with work needs host memory that is pinned, a stream of its own, and care that
nothing is overwritten before its last reader is done; that care is taken here. On the CPU all of it
is no work.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tensorlite.device import Array, is_on_gpu, parse_device, require_cuda


def read_later(array: Array) -> Callable[[], np.ndarray]:
    """Start copying `array` to the host. The function returned waits for that, not for work queued
    after it, and gives the copy."""
    if not is_on_gpu(array):
        copy = np.array(array)
        return lambda: copy
    import cupy

    with array.device:
        pinned = _pinned(cupy, array.nbytes).view(array.dtype).reshape(array.shape)
        array.get(out=pinned, blocking=False)
        copied = cupy.cuda.Event(disable_timing=True)
        copied.record()

    def read() -> np.ndarray:
        copied.synchronize()
        return pinned

    return read


def _pinned(cupy: Any, nbytes: int) -> np.ndarray:
    """So many bytes of memory that a device can copy from and to by itself."""
    return np.frombuffer(cupy.cuda.alloc_pinned_memory(nbytes), np.uint8, nbytes)


class _Slot:
    """Room for an array on its way: in pinned memory and on the device, with what has to happen
    before either is written again."""

    pinned: np.ndarray
    buffer: Array
    copied: Any = None  # event: the copy is done
    used: Any = None  # event: those who read the array are done


class Upload(NamedTuple):
    """An array on its way to a device; `Uploads.take` gives the array there."""

    slot: _Slot
    shape: tuple[int, ...]
    dtype: np.dtype


class Uploads:
    """Copies arrays to a device on a stream of its own, so that they get there while the device
    works on earlier ones.

    `send` may be called from any thread and does not wait for the device's work; `take` is for the
    one thread that computes. RuntimeError where the device cannot be used.
    """

    def __init__(self, device: str) -> None:
        self.device = parse_device(device)
        self._free: deque[_Slot] = deque()
        self._held: _Slot | None = None
        self._cupy: Any = None
        if self.device != "cpu":
            self._cupy = require_cuda(self.device)
            with self._place:
                self._stream = self._cupy.cuda.Stream(non_blocking=True)

    @property
    def _place(self) -> Any:
        return self._cupy.cuda.Device(int(self.device.partition(":")[2]))

    def send(self, array: np.ndarray) -> Upload | np.ndarray:
        """Start copying; the array may be changed afterwards."""
        if self._cupy is None:
            return array
        try:
            slot = self._free.popleft()
        except IndexError:
            slot = _Slot()
        with self._place, self._stream:
            if slot.copied is None or slot.pinned.size < array.nbytes:
                if slot.used is not None:
                    slot.used.synchronize()  # what is read must not be given back
                slot.pinned = _pinned(self._cupy, array.nbytes)
                slot.buffer = self._cupy.empty(array.nbytes, np.uint8)
            else:
                slot.copied.synchronize()
                self._stream.wait_event(slot.used)
            host = slot.pinned[: array.nbytes]
            host.view(array.dtype).reshape(array.shape)[...] = array
            slot.buffer[: array.nbytes].set(host, stream=self._stream)
            slot.copied = self._stream.record()
        return Upload(slot, array.shape, array.dtype)

    def take(self, upload: Upload | np.ndarray) -> Array:
        """The array on the device, for work that is queued before the next call of `take`."""
        if not isinstance(upload, Upload):
            return upload
        slot, shape, dtype = upload
        with self._place:
            stream = self._cupy.cuda.get_current_stream()
            if self._held is not None:
                self._held.used = stream.record()
                self._free.append(self._held)
            self._held = slot
            stream.wait_event(slot.copied)
            nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            return slot.buffer[:nbytes].view(dtype).reshape(shape)


def explain_memory_error(error: BaseException) -> str | None:
    """What a GPU had no memory for, and how much of it is in use, on one line; None for an error of
    another kind."""
    kind = type(error)
    if kind.__module__.partition(".")[0] not in ("cupy", "cupy_backends"):
        return None
    if kind.__name__ != "OutOfMemoryError" and "MemoryAllocation" not in str(error):
        return None
    wanted = re.search(r"allocating ([\d,]+) bytes", str(error))
    size = f"{int(wanted[1].replace(',', '')) / 1e9:.2f} GB" if wanted else "memory"
    return f"out of memory on the GPU: no {size} for {_what_ran(error)}; {_memory_used()}"


def _what_ran(error: BaseException) -> str:
    """The innermost op or backward step that an error came from."""
    found, trace = "an array", error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_globals.get("__name__") == "tensorlite.autograd":
            names, place = frame.f_locals, frame.f_code.co_qualname
            if place == "Function.apply":
                found = f"{names['cls'].name} of {_shapes(names['tensors'])}"
            elif place == "Node.backward":
                found = f"the gradients of {names['self'].name} of {_shapes(names['self'].inputs)}"
        trace = trace.tb_next
    return found


def _shapes(inputs: tuple[Any, ...]) -> str:
    """The largest input of an op; the others are its parameters."""
    largest = max((t for t in inputs if t is not None), key=lambda t: t.size)
    return f"{'x'.join(map(str, largest.shape))} {largest.dtype}"


def _memory_used() -> str:
    """On the current device, by the pool and by everyone."""
    import cupy

    free, total = cupy.cuda.runtime.memGetInfo()
    ours = cupy.get_default_memory_pool().used_bytes()
    return f"{ours / 1e9:.2f} GB in use by this process, {free / 1e9:.2f} of {total / 1e9:.2f} free"
