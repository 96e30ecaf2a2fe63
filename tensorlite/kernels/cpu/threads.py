"""The thread pool under every CPU kernel: one static, contiguous split a call.

NumPy releases the GIL inside ufuncs, copies and matrix products, so plain threads run in
parallel. The BLAS is set to one thread on first use, because workers that each own a run of
images and call a serial BLAS keep their caches warm; switching BLAS thread counts inside a step
is slow. The split depends only on the amount of work and the thread count, which makes every
reduction bit-equal from run to run.
"""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import numpy as np

Result = TypeVar("Result")


class _Local(threading.local):
    """What each thread keeps to itself: its scratch buffers and whether it is inside a body."""

    def __init__(self) -> None:
        self.inside = False
        self.buffers: dict[str, np.ndarray] = {}


_lock = threading.Lock()
_local = _Local()
_pool: ThreadPoolExecutor | None = None
_num_threads: int | None = None
_blas_limit: Any = None


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def get_num_threads() -> int:
    """Number of threads a kernel call may use; by default the cores this process may use."""
    global _num_threads
    if _num_threads is None:
        _num_threads = _available_cores()
    return _num_threads


def set_num_threads(n: int) -> None:
    """Set the number of threads a kernel call may use. Raises ValueError below one."""
    global _num_threads, _pool
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise ValueError(f"set_num_threads: expected a whole number of at least 1, got {n!r}")
    with _lock:
        if n != _num_threads and _pool is not None:
            _pool.shutdown(wait=False)
            _pool = None
        _num_threads = int(n)


def _limit_blas() -> None:
    """Set the BLAS to one thread, once in the life of the process."""
    global _blas_limit
    with _lock:
        if _blas_limit is None:
            from threadpoolctl import ThreadpoolController

            _blas_limit = ThreadpoolController().limit(limits=1, user_api="blas")


def _forget_pool() -> None:
    """A forked child has none of its parent's threads and must start its own."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _submit(tasks: Sequence[Callable[[], Result]]) -> list[Future[Result]]:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(
                max(1, get_num_threads() - 1), thread_name_prefix="tensorlite"
            )
        # Each task runs in a copy of the caller's context, so that np.errstate holds in it.
        return [_pool.submit(contextvars.copy_context().run, task) for task in tasks]


def _run(body: Callable[[int, int, int], Result], start: int, stop: int, worker: int) -> Result:
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
    if workers == 1 or _local.inside:
        return [body(0, n, 0)]
    bounds = [n * i // workers for i in range(workers + 1)]

    def task(worker: int) -> Callable[[], Result]:
        return lambda: _run(body, bounds[worker], bounds[worker + 1], worker)

    futures = _submit([task(worker) for worker in range(1, workers)])
    try:
        first = task(0)()
    finally:
        wait(futures)  # never leave while a worker still writes into the caller's arrays
    return [first, *(future.result() for future in futures)]


def bands(start: int, stop: int, lines: int, limit: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut lines start..stop of a stack of images, `lines` each, into bands of about `limit`.

    Yields (first image, last image + 1, first line, last line + 1): either some lines of one
    image or, where images are small, several whole images.
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
