"""The process that says which of several processes has died, and what becomes of them without."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tensorlite.distributed import sentinel as watcher
from tests.tensorlite.test_distributed import mpiexec

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def sentinel(processes: int) -> Iterator[tuple[subprocess.Popen, int]]:
    """A sentinel of so many processes whose token is "token", and its port. What `connect` gives
    is closed at the end."""
    with subprocess.Popen([sys.executable, "-I", "-S", watcher.__file__, "token", str(processes),
                           "127.0.0.1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            yield child, int(child.stdout.readline())
        finally:
            child.kill()
            while connections:
                connections.pop().close()


def said(child: subprocess.Popen) -> str:
    """What it says; it must have ended by itself."""
    assert child.wait(5) == 0 and child.stderr is not None
    return child.stderr.read()


connections: list[socket.socket] = []


def connect(port: int, text: str = "") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connections.append(connection)
    connection.sendall(text.encode())
    return connection


def test_the_first_that_leaves_without_a_word_has_died():
    with sentinel(3) as (child, port):
        ranks = [connect(port, f"token rank {rank}\n") for rank in range(3)]
        ranks[0].sendall(b"ended\n")
        ranks[2].close()
        assert said(child) == "error: rank 2 has died, and the others stop\n"
        assert ranks[1].recv(1) == b""


@pytest.mark.parametrize("words", [("ended\n", "ended\n"), ("failed\n", "")])
def test_it_ends_without_a_word_when_it_was_told(words):
    """Also where the first has ended before the second is there."""
    with sentinel(2) as (child, port):
        connect(port, "token rank 0\n" + words[0])
        if words[1]:
            time.sleep(0.1)
            connect(port, "token rank 1\n" + words[1])
        assert said(child) == ""


def test_strangers_do_not_keep_it_from_seeing_a_death():
    """One that says nothing, one that does not end its line, one without the token; and none is
    let in once all are there."""
    with sentinel(1) as (child, port):
        for words in ("", "tok", "wrong rank 0\n"):
            connect(port, words)
        rank, began = connect(port, "token rank 0\n"), time.monotonic()
        while time.monotonic() < began + 5:
            try:
                connect(port)
            except OSError:
                break
            time.sleep(0.1)
        else:
            pytest.fail("it still listens")
        rank.close()
        assert "rank 0 has died" in said(child)


def test_it_does_not_wait_for_those_who_never_come():
    """Whoever has started it was killed before any, or all, had connected."""
    for connected in range(2):
        with sentinel(2) as (child, port):
            if connected:
                connect(port, "token rank 1\n")
                time.sleep(0.1)
            child.stdin.close()
            assert said(child) == ""
    with sentinel(1) as (child, port):  # but it does for one that is there
        rank = connect(port, "token rank 0\n")
        time.sleep(0.1)
        child.stdin.close()
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.3)
        rank.close()
        assert "rank 0 has died" in said(child)


def run(text: str) -> subprocess.CompletedProcess:
    """Two processes, each of which runs a program."""
    return subprocess.run([mpiexec(), "-n", "2", sys.executable, "-W", "error", "-c", text],
                          capture_output=True, text=True, timeout=30, cwd=ROOT,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_nothing_is_left_open():
    ended = run("from tensorlite import distributed\n"
                "processes = distributed.start(); processes.share(1); processes.end(0)\n")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_without_a_sentinel_nobody_waits():
    ended = run("from tensorlite import distributed\n"
                "distributed.processes.sentinel.__file__ = '/nowhere.py'\n"
                "distributed.start()")
    assert ended.returncode == 1
    lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert lines == ["error: rank 0 of 2 cannot join the others: the sentinel did not start"]


def test_when_the_sentinel_dies_all_end_and_say_so():
    ended = run("import os, signal, time\n"
                "from tensorlite import distributed\n"
                "processes = distributed.start()\n"
                "if not processes.rank: os.kill(processes._child.pid, signal.SIGKILL)\n"
                "time.sleep(20)")
    assert ended.returncode == 1
    lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert lines == ["error: the process that watches over the others has died, and all stop"]
