"""Work done ahead in threads."""

from __future__ import annotations

import threading
import time

import pytest

from recres.video.prefetch import Prefetcher


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("prefetch")]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_order(workers):
    def slow_for_some(i):
        time.sleep(0.003 * (i % 3))
        return i * i

    with Prefetcher(slow_for_some, range(30), workers) as results:
        assert list(results) == [i * i for i in range(30)]
    assert not threads()


def test_several_workers_work_at_the_same_time():
    together = threading.Barrier(3)
    with Prefetcher(lambda i: together.wait(timeout=10), range(3), workers=3, ahead=3) as results:
        assert sorted(results) == [0, 1, 2]


def test_work_runs_ahead_and_no_further_than_asked():
    begun = []
    with Prefetcher(begun.append, range(100), workers=2, ahead=4) as results:
        next(results)
        deadline = time.monotonic() + 10
        while len(begun) < 5 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)
        assert sorted(begun) == [0, 1, 2, 3, 4]  # the one taken and four more


def test_an_exception_is_raised_in_its_place():
    with (
        Prefetcher(lambda i: 12 // (3 - i), range(10), workers=2) as results,
        pytest.raises(ZeroDivisionError),
    ):
        seen = []
        for result in results:
            seen.append(result)
    assert seen == [4, 6, 12]
    assert not threads()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_leaving_early_stops_the_threads(error):
    begun = []
    with (
        pytest.raises(error),
        Prefetcher(begun.append, range(1000), workers=2, ahead=500) as results,
    ):
        for _ in results:
            raise error
    assert not threads()
    assert list(results) == []


def test_work_not_begun_is_dropped():
    begun = []

    def slow(i):
        begun.append(i)
        time.sleep(0.01)

    with Prefetcher(slow, range(1000), workers=1, ahead=900) as results:
        next(results)
    assert len(begun) < 10


def test_what_is_refused():
    with pytest.raises(ValueError, match="workers is 0"):
        Prefetcher(abs, [], workers=0)
    with pytest.raises(ValueError, match="ahead is 0"):
        Prefetcher(abs, [], ahead=0)
