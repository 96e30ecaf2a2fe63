"""A kernel's view of global memory: each array copied between inaccessible pages.

The copy's end touches the page after it, so that one element too far faults. What cannot fault, the
bytes between the page before and the copy and the few that alignment leaves after it, is filled
with ones (NaN, if read) and looked at afterwards. Arrays that overlap share a copy.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator, Mapping

import numpy as np

PAGE = mmap.PAGESIZE
ALIGNMENT = 16  # of the widest access

_libc = ctypes.CDLL(None)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *3 * [ctypes.c_int], ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class GuardedCopy:
    """The memory from `start` to `end`, copied. `offset`: what an address on the device would be,
    modulo ALIGNMENT."""

    def __init__(self, start: int, end: int, offset: int) -> None:
        self.start, self.end = start, end
        size = end - start
        inside = -(-(size + ALIGNMENT) // PAGE) * PAGE
        self._bytes = inside + 2 * PAGE
        space = _libc.mmap(None, self._bytes, mmap.PROT_READ | mmap.PROT_WRITE,
                           mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        if space == ctypes.c_void_p(-1).value:
            raise MemoryError(f"no {self._bytes} bytes for a copy")
        self._space = space
        self._low, self._high = space + PAGE, space + PAGE + inside
        address = self._high - size
        self.address = address - (address - offset) % ALIGNMENT
        for page in (space, self._high):
            _libc.mprotect(page, PAGE, 0)
        for edge, length in self._edges():
            ctypes.memset(edge, 0xFF, length)
        ctypes.memmove(self.address, start, size)

    def _edges(self) -> Iterator[tuple[int, int]]:
        after = self.address + self.end - self.start
        yield self._low, self.address - self._low
        yield after, self._high - after

    def edges_are_whole(self) -> bool:
        """Whether nothing was written just before or behind the copy."""
        return all(ctypes.string_at(edge, length) == b"\xff" * length
                   for edge, length in self._edges())

    def place(self, address: int) -> int:
        """Where the copy has what lies at an address."""
        return self.address + address - self.start

    def copy_back(self) -> None:
        ctypes.memmove(self.start, self.address, self.end - self.start)

    def release(self) -> None:
        _libc.munmap(self._space, self._bytes)


def copy_guarded(arrays: Mapping[int, np.ndarray]) -> dict[int, GuardedCopy]:
    """A guarded copy of each array's memory; arrays that overlap share one."""
    copies: dict[int, GuardedCopy] = {}
    spans = sorted((address(a), address(a) + a.nbytes, key) for key, a in arrays.items())
    while spans:
        start, end, first = spans[0]
        together = []
        for begins, ends, key in spans:
            if begins >= end and begins > start:
                break
            end = max(end, ends)
            together.append(key)
        copies |= dict.fromkeys(together, GuardedCopy(start, end, _offset(arrays[first])))
        del spans[:len(together)]
    return copies


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def _offset(array: np.ndarray) -> int:
    """An array's address modulo ALIGNMENT as it would be on a device, where allocations start at
    multiples of 512: it matters only where in its allocation a view starts."""
    whole = array
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    return (address(array) - address(whole)) % ALIGNMENT
