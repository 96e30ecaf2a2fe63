"""How processes are started, talk to each other, and end together."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tensorlite import nn
from tensorlite.device import Array, array_module, is_on_gpu, to_device
from tensorlite.distributed import sentinel
from tensorlite.distributed.errors import Diverged, Missing
from tensorlite.distributed.sums import HostSums, NcclSums, Sums

END_SECONDS = 3.0  # that a process which has failed waits for the others to have failed as well
WATCH_SECONDS = 0.5  # between looks whether whoever started this process is still there
POLITE_SECONDS = 0.002  # between looks where a wait may be long: MPI itself would spin
# Where launchers say how many they start and which this is: MPICH and Slurm; Open MPI.
_LAUNCHERS = (("PMI_SIZE", "PMI_RANK"), ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"))


class Processes:
    """The processes of a run; this base class is the one process of an ordinary run.

    rank: which of `size` this one is; local_rank: which of the `local_size` on its machine.
    """

    rank, size, local_rank, local_size = 0, 1, 0, 1

    @property
    def launcher(self) -> str:
        """What stands before a command that starts as many: "mpiexec -n 2 "."""
        return f"mpiexec -n {self.size} " if self.size > 1 else ""

    def share(self, value: Any) -> Any:
        """What rank 0 has as `value` (anything that can be pickled), on every rank."""
        return value

    def share_arrays(self, arrays: Mapping[str, Array]) -> None:
        """Overwrite `arrays` with those of rank 0, which have the same names and shapes."""

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank."""
        return flag

    def total(self, value: Any) -> Any:
        """The sum over ranks of a number, or of an array on their devices."""
        return value

    def everyones(self, value: Any) -> list[Any]:
        """What each rank has as `value` (anything that can be pickled), by rank."""
        return [value]

    def neighbours(self, value: Any) -> list[Any]:
        """What each rank on this machine has as `value`, by local rank."""
        return [value]

    def check_equal(self, model: nn.Module) -> None:
        """Raise Diverged unless parameters and buffers are bit-equal on all ranks."""

    def wait(self) -> None:
        """Return when all ranks are here; sleeps meanwhile."""

    @contextlib.contextmanager
    def first(self) -> Iterator[None]:
        """Rank 0 goes through the block alone; the others when it is done."""
        if self.rank:
            self.wait()
        yield
        if not self.rank:
            self.wait()

    def after_a_death(self, advice: str) -> None:
        """What is to be said, from now on, after that a rank has died: how to go on, one line."""

    def all_end(self) -> bool:
        """Whether all ranks come to an end within END_SECONDS of this one."""
        return True

    def end(self, status: int) -> None:
        """Call last, with the exit status; after a failure of this rank alone, end the others.

        If rank 0 has shared nothing, others get None of their first `share`: that there is
        nothing to do."""


def mpiexec() -> str | None:
    """The launcher that belongs to this Python, or else the first on PATH; None without any. One
    that pip has installed is beside Python, which need not be on PATH."""
    beside = Path(sys.executable).with_name("mpiexec")
    return str(beside) if beside.exists() else shutil.which("mpiexec")


def launched() -> tuple[int, int]:
    """Rank and number of processes, as the launcher of this one says; (0, 1) without one."""
    for size, rank in _LAUNCHERS:
        if size in os.environ:
            return int(os.environ.get(rank, 0)), int(os.environ[size])
    return 0, 1


def start() -> Processes:
    """The processes that mpiexec started with this one. Raises Missing where mpi4py is absent, or
    of another MPI than mpiexec."""
    rank, size = launched()
    if size == 1:
        return Processes()
    _end_with_parent()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of another MPI's mpiexec: said below, once
            from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        why = str(error).split("\n")[0]  # then all places where it has looked
        raise Missing(f"mpiexec started {size} processes, and to work together they need mpi4py "
                      f"and an MPI ({why}): pip install 'recres[distributed]'") from None
    if MPI.COMM_WORLD.size != size:
        raise Missing(f"mpiexec started {size} processes, but the MPI of mpi4py "
                      f"({MPI.Get_library_version().split(chr(10))[0].strip()}) knows of "
                      f"{MPI.COMM_WORLD.size}: use the mpiexec of that MPI (found: {mpiexec()})")
    try:
        return MPIProcesses(MPI)
    except Exception as error:  # the others would wait for this one, and it for them when it ends
        print(f"error: rank {rank} of {size} cannot join the others: {error}", file=sys.stderr,
              flush=True)
        MPI.COMM_WORLD.Abort(1)
        raise


