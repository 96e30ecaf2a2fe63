"""Processes that decode and augment chunks ahead of the step.

A `WorkerLoader` makes of chunks what the `FrameLoader` it was made of does, bit for bit, however
many processes do it: what a chunk looks like depends on (seed, epoch, chunk) alone. A video always
goes to the same worker, which keeps its frames, so all workers together have the memory that one
loader has; where that is too little to keep them, a worker with nothing to do takes what waits for
another. Of a worker that dies it is known at which file it was.

Pixels go through memory that has no name, chunks and answers through pipes. So nothing is left
behind however training ends: of a process that is killed the workers find the pipe closed.
"""

from __future__ import annotations

import atexit
import contextlib
import mmap
import multiprocessing
import os
import pickle
import selectors
import signal
import threading
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from multiprocessing import reduction
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np

from recres import limits
from recres.commands import RunFailed
from recres.config import PLACES
from recres.loader import Chunk, FrameLoader
from recres.video.processes import begin, signals_blocked

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SECONDS = 5.0  # until a process whose pipe is closed has ended


class WorkerDied(RunFailed):
    """A worker has ended; the message is one line and names the file that it held."""


class _Load:
    """A call of `load`: where its chunks go, how many are yet to come, and what went wrong with
    which of them."""

    def __init__(self, out: np.ndarray) -> None:
        self.out, self.left = out, len(out)
        self.errors: dict[int, Exception] = {}
        self.done = threading.Event()

    def count(self, index: int, error: Exception | None) -> None:
        """The chunk at `index` is there, or never will be."""
        if error is not None:
            self.errors[index] = error
        self.left -= 1
        if self.left == 0:
            self.done.set()


# A load, the index of a chunk in it, and the message that asks for it.
_Wanted = tuple[_Load, int, tuple[Any, ...]]


class _Worker:
    """A process and what it has to do: `waiting`, and `sent` by place, the oldest first."""

    def __init__(self, process: SpawnProcess, connection: Connection, places: np.ndarray) -> None:
        self.process, self.connection, self.places = process, connection, places
        self.free = deque(range(len(places)))
        self.waiting: deque[_Wanted] = deque()
        self.sent: dict[int, _Wanted] = {}

    def send(self, wanted: _Wanted) -> None:
        """Let the process do this, for which there is a place."""
        place = self.free.popleft()
        self.sent[place] = wanted
        with contextlib.suppress(OSError):  # it is dead: the receiver will see to it
            self.connection.send((place, *wanted[2]))

    def receive(self) -> tuple[_Load, int, Exception | None, bool]:
        """Take an answer: of which load, which chunk, what went wrong, and whether the process
        keeps its videos. EOFError or OSError where it is dead."""
        place, error, keeps_all = self.connection.recv()
        load, index, _ = self.sent.pop(place)
        if error is None:
            load.out[index] = self.places[place]
        self.free.append(place)
        return load, index, error, keeps_all


