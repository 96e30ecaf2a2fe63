"""Work in processes: its order, a process that dies, and none that outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from recres import limits
from recres.video.processes import in_processes

ROOT = Path(__file__).resolve().parents[3]


def die_at(number: int, item: int) -> int:
    if item == number:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def fail(item: int) -> int:
    raise KeyError(item)


def test_a_process_that_dies_costs_its_own_item_alone():
    results = in_processes(partial(die_at, 1), range(3), 2, crashed=lambda item: -item)
    assert list(results) == [0, -1, 2]


def blocked(item: int) -> set[int]:
    return signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_ctrl_c_does_not_reach_a_process_that_is_being_started():
    """A terminal sends it to all of them: each would show a traceback of its first imports."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    for mask in in_processes(blocked, range(2), 2, crashed=set):
        assert signal.SIGINT in mask and signal.SIGTERM not in mask
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def most_frames(item: int) -> int:
    return limits.VIDEO_FRAMES


def test_limits_are_those_of_the_one_that_asked(monkeypatch):
    """A process of its own had those that it began with."""
    monkeypatch.setattr(limits, "VIDEO_FRAMES", 7)
    assert list(in_processes(most_frames, range(2), 2, crashed=most_frames)) == [7, 7]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_comes_where_the_result_would(workers):
    results = in_processes(fail, range(2), workers, crashed=fail)
    with pytest.raises(KeyError, match="0"):
        next(results)


def test_no_process_outlives_the_one_that_asked(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("""
import os, time
from recres.video.processes import in_processes

def work(item):
    time.sleep(60 if item else 0)
    return os.getpid()

if __name__ == "__main__":
    for result in in_processes(work, range(3), 2, work):
        print(result, flush=True)
""")
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE,
                               env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert process.stdout is not None
    with process.stdout:
        status = Path(f"/proc/{int(process.stdout.readline())}/stat")
    if not status.exists():
        pytest.skip("needs /proc")
    process.kill()
    process.wait()
    last = time.monotonic() + 20
    while running(status):
        assert time.monotonic() < last
        time.sleep(0.02)


def running(status: Path) -> bool:
    """Whether a process is there, and is not one that has ended."""
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
