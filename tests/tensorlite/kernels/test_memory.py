"""The reusing pool: whose memory is whose, when it comes back, and how much is held."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlite.kernels.cpu import memory
from tensorlite.kernels.cpu.memory import LINE, SMALLEST, SPARE, Pool

LARGE = 4 * SMALLEST


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (0, 5), (3, 4), (300, 400), (SMALLEST,)])
def test_it_is_an_ordinary_array(shape, dtype):
    for array in (memory.empty(shape, dtype), memory.zeros(shape, dtype),
                  memory.empty_like(np.ones(shape, dtype).T)):
        assert type(array) is np.ndarray and array.dtype == dtype
        assert array.flags.c_contiguous and array.flags.aligned and array.flags.writeable
        array[...] = 1
        assert array.sum(dtype=int) == array.size
    assert memory.empty_like(np.ones(shape, dtype).T).shape == shape[::-1]
    pooled = memory.empty(shape, dtype).nbytes >= SMALLEST
    assert not pooled or address(memory.empty(shape, dtype)) % LINE == 0
    again = memory.zeros(shape, dtype)  # on memory that held ones
    assert not again.any()


def test_memory_comes_back_and_is_used_again():
    pool = Pool()
    first = pool.empty((LARGE,), np.uint8)
    at = address(first)
    other = pool.empty((LARGE,), np.uint8)
    assert pool.fresh == 2 and not np.shares_memory(first, other)
    del first
    again = pool.empty((LARGE // 4,), np.float32)  # the bytes count, not the dtype
    assert address(again) == at and pool.fresh == 2


@pytest.mark.parametrize("view", [
    lambda a: a[1:],
    lambda a: a.reshape(-1, 16)[::2].T,
    lambda a: a.view(np.int32)[3:4],
    lambda a: np.asarray(memoryview(a)),
    lambda a: np.lib.stride_tricks.sliding_window_view(a, 3),
    lambda a: np.frombuffer(a[::1], np.uint8).reshape(-1, 4)[:, 0],
])
def test_a_view_keeps_the_memory_alive(view):
    pool = Pool()
    array = pool.empty((LARGE,), np.uint8)
    array[:] = 7
    held = view(array)
    before = held.copy()
    del array
    taken = [pool.empty((LARGE,), np.uint8) for _ in range(3)]
    for other in taken:
        other[:] = 9
        assert not np.shares_memory(other, held)
    np.testing.assert_array_equal(held, before)
    assert pool.fresh == 4
    del held, taken
    back = pool.empty((LARGE,), np.uint8)
    assert pool.fresh == 4 and back.size == LARGE


def test_small_arrays_are_left_to_numpy():
    pool = Pool()
    small = pool.empty((SMALLEST - 1,), np.uint8)
    assert (pool.fresh, pool.held, pool.lent) == (0, 0, 0) and small.base is None


def test_a_loop_soon_allocates_nothing():
    pool = Pool()
    shapes = [(SMALLEST,), (3 * SMALLEST,), (SMALLEST, 2), (3 * SMALLEST,), (7, SMALLEST)]

    def step():
        kept = [pool.empty(shape, np.float32) for shape in shapes]
        for shape in shapes:  # temporaries, while the others live
            kept.append(pool.empty(shape, np.float32)[1:])
            del kept[0]

    for _ in range(3):
        step()
    fresh, held = pool.fresh, pool.held
    for _ in range(20):
        step()
    assert (pool.fresh, pool.held) == (fresh, held)


def test_what_is_caught_in_a_cycle_comes_back_when_it_is_collected():
    pool = Pool()
    ring = [pool.empty((LARGE,), np.uint8)]
    ring.append(ring)
    at = address(ring[0])
    del ring
    gc.collect()
    assert address(pool.empty((LARGE,), np.uint8)) == at


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(0, 5)), max_size=60))
def test_what_is_held_stays_bounded(requests):
    """Whatever is asked for and given back, in whatever order; and no two arrays overlap."""
    pool, alive = Pool(), []
    for size, dropped in requests:
        del alive[:dropped]
        array = pool.empty((size * SMALLEST // 2,), np.uint8)
        stamp = len(alive) % 251
        array[:1] = array[-1:] = stamp
        alive.append((array, stamp))
        assert all(a[0] == mark and a[-1] == mark for a, mark in alive)
        assert sum(a.nbytes for a, _ in alive if a.nbytes >= SMALLEST) <= pool.lent
        assert pool.lent <= pool.most and pool.lent <= pool.held <= SPARE * pool.most
    spans = sorted((address(a), a.nbytes) for a, _ in alive)
    assert all(a + size <= b for (a, size), (b, _) in zip(spans, spans[1:], strict=False))


def test_a_change_of_sizes_lets_the_old_blocks_go():
    pool = Pool()
    for size in (10, 13, 17, 23, 31):
        for _ in range(3):
            arrays = [pool.empty((size * SMALLEST,), np.uint8) for _ in range(4)]
            del arrays
    assert pool.held <= SPARE * 4 * 31 * SMALLEST
    assert pool.most <= 4 * 31 * SMALLEST * 8 / 7


def test_threads_take_and_give_back_at_once():
    pool, failures, handed = Pool(), [], []
    start = threading.Barrier(4)

    def work(mark):
        rng = np.random.default_rng(mark)
        start.wait()
        alive = []
        for turn in range(200):
            array = pool.empty((int(rng.integers(1, 6)) * SMALLEST,), np.uint8)
            array[:: SMALLEST // 4] = mark
            alive.append(array)
            if not all((a[:: SMALLEST // 4] == mark).all() for a in alive):
                failures.append(turn)
            if turn % 3 == 0:
                handed.append(alive.pop(0))  # to be given back by another thread
            if turn % 5 == 0 and handed:
                handed.pop()
            del alive[: int(rng.integers(0, 3))]

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    handed.clear()
    one = pool.empty((SMALLEST,), np.uint8)
    assert SMALLEST <= pool.lent <= SMALLEST * 6 and one.size  # all the others came back
    assert pool.held <= SPARE * pool.most
