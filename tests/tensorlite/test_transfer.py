"""Copies that overlap with work, on a stand-in for CuPy that puts work off as long as it may; and
what is said when a GPU has no memory left."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
import types

import numpy as np
import pytest

from tensorlite import Tensor, transfer
from tensorlite.transfer import Uploads, explain_memory_error, read_later


class Event:
    """Happens when all that was queued on its stream before it is done."""

    def __init__(self, stream, place):
        self.stream, self.place = stream, place

    @property
    def happened(self):
        return self.stream.done >= self.place

    def synchronize(self):
        while not self.happened:
            self.stream.run_one()


class Stream:
    """Work that is done in order, one piece at a time, whenever `run_one` is called."""

    everyone: list[Stream] = []

    def __init__(self, non_blocking=True):
        self.queue, self.done, self.before = [], 0, []
        self.everyone.append(self)

    def add(self, work):
        self.queue.append(work)

    def record(self):
        return Event(self, self.done + len(self.queue))

    def wait_event(self, event):
        self.add(event)

    def run_one(self):
        work = self.queue.pop(0)
        work.synchronize() if isinstance(work, Event) else work()
        self.done += 1

    def __enter__(self):
        self.before.append(Fake.current)
        Fake.current = self

    def __exit__(self, *error):
        Fake.current = self.before.pop()


class DeviceArray(np.ndarray):
    def set(self, host, stream):
        assert self.shape == host.shape and self.dtype == host.dtype
        stream.add(lambda: np.copyto(self.view(np.ndarray), host))


class Fake:
    """What `Uploads` uses of CuPy."""

    current: Stream

    def __init__(self):
        Stream.everyone = []
        Fake.current = Stream()
        self.buffers = 0
        self.cuda = types.SimpleNamespace(
            Device=lambda index: contextlib.nullcontext(), Stream=Stream,
            get_current_stream=lambda: Fake.current,
            alloc_pinned_memory=lambda size: bytearray(size))

    def empty(self, size, dtype):
        self.buffers += 1
        return np.zeros(size, dtype).view(DeviceArray)


@pytest.fixture
def fake(monkeypatch):
    cupy = Fake()
    monkeypatch.setattr(transfer, "require_cuda", lambda device: cupy)
    return cupy


def finish(seed):
    """Do what is queued, now of this stream, now of that one."""
    rng = random.Random(seed)
    while waiting := [stream for stream in Stream.everyone if stream.queue]:
        rng.choice(waiting).run_one()


@pytest.mark.parametrize("seed", range(20))
def test_what_is_computed_with_is_what_was_sent(fake, seed):
    """Several batches ahead, of various sizes, buffers used again; the sender's array is changed
    at once, and work on the device happens late and in any order that it may."""
    rng = np.random.default_rng(seed)
    uploads, seen, sent = Uploads("cuda:0"), [], []
    shapes = [(3, 4), (3, 4), (2, 5), (3, 4), (4, 4), *5 * [(3, 4), (0, 4), (1, 1), (3, 4)]]

    def send(shape):
        array = rng.standard_normal(shape).astype(np.float32)
        sent.append(array.copy())
        upload = uploads.send(array)
        array[:] = np.nan
        return upload

    coming = [send(shape) for shape in shapes[:2]]
    for i in range(len(shapes)):
        array = uploads.take(coming.pop(0))
        assert array.shape == shapes[i] and array.dtype == np.float32
        Fake.current.add(lambda array=array: seen.append(np.array(array)))  # a kernel reads it
        if i + 2 < len(shapes):
            coming.append(send(shapes[i + 2]))
        for stream in rng.permutation(2)[: int(rng.integers(3))]:
            if Stream.everyone[stream].queue:
                Stream.everyone[stream].run_one()
    finish(seed)
    for one, expected in zip(seen, sent, strict=True):
        np.testing.assert_array_equal(one, expected)


def test_buffers_are_used_again_and_sending_does_not_wait(fake):
    uploads = Uploads("cuda:0")
    coming = [uploads.send(np.ones(8, np.float32)) for _ in range(2)]
    assert len(Stream.everyone[1].queue) == 2 and Stream.everyone[1].done == 0
    for _ in range(50):
        uploads.take(coming.pop(0))
        coming.append(uploads.send(np.ones(8, np.float32)))
    assert fake.buffers <= 4


def test_memory_that_is_still_read_is_not_given_back(fake):
    """A slot that is too small gets a new buffer, and the old one goes back to the pool."""
    uploads, read = Uploads("cuda:0"), []
    for _ in range(2):
        uploads.take(uploads.send(np.ones(4, np.float32)))
        Fake.current.add(lambda: read.append(True))
    uploads.send(np.ones(400, np.float32))
    assert read


def test_threads_send(fake):
    uploads, found = Uploads("cuda"), []
    threads = [threading.Thread(target=lambda i=i: found.append(
        (i, uploads.send(np.full(100, i, np.int32))))) for i in range(3)]
    for thread in threads:
        thread.start()
        thread.join()
    for i, upload in found:
        array = uploads.take(upload)
        finish(0)
        assert (np.array(array) == i).all()


def test_the_cpu_has_nothing_to_do():
    uploads, array = Uploads("cpu"), np.ones(3)
    assert uploads.take(uploads.send(array)) is array


def test_a_reading_is_of_when_it_was_asked_for():
    array = np.arange(3.0)
    read = read_later(array)
    array[:] = 7
    np.testing.assert_array_equal(read(), [0, 1, 2])


class OutOfMemoryError(MemoryError):
    __module__ = "cupy.cuda.memory"


@pytest.fixture
def full(monkeypatch):
    """CuPy on a GPU whose 80 GB are in use."""
    cupy = types.ModuleType("cupy")
    cupy.cuda = types.SimpleNamespace(runtime=types.SimpleNamespace(
        memGetInfo=lambda: (int(0.5e9), int(80e9))))
    cupy.get_default_memory_pool = lambda: types.SimpleNamespace(used_bytes=lambda: int(78.25e9))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return OutOfMemoryError("Out of memory allocating 2,000,000,000 bytes (allocated so far: "
                            "78,250,000,000 bytes).")


@pytest.mark.parametrize("backward", [False, True])
def test_out_of_memory_says_for_what_and_how_much_is_in_use(full, monkeypatch, backward):
    from tensorlite.ops.elementwise import Multiply

    def fail(*arguments):
        raise full

    x = Tensor(np.ones((4, 5), np.float32), requires_grad=True)
    monkeypatch.setattr(Multiply, "backward" if backward else "forward", staticmethod(fail))
    with pytest.raises(MemoryError) as raised:
        (x * Tensor(np.ones(5, np.float32))).sum().backward()
    what = "the gradients of multiply" if backward else "multiply"
    assert explain_memory_error(raised.value) == (
        f"out of memory on the GPU: no 2.00 GB for {what} of 4x5 float32; "
        "78.25 GB in use by this process, 0.50 of 80.00 free")


def test_other_errors_are_not_explained():
    assert explain_memory_error(MemoryError("no")) is None
    assert explain_memory_error(ValueError("cudaErrorMemoryAllocation")) is None


def test_the_runtime_too_runs_out_of_memory(full):
    class CUDARuntimeError(RuntimeError):
        __module__ = "cupy_backends.cuda.api.runtime"

    text = explain_memory_error(CUDARuntimeError("cudaErrorMemoryAllocation: out of memory"))
    assert text and text.startswith("out of memory on the GPU: no memory for an array; 78.25 GB")
    assert explain_memory_error(CUDARuntimeError("cudaErrorInvalidValue")) is None
