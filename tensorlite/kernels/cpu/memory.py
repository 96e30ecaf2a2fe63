"""The pool that results live in: a large array's memory is used again once nobody holds it.

A fresh large array costs a page fault for every few kilobytes on its first use, which is as much
as computing it. `empty` hands out ordinary arrays on pooled memory; when the last reference to one
(and to its views) goes, its memory comes back by itself. In a training loop every step asks for
the same sizes, so after the first few nothing is allocated.
"""

from __future__ import annotations

import bisect
import itertools
import threading
import weakref
from typing import Any

import numpy as np

SMALLEST = 1 << 16  # bytes; below, NumPy's own allocator is quick enough
SLACK = 8  # a block serves requests of at least 7/8 of its size, others only when short
SPARE = 1.25  # most that is held, as a multiple of what was in use at once
PAGE, LINE = 4096, 64  # bytes of a page and of a cache line


class Block(np.ndarray):
    """A block of memory. It has a type of its own because NumPy looks through plain arrays: every
    view would refer to the block itself, and none to the array that was lent out."""

    capacity: int
    start: int
    age: int


class Pool:
    """Blocks of memory, free or lent.

    held, lent: bytes in all blocks and in those lent; most: the largest `lent` so far;
    fresh: how many blocks were ever allocated.
    """

    def __init__(self) -> None:
        self.held = self.lent = self.most = self.fresh = 0
        self._free: list[Block] = []  # smallest first
        # Blocks come back at any moment, even inside `_take`: then they only queue here.
        self._returned: list[Block] = []
        self._loans: dict[int, weakref.ref] = {}
        self._ages = itertools.count()
        self._lock = threading.Lock()

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An uninitialised array on pooled memory."""
        dtype = np.dtype(dtype)
        size = dtype.itemsize
        for length in shape:
            size *= length
        if size < SMALLEST:
            return np.empty(shape, dtype)
        with self._lock:
            block = self._take(size)
        array = np.ndarray(shape, dtype, block, block.start)
        key = id(array)

        def give_back(_: weakref.ref) -> None:
            del self._loans[key]
            self._returned.append(block)

        self._loans[key] = weakref.ref(array, give_back)
        return array

    def _take(self, size: int) -> Block:
        while self._returned:
            block = self._returned.pop()
            block.age = next(self._ages)
            self.lent -= block.capacity
            bisect.insort(self._free, block, key=lambda b: b.capacity)
        at = bisect.bisect_left(self._free, size, key=lambda b: b.capacity)
        limit = SPARE * max(self.most, self.lent + size)
        fits = at < len(self._free)
        if fits and (
            self._free[at].capacity * (SLACK - 1) <= size * SLACK or self.held + size > limit
        ):
            block = self._free.pop(at)
        else:
            block = self._allocate(size, limit)
        self.lent += block.capacity
        self.most = max(self.most, self.lent)
        return block

    def _allocate(self, size: int, limit: float) -> Block:
        while self._free and self.held + size > limit:
            oldest = min(range(len(self._free)), key=lambda i: self._free[i].age)
            self.held -= self._free.pop(oldest).capacity
        self.held += size
        self.fresh += 1
        block = Block(size + PAGE + LINE, np.uint8)
        block.capacity = size
        # Each block starts at another line of its page: arrays that start alike slow each other
        # down (a load seems to need the store before it, as their addresses end alike).
        block.start = -block.ctypes.data % LINE + self.fresh * 13 * LINE % PAGE
        return block


pool = Pool()
empty = pool.empty


def empty_like(array: np.ndarray) -> np.ndarray:
    """An uninitialised contiguous array of the shape and dtype of `array`, on pooled memory."""
    return empty(array.shape, array.dtype)


def zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array of zeros on pooled memory."""
    array = empty(shape, dtype)
    array[...] = 0
    return array