class WorkerLoader:
    """A `Loader` that has `frames` load in so many processes; any number of threads may ask.

    chunks_at_once: about how many chunks a call of `load` has. in_flight: how many calls at once
    keep all workers busy. Leaving it as a context manager, or `close`, ends the workers. An
    exception that a worker meets comes out of `load`; WorkerDied when one has ended.
    """

    def __init__(self, frames: FrameLoader, workers: int, chunks_at_once: int) -> None:
        if workers < 1:
            raise ValueError(f"workers is {workers}, expected at least 1")
        self.frames = frames
        self.in_flight = 1 + -(-PLACES * workers // chunks_at_once)
        config = frames.config
        self._shape = (config.context, config.image_size, config.image_size, frames.source.channels)
        self._lock = threading.Lock()
        self._error: WorkerDied | None = None
        self._closing = False
        self._keep_all = True  # the workers, as far as they have said
        self._pid = os.getpid()
        self._workers: list[_Worker] = []
        self._receiver = threading.Thread(target=self._receive, name="workers", daemon=True)
        # Before the children of this process are waited for, which do not end by themselves.
        atexit.register(self.close)
        try:
            self._start(workers)
        except BaseException:
            self.close()
            raise

    def _start(self, count: int) -> None:
        """Does not wait for them: that they have died already, the receiver will see."""
        part = FrameLoader(self.frames.source.part(count), self.frames.config,
                           self.frames.convention)
        data = pickle.dumps(part, pickle.HIGHEST_PROTOCOL)
        with contextlib.ExitStack() as opened:
            # A list of videos and an index are megabytes: not through a pipe, to each in turn.
            loader = _memory(opened, "recres-loader", len(data))
            with mmap.mmap(loader, 0) as shared:
                shared[:] = data
            nbytes = 4 * int(np.prod(self._shape)) * PLACES * count
            chunks = _memory(opened, "recres-chunks", nbytes)
            places = _places(os.dup(chunks), self._shape)
            context = multiprocessing.get_context("spawn")
            for number in range(count):
                here, there = context.Pipe()
                first = PLACES * number
                process = context.Process(
                    target=_work, args=(there, limits.values(), first, self._shape), daemon=True,
                    name=f"loader-{number}")
                self._workers.append(_Worker(process, here, places[first : first + PLACES]))
                with there, signals_blocked(_SIGNALS):  # (the parent then saves what there is)
                    process.start()
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    for descriptor in (loader, chunks):
                        reduction.send_handle(here, descriptor, process.pid)
        self._receiver.start()

    def load(self, chunks: Sequence[Chunk], epoch: int | None = None,
             backwards: bool = False) -> np.ndarray:
        """See `Loader`. Where several chunks fail, the first one's exception is raised."""
        load = _Load(np.empty((len(chunks), *self._shape), np.float32))
        with self._lock:
            self._check()
            for index, chunk in enumerate(chunks):
                worker = self._workers[chunk.video % len(self._workers)]
                worker.waiting.append((load, index, (chunk, epoch, backwards)))
            for worker in self._workers:
                self._give(worker)
        if chunks:
            load.done.wait()
        if load.errors:
            raise load.errors[min(load.errors)]
        return load.out

    def _give(self, worker: _Worker) -> None:
        """Let a worker have as much as it has places for."""
        while worker.free:
            waiting = worker.waiting
            if not waiting and not self._keep_all:
                waiting = max((other.waiting for other in self._workers), key=len)
            if not waiting:
                return
            worker.send(waiting.popleft())

    def arguments(self, chunks: Sequence[Chunk]) -> dict[str, Any]:
        """See `Loader`."""
        return self.frames.arguments(chunks)

    @property
    def peak_bytes(self) -> int:
        """Memory that the workers have had at their peaks, together; 0 where nothing says it."""
        total = 0
        for worker in self._workers:
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{worker.process.pid}/status").read_text()
                total += sum(int(line.split()[1]) * 1024 for line in text.splitlines()
                             if line.startswith("VmHWM:"))
        return total

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closing:
            raise ValueError("the loader is closed")

    def _receive(self) -> None:
        """In a thread: take what the workers answer, until they are gone."""
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                selector.register(worker.connection, selectors.EVENT_READ, worker)
            while True:
                for key, _ in selector.select():
                    with self._lock:
                        if self._closing:  # what is answered now, nobody waits for
                            return
                        try:
                            self._take(key.data)
                        except Exception as error:  # whatever it is: calls wait for this thread
                            self._error = self._died(key.data, error)
                            self._end()
                            return

    def _take(self, worker: _Worker) -> None:
        load, index, error, keeps_all = worker.receive()
        self._keep_all &= keeps_all
        self._give(worker)
        load.count(index, error)

    def _died(self, worker: _Worker, why: Exception) -> WorkerDied:
        """What there is to say of a worker whose pipe is closed, or who answers nonsense."""
        at, gone = "no file", isinstance(why, EOFError | OSError)
        if gone:
            worker.process.join(_SECONDS)
        status = worker.process.exitcode
        how = f"ended with exit status {status}"
        if not gone or status is None:
            how = f"cannot be understood ({type(why).__name__}: {why})"
        elif status < 0:
            names = {number.value: f" ({number.name})" for number in signal.Signals}
            how = f"was killed by signal {-status}{names.get(-status, '')}"
        if worker.sent:
            _, _, (chunk, *_) = next(iter(worker.sent.values()))
            at = str(self.frames.source.videos[chunk.video].path)
        return WorkerDied(f"loader process {worker.process.pid} {how}; it held {at}")

    def _end(self) -> None:
        """End all workers, and all calls that wait for them."""
        for worker in self._workers:
            if worker.process.pid is not None:
                worker.process.kill()  # they have nothing to lose
        for worker in self._workers:
            for load, index, _ in (*worker.sent.values(), *worker.waiting):
                load.count(index, self._error or RunFailed("the loader was closed"))
            worker.sent.clear()
            worker.waiting.clear()

    def close(self) -> None:
        """End the workers; what they are at is dropped."""
        if os.getpid() != self._pid:  # a copy of the process, which has none of its own
            return
        with self._lock:
            self._closing = True
            self._end()
        if self._receiver.is_alive():
            self._receiver.join()
        while self._workers:  # which lets go of the memory, too
            worker = self._workers.pop()
            if worker.process.pid is not None:
                worker.process.join()
            worker.process.close()
            worker.connection.close()
        atexit.unregister(self.close)

    def __enter__(self) -> WorkerLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _memory(opened: contextlib.ExitStack, name: str, nbytes: int) -> int:
    """The descriptor of memory that lasts as long as a process has it, open within `opened`."""
    descriptor = os.memfd_create(name)
    opened.callback(os.close, descriptor)
    os.posix_fallocate(descriptor, 0, nbytes)  # rather than to be killed when it is used
    return descriptor


def _places(descriptor: int, shape: Sequence[int]) -> np.ndarray:
    """The shared memory, as chunks."""
    return np.frombuffer(_mapped(descriptor), np.float32).reshape(-1, *shape)


def _mapped(descriptor: int) -> mmap.mmap:
    """Memory by its descriptor, which is closed."""
    try:
        return mmap.mmap(descriptor, 0)
    finally:
        os.close(descriptor)


def _work(connection: Connection, known: Mapping[str, int], first: int,
          shape: Sequence[int]) -> None:
    """What a worker does until the pipe is closed: load chunks of this shape, each into its place,
    of which `first` is the first. known: the parent's limits."""
    begin(known)
    # The C library gives freed memory back to the kernel unless it has seen larger blocks come and
    # go: a quarter of the time would go into getting it again for each chunk.
    np.empty(16 << 20, np.uint8)
    try:
        with _mapped(reduction.recv_handle(connection)) as data:
            loader: FrameLoader = pickle.loads(data)
        places = _places(reduction.recv_handle(connection), shape)[first : first + PLACES]
        while True:
            place, chunk, epoch, backwards = connection.recv()
            error = None
            try:
                loader.load([chunk], epoch, backwards, places[place : place + 1])
            except Exception as found:
                error = _to_send(found)
            connection.send((place, error, loader.source.keeps_all))
    except (EOFError, OSError):
        return


def _to_send(error: Exception) -> Exception:
    """An exception as it can be sent: with its traceback, and as text where it is of a kind that
    cannot."""
    error.add_note("in a loader process: " + "".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