def _end_with_parent() -> None:
    """Let the system kill this process when the one that started it dies: MPI's own beginning waits
    for the others for ever, in C, where no thread of Python's could look."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


class MPIProcesses(Processes):
    """Processes that mpiexec has started."""

    def __init__(self, MPI: Any) -> None:
        self.MPI = MPI
        self.comm = MPI.COMM_WORLD.Dup()
        self._ends = MPI.COMM_WORLD.Dup()  # apart: a rank may end in the midst of anything
        self.rank, self.size = self.comm.rank, self.comm.size
        self._near = near = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = near.rank, near.size
        self._sums: dict[bool, Sums] = {}
        self._told = False
        self._all_ended: bool | None = None
        self._leaving = False
        self._child: subprocess.Popen | None = None  # the sentinel, of rank 0
        self._sentinel = self._meet_sentinel(near.bcast(self.rank) == 0)
        self._watcher = threading.Thread(target=self._watch, args=(os.getppid(),), daemon=True)
        self._watcher.start()

    def _meet_sentinel(self, near: bool) -> socket.socket:
        """A connection to the sentinel (`sentinel`), which rank 0 starts. near: it runs here."""
        here = None
        if self.rank == 0:
            token, host = secrets.token_hex(8), socket.gethostname()
            listens = "127.0.0.1" if self.local_size == self.size else ""
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-S", sentinel.__file__, token, str(self.size), listens],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, text=True)
            assert self._child.stdout is not None
            with self._child.stdout as said:
                port = said.readline()
            if not port:
                raise ConnectionError("the sentinel did not start")
            here = host, int(port), token
        host, port, token = self.comm.bcast(here)
        connection = socket.create_connection(("127.0.0.1" if near else host, port),
                                              timeout=sentinel.PATIENCE)
        connection.settimeout(None)
        name = f"rank {self.rank} of {self.size} (process {os.getpid()} on {socket.gethostname()})"
        connection.sendall(f"{token} {name}\n".encode())
        self.wait()  # from here on the death of any is noticed
        return connection

    def sums(self, like: Array) -> Sums:
        """Sums of arrays on the device of `like`, on a communicator of their own."""
        comm = self.comm.Dup()
        return NcclSums(comm, self.MPI, like) if is_on_gpu(like) else HostSums(comm, self.MPI)

    def share(self, value: Any) -> Any:
        self._told = True
        return self.comm.bcast(value)

    def share_arrays(self, arrays: Mapping[str, Array]) -> None:
        for array in arrays.values():
            host = np.ascontiguousarray(to_device(array, "cpu"))
            self.comm.Bcast(host.reshape(-1).view(np.uint8))
            array[...] = array_module(array).asarray(host.reshape(array.shape))

    def any(self, flag: bool) -> bool:
        return bool(self.comm.allreduce(int(flag), self.MPI.MAX))

    def total(self, value: Any) -> Any:
        if not hasattr(value, "dtype"):
            return self.comm.allreduce(value)
        sums = self._sums.get(is_on_gpu(value))
        if sums is None:
            sums = self._sums[is_on_gpu(value)] = self.sums(value)
        result = array_module(value).array(value).reshape(-1)
        sums.finish(sums.begin(result))
        return result.reshape(value.shape)

    def everyones(self, value: Any) -> list[Any]:
        return self.comm.allgather(value)

    def neighbours(self, value: Any) -> list[Any]:
        return self._near.allgather(value)

    def check_equal(self, model: nn.Module) -> None:
        named = {**{n: p.data for n, p in model.named_parameters()}, **dict(model.named_buffers())}
        mine = {name: zlib.crc32(np.ascontiguousarray(to_device(array, "cpu")).data)
                for name, array in named.items()}
        everyones = self.everyones(mine)
        for rank, theirs in enumerate(everyones):
            for name in mine:
                if theirs[name] != everyones[0][name]:
                    raise Diverged(f"{name} of rank {rank} is not that of rank 0: processes that "
                                   "no longer hold the same network cannot go on")

    def wait(self) -> None:
        self._wait(self.comm)

    def _wait(self, comm: Any) -> None:
        request = comm.Ibarrier()
        while not request.Test():
            time.sleep(POLITE_SECONDS)

    def after_a_death(self, advice: str) -> None:
        with contextlib.suppress(OSError):  # the sentinel is gone, and this process soon
            self._sentinel.sendall(f"{sentinel.ADVICE} {' '.join(advice.split())}\n".encode())

    def all_end(self) -> bool:
        if self._all_ended is None:
            request, until = self._ends.Ibarrier(), time.monotonic() + END_SECONDS
            while not (done := request.Test()) and time.monotonic() < until:
                time.sleep(POLITE_SECONDS)
            self._all_ended = done
        return self._all_ended

    def end(self, status: int) -> None:
        if not (self.rank or self._told):
            self.share(None)
        elif status and not self.all_end():
            self._say(sentinel.FAILED)
            self.comm.Abort(status)
        if not self._all_ended:  # (not by `wait`: one of it may have been left by an interrupt)
            self._wait(self._ends)
        self._say(sentinel.FAREWELL)
        self._watcher.join(END_SECONDS)
        if self._child is not None:
            assert self._child.stdin is not None
            self._child.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(END_SECONDS)

    def _watch(self, parent: int) -> None:
        """End this process when another has died, or the one that started it is gone."""
        while (os.getppid() == parent
               and not select.select([self._sentinel], [], [], WATCH_SECONDS)[0]):
            pass
        if self._leaving:
            self._sentinel.close()
            return
        if self._child is None:
            time.sleep(WATCH_SECONDS)  # for rank 0, whom the launcher ends when another ends
        elif os.getppid() == parent and self._child.wait():
            print("error: the process that watches over the others has died, and all stop",
                  file=sys.stderr, flush=True)
        os._exit(1)

    def _say(self, word: str) -> None:
        """Tell the sentinel how this process ends."""
        self._leaving = True  # from here on it may end before this process does
        with contextlib.suppress(OSError):  # it may be gone already
            self._sentinel.sendall(f"{word}\n".encode())
