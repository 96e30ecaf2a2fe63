"""The thread pool: what is covered, in which order, and what happens when a body fails."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlite.kernels.cpu import threads


@pytest.fixture(autouse=True)
def _restore_threads():
    before = threads.get_num_threads()
    yield
    threads.set_num_threads(before)


@given(n=st.integers(0, 50), workers=st.integers(1, 5), grain=st.integers(1, 20))
def test_parts_are_contiguous_ordered_and_at_least_a_grain(n, workers, grain):
    threads.set_num_threads(workers)
    parts = threads.parallel_for(n, lambda start, stop, worker: (start, stop, worker), grain)
    assert [i for start, stop, _ in parts for i in range(start, stop)] == list(range(n))
    assert [worker for _, _, worker in parts] == list(range(len(parts)))
    assert len(parts) <= workers
    assert len(parts) <= 1 or all(stop - start >= grain for start, stop, _ in parts)


def test_workers_run_at_the_same_time():
    threads.set_num_threads(3)
    meet = threading.Barrier(3, timeout=10)
    assert len(threads.parallel_for(3, lambda *part: meet.wait())) == 3


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_failure_is_raised_after_all_workers_have_ended(failing):
    threads.set_num_threads(3)
    ended = []

    def body(start, stop, worker):
        if worker == failing:
            raise ArithmeticError(f"worker {worker}")
        threading.Event().wait(0.02)
        ended.append(worker)

    with pytest.raises(ArithmeticError, match=f"worker {failing}"):
        threads.parallel_for(3, body)
    assert sorted(ended) == [w for w in range(3) if w != failing]
    assert threads.parallel_for(3, lambda start, stop, worker: worker) == [0, 1, 2]


def test_nested_calls_run_serially():
    threads.set_num_threads(2)

    def inner(start, stop, worker):
        return threading.get_ident(), start, stop

    outer = threads.parallel_for(2, lambda *part: (threading.get_ident(), threads.parallel_for(
        4, inner)))
    for thread, parts in outer:
        assert parts == [(thread, 0, 4)]


def test_the_callers_errstate_holds_in_workers():
    threads.set_num_threads(2)
    zero = np.zeros(1)
    with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
        threads.parallel_for(2, lambda start, stop, worker: worker and np.divide(1.0, zero))


def test_a_signal_between_taking_a_word_and_counting_it_loses_nothing(monkeypatch):
    threads.set_num_threads(2)
    threads.parallel_for(2, lambda *_: None)  # starts the worker

    class Interrupted(queue.SimpleQueue):
        """Its first word is taken, and then a signal comes."""

        def get(self):
            super().get()
            if not seen:
                seen.append(True)
                raise KeyboardInterrupt

    seen, done, caught = [], [], []
    monkeypatch.setattr(threads, "SimpleQueue", Interrupted)

    def call():
        try:
            threads.parallel_for(2, lambda start, stop, worker: done.append(worker))
        except KeyboardInterrupt as error:
            caught.append(error)

    caller = threading.Thread(target=call, daemon=True)
    caller.start()
    caller.join(10)
    assert not caller.is_alive(), "waits for a word that was already taken"
    assert sorted(done) == [0, 1] and len(caught) == 1


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "2"])
def test_a_thread_count_must_be_a_whole_number_of_at_least_one(n):
    with pytest.raises(ValueError, match="set_num_threads"):
        threads.set_num_threads(n)


@given(start=st.integers(0, 30), count=st.integers(0, 30), lines=st.integers(1, 9),
       limit=st.integers(1, 25))
def test_bands_tile_the_lines_in_order(start, count, lines, limit):
    seen = []
    for first, last, low, high in threads.bands(start, start + count, lines, limit):
        assert 0 <= low < high <= lines and (last - first == 1 or (low, high) == (0, lines))
        assert (last - first) * (high - low) <= limit
        seen += [i * lines + j for i in range(first, last) for j in range(low, high)]
    assert seen == list(range(start, start + count))


def test_scratch_is_reused_by_name_and_grows():
    a = threads.scratch("test", (4, 3), np.float32)
    b = threads.scratch("test", (2, 3), np.float64)
    c = threads.scratch("test other", (4, 3), np.float32)
    assert np.shares_memory(a, b) and not np.shares_memory(a, c)
    assert threads.scratch("test", (100, 3), np.float64).shape == (100, 3)


def test_the_blas_runs_on_one_thread_once_a_kernel_was_called():
    program = (
        "import numpy as np, threadpoolctl\n"
        "from tensorlite.kernels import cpu\n"
        "a = np.ones((8, 8)); cpu.matmul2d(a, a)\n"
        "blas = [i for i in threadpoolctl.threadpool_info() if i['user_api'] == 'blas']\n"
        "assert blas and all(i['num_threads'] == 1 for i in blas), blas\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
