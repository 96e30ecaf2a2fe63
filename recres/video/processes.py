"""Decoding in processes of their own, so that no video file can end the one that asks.

FFmpeg is a large C library, and a video file comes from a stranger: a crash within it is one more
thing that can be wrong with a file.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from typing import TypeVar

import cv2

from recres import limits

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_processes(function: Callable[[Item], Result], items: Iterable[Item], workers: int,
                 crashed: Callable[[Item], Result]) -> Generator[Result, None, None]:
    """function(item) for each item, in their order, by as many processes as there are `workers`;
    one worker is this process.

    An item at which a process dies has the result crashed(item), and the others go on. At most
    three results a worker are held. The processes end with this one, however it ends.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}, expected at least 1")
    if workers == 1:
        yield from map(function, items)
        return
    left = deque(items)
    workers = min(workers, len(left))
    while left:
        pending: deque[tuple[Item, Future[Result]]] = deque()
        pool = _pool(workers)
        try:
            while left or pending:
                while left and len(pending) < 3 * workers:
                    pending.append((left[0], _submit(pool, function, left[0])))
                    left.popleft()
                result = pending[0][1].result()
                pending.popleft()
                yield result
        except BrokenProcessPool:
            # Which item it was is not known: each that was under way is tried by itself.
            yield from _one_by_one(function, pending, crashed)
        finally:
            pool.shutdown(cancel_futures=True)


def _one_by_one(function: Callable[[Item], Result],
                pending: Iterable[tuple[Item, Future[Result]]],
                crashed: Callable[[Item], Result]) -> Iterator[Result]:
    """The results that are there; the others by one process, a new one after each that dies."""
    with contextlib.ExitStack() as open_pools:
        pool = None
        for item, future in pending:
            if future.done() and future.exception() is None:
                result = future.result()
            else:
                pool = pool or open_pools.enter_context(_pool(1))
                try:
                    result = _submit(pool, function, item).result()
                except BrokenProcessPool:
                    pool, result = None, crashed(item)
            yield result


def _pool(workers: int) -> ProcessPoolExecutor:
    # Not forked: a child with a copy of this process' locks, but not of its threads, may hang.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=begin,
                               initargs=(limits.values(),))


def _submit(pool: ProcessPoolExecutor, function: Callable[[Item], Result],
            item: Item) -> Future[Result]:
    # It starts a process while there are fewer than there may be. (Not SIGTERM: a pool of which one
    # process has died ends the others by it.)
    with signals_blocked((signal.SIGINT,)):
        return pool.submit(function, item)


@contextlib.contextmanager
def signals_blocked(numbers: Sequence[int]) -> Iterator[None]:
    """A process that is started within never gets these signals, not even before its first line,
    which the terminal's Ctrl-C sends to all: the parent ends it."""
    resource_tracker.ensure_running()  # starting that would let the signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)  # this may raise what has just come
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin(known: Mapping[str, int]) -> None:
    """In a new process: leave Ctrl-C to the parent, and end when it does, even by SIGKILL. known:
    the parent's limits."""
    limits.change(known)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)  # the cores belong to whole videos
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
