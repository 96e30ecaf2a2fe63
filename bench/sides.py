"""One side of one row in a process of its own, and the pipe between it and the benchmark.

The benchmark holds a `Child` for each side; the process (``python -m bench.sides ENGINE``) builds
its side once and then does what it is asked: compute once and send the results, or time itself.
Each message is a pickle: requests one way, (kind, value) pairs the other, arrays one at a time.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from bench.rows import Row, Side

# Settings of BLAS libraries, OpenMP, oneDNN and PyTorch that could hold one side back.
SETTINGS = ("OPENBLAS_", "GOTO_", "BLIS_", "MKL_", "OMP_", "GOMP_", "KMP_", "ONEDNN_", "DNNL_",
            "NVPL_", "ATEN_")

SAMPLE_SECONDS = 0.02  # a sample repeats quick work until it lasts this long
WARM_UP_SECONDS = 0.3
# A BLAS or OpenMP worker spins for a while after its last call before it sleeps.
REST_SECONDS = 0.05


class Failed(Exception):
    """A side cannot do its part, or does it wrong; the message is one line."""


class Missing(Exception):
    """The side cannot be had here: its package is not installed."""


def clean_environment(threads: int) -> dict[str, str]:
    """This environment without settings of the libraries, but for the number of threads."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)}
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (root, kept.get("PYTHONPATH"))))
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads),
            "OPENBLAS_NUM_THREADS": str(threads)}


class Child:
    """A side in its process, which starts to import its engine at once.

    Methods raise Missing where the engine is not installed, and Failed where the process fails or
    dies.
    """

    def __init__(self, side: Side, threads: int) -> None:
        self.side, self.threads = side, threads
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 -- `close` does
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.sides", side.engine], env=clean_environment(threads),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr)
        assert self.process.stdin and self.process.stdout
        self._requests, self._replies = self.process.stdin, self.process.stdout

    def build(self, row: Row, arrays: dict[str, np.ndarray]) -> str:
        """Make the side's part of a row; returns what engine it is."""
        self._send((row, self.side.variant, self.threads))
        for item in arrays.items():
            self._send(item)
        self._send(None)
        return self._receive()[1]

    def results(self) -> Iterator[tuple[str, np.ndarray]]:
        """Compute once and yield every result by its name."""
        self._send("results")
        while (reply := self._receive())[0] == "array":
            yield reply[1]

    def warm_up(self) -> float:
        """Run until everything has settled; seconds of a run, roughly."""
        return self._ask("warm_up")

    def sample(self) -> float:
        """Seconds of a run."""
        time.sleep(REST_SECONDS)
        return self._ask("sample")

    def peak_memory(self) -> int:
        """The most memory that the process has held so far, in bytes."""
        return self._ask("peak_memory")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self._requests, self._replies, self._stderr):
            with contextlib.suppress(OSError):  # what could not be sent to a dead process
                stream.close()

    def _ask(self, request: str) -> Any:
        self._send(request)
        return self._receive()[1]

    def _send(self, message: Any) -> None:
        try:
            send(self._requests, message)
        except OSError:
            self._receive()  # it may have said why
            raise Failed(f"{self.side}: its process takes no more requests") from None

    def _receive(self) -> tuple[str, Any]:
        try:
            kind, value = pickle.load(self._replies)
        except (EOFError, OSError, pickle.UnpicklingError):
            raise Failed(f"{self.side}: its process died ({self._last_words()})") from None
        if kind == "missing":
            raise Missing(value)
        if kind == "error":
            raise Failed(f"{self.side}: {value}")
        return kind, value

    def _last_words(self) -> str:
        status = self.process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        end = f"signal {-status}" if status < 0 else f"exit status {status}"
        return f"{end}: {lines[-1]}" if lines else end


def send(stream: IO[bytes], message: Any) -> None:
    pickle.dump(message, stream, protocol=5)
    stream.flush()


def receive_arrays(stream: IO[bytes]) -> Iterator[tuple[str, np.ndarray]]:
    while (item := pickle.load(stream)) is not None:
        yield item


def load_engine(name: str) -> Any:
    """The module (or object) that does a side's part of a row: about, build, to_numpy."""
    if name in ("tensorlite", "pytorch"):
        return importlib.import_module(f"bench.on_{name}")
    return importlib.import_module("bench.on_numpy_engines").Engine(name)


def serve(engine: str, requests: IO[bytes], replies: IO[bytes]) -> None:
    """Build a side and do what is asked until the requests end."""
    try:
        side = load_engine(engine)
    except ImportError as error:
        return send(replies, ("missing", str(error)))
    try:
        row, variant, threads = pickle.load(requests)
        run = side.build(row, variant, threads, receive_arrays(requests))
        send(replies, ("ready", side.about()))
        repeats = 1
        while True:
            match pickle.load(requests):
                case "results":
                    for name, value in run().items():
                        send(replies, ("array", (name, side.to_numpy(name, value))))
                    send(replies, ("end", None))
                case "warm_up":
                    seconds, count, began = math.inf, 0, time.perf_counter()
                    while count < 2 or time.perf_counter() - began < WARM_UP_SECONDS:
                        seconds, count = min(seconds, timed(run, 1)), count + 1
                    repeats = max(1, math.ceil(SAMPLE_SECONDS / seconds))
                    send(replies, ("seconds", seconds))
                case "sample":
                    if repeats > 1:  # another side has had the caches
                        run()
                    send(replies, ("seconds", timed(run, repeats)))
                case "peak_memory":
                    send(replies, ("bytes", peak_memory()))
    except EOFError:
        pass
    except Exception as error:
        send(replies, ("error", f"{type(error).__name__}: {' '.join(str(error).split())}"))


def timed(run: Any, repeats: int) -> float:
    """Seconds of one of `repeats` runs."""
    began = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - began) / repeats


def peak_memory() -> int:
    """Peak resident memory of this process in bytes."""
    # On Linux ru_maxrss remembers the process that started this one; VmHWM begins anew with it.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    # Whatever a library prints must not come between the replies.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.argv[1], sys.stdin.buffer, answers)
