"""The thread pool under every CPU kernel: one static, contiguous split a call.

NumPy releases the GIL inside ufuncs, copies and matrix products, so plain threads run in
parallel. The BLAS is set to one thread on first use, because workers that each own a run of
images and call a serial BLAS keep their caches warm; switching BLAS thread counts inside a step
is slow. The split depends only on the amount of work and the thread count, which makes every
reduction bit-equal from run to run.
"""

from __future__ import annotations

import contextvars
import ctypes
import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np

Result = TypeVar("Result")
Band = tuple[int, int, int, int]  # first image, last image + 1, first line, last line + 1

BUFFER = 512  # elements of NumPy's buffer in a kernel; see _run


@dataclasses.dataclass
class _Worker:
    """A thread that does what comes into its inbox; `avoids` is the core it may not run on."""

    inbox: SimpleQueue
    thread: Any
    avoids: int | None = None


class _Local(threading.local):
    """What each thread keeps to itself: its scratch buffers and whether it is inside a body."""

    def __init__(self) -> None:
        self.inside = False
        self.buffers: dict[str, np.ndarray] = {}


_lock = threading.Lock()
_local = _Local()
_workers: list[_Worker] = []  # beside the caller, who does the first part
_num_threads: int | None = None
_blas_limit: Any = None


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _core_reader() -> Callable[[], int] | None:
    """A function that says which core the caller runs on; None where the system has none."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    return getattr(ctypes.CDLL(None), "sched_getcpu", None)


_current_core = _core_reader()


def get_num_threads() -> int:
    """Number of threads a kernel call may use; by default the cores this process may use."""
    global _num_threads
    if _num_threads is None:
        _num_threads = _available_cores()
    return _num_threads


def set_num_threads(n: int) -> None:
    """Set the number of threads a kernel call may use. Raises ValueError below one."""
    global _num_threads
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise ValueError(f"set_num_threads: expected a whole number of at least 1, got {n!r}")
    with _lock:
        _num_threads = int(n)
        while len(_workers) >= n:
            _workers.pop().inbox.put(None)


def _limit_blas() -> None:
    """Set the BLAS to one thread, once in the life of the process."""
    global _blas_limit
    with _lock:
        if _blas_limit is None:
            from threadpoolctl import ThreadpoolController

            _blas_limit = ThreadpoolController().limit(limits=1, user_api="blas")


def _forget_workers() -> None:
    """A forked child has none of its parent's threads and must start its own."""
    global _workers, _lock
    _workers, _lock = [], threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)


def _serve(inbox: SimpleQueue) -> None:
    """The life of a worker: run the tasks that come, until None does."""
    while (task := inbox.get()) is not None:
        task()


def _start_worker(number: int) -> _Worker:
    inbox: SimpleQueue = SimpleQueue()
    thread = threading.Thread(
        target=_serve, args=(inbox,), name=f"tensorlite-{number}", daemon=True
    )
    thread.start()
    return _Worker(inbox, thread.native_id)


def _awake(count: int) -> list[_Worker]:
    """`count` workers, started on first use and kept off the core that the caller is on.

    A system wakes a thread on the core of the one that wakes it, and takes up to 20 ms to notice
    that it had better run on another, idle one: long enough to make a call after a pause twice as
    slow. All the other cores stay open to it.
    """
    with _lock:
        while len(_workers) < count:
            _workers.append(_start_worker(len(_workers) + 1))
        chosen = _workers[:count]
        if _current_core is not None:
            here = _current_core()
            for worker in chosen:
                if worker.avoids != here:
                    others = os.sched_getaffinity(0) - {here}
                    os.sched_setaffinity(worker.thread, others or {here})
                    worker.avoids = here
        return chosen


def _run(body: Callable[[int, int, int], Result], start: int, stop: int, worker: int) -> Result:
    # NumPy copies an operand that is repeated along rows, such as a per-channel vector, unless rows
    # are at least as long as its buffer, 8192 elements by default. Ours have about WIDE.
    np.setbufsize(BUFFER)
    _local.inside = True
    try:
        return body(start, stop, worker)
    finally:
        _local.inside = False


def parallel_for(n: int, body: Callable[[int, int, int], Result], grain: int = 1) -> list[Result]:
    """Call body(start, stop, worker) on contiguous parts of range(n) and return the results.

    The parts, and the results, are in order; worker counts them from zero. A part has at least
    `grain` items, so small work stays on the calling thread. A nested call runs serially. When
    bodies raise, the exception of the first part that did is raised once all have ended.
    """
    if _blas_limit is None:
        _limit_blas()
    if n <= 0:
        return []
    workers = max(1, min(get_num_threads(), n // max(1, grain)))
    if _local.inside:
        return [body(0, n, 0)]
    if workers == 1:
        return [contextvars.copy_context().run(_run, body, 0, n, 0)]
    bounds = [n * i // workers for i in range(workers + 1)]
    parts: list[tuple[Any, BaseException | None] | None] = [None] * workers
    done: SimpleQueue = SimpleQueue()

    def task(worker: int, context: contextvars.Context) -> None:
        # In a copy of the caller's context, so that np.errstate holds in it.
        try:
            result = context.run(_run, body, bounds[worker], bounds[worker + 1], worker)
            parts[worker] = result, None
        except BaseException as error:
            parts[worker] = None, error
        done.put(None)

    for number, worker in enumerate(_awake(workers - 1), start=1):
        worker.inbox.put(functools.partial(task, number, contextvars.copy_context()))
    task(0, contextvars.copy_context())
    interrupt: BaseException | None = None
    # Never leave while a worker still writes into the caller's arrays. A signal may come when a
    # word was taken and not yet counted: what is counted are the parts, there before the word.
    while None in parts:
        try:
            done.get()
        except BaseException as caught:
            interrupt = caught
    results = [part for part in parts if part is not None]
    for failure in (*(error for _, error in results), interrupt):
        if failure is not None:
            raise failure
    return [result for result, _ in results]


def bands(start: int, stop: int, lines: int, limit: int) -> Iterator[Band]:
    """Cut lines start..stop of a stack of images, `lines` each, into bands of about `limit`.

    A band is either some lines of one image or, where images are small, several whole images.
    """
    at = start
    while at < stop:
        image, line = divmod(at, lines)
        whole = min(limit, stop - at) // lines if line == 0 else 0
        if whole:
            yield image, image + whole, 0, lines
            at += whole * lines
        else:
            count = min(limit, stop - at, lines - line)
            yield image, image + 1, line, line + count
            at += count


def scratch(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An uninitialised array of this thread, reused by the next request under the same name.

    Only for use inside one kernel call: two live arrays must have different names.
    """
    dtype = np.dtype(dtype)
    size = dtype.itemsize
    for length in shape:
        size *= length
    buffer = _local.buffers.get(name)
    if buffer is None or buffer.nbytes < size:
        buffer = _local.buffers[name] = np.empty(size, np.uint8)
    return buffer[:size].view(dtype).reshape(shape)
