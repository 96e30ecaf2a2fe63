"""Several processes that train one network together: data parallelism over MPI and NCCL.

Each process (a rank) computes the gradients of its share of an update's chunks, weighted so that
the sum over ranks is the gradient of the mean loss. `GradientSums` forms that sum bucket by bucket
while the backward walk goes on, `NormPool` lets batch norms normalise by the statistics of all
ranks, and `Processes` is what else ranks say to each other. All ranks then make the same update of
the same parameters; nothing is sent after it, and `Processes.check_equal` looks now and then
whether that still holds.

On the CPU sums are MPI's; on GPUs they are NCCL's, through CuPy, a card a process.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tensorlite import _sentinel, nn
from tensorlite.device import Array, array_module, is_on_gpu, require_cuda, to_device
from tensorlite.kernels.contract import GradSums, Moments
from tensorlite.recording import state
from tensorlite.tensor import Tensor

BUCKET_BYTES = 4 << 20  # of gradients that are sent together
END_SECONDS = 3.0  # that a process which has failed waits for the others to have failed as well
WATCH_SECONDS = 0.5  # between looks whether whoever started this process is still there
POLITE_SECONDS = 0.002  # between looks where a wait may be long: MPI itself would spin
# Where launchers say how many they start and which this is: MPICH and Slurm; Open MPI.
_LAUNCHERS = (("PMI_SIZE", "PMI_RANK"), ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"))


class Missing(RuntimeError):
    """What several processes need is not there; the message is one line."""


class Diverged(RuntimeError):
    """Ranks do not hold the same parameters; the message is one line."""


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
    return MPIProcesses(MPI)


class MPIProcesses(Processes):
    """Processes that mpiexec has started."""

    def __init__(self, MPI: Any) -> None:
        self.MPI = MPI
        self.comm = MPI.COMM_WORLD.Dup()
        self._ends = MPI.COMM_WORLD.Dup()  # apart: a rank may end in the midst of anything
        self.rank, self.size = self.comm.rank, self.comm.size
        near = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = near.rank, near.size
        self._sums: dict[bool, Sums] = {}
        self._told = False
        self._all_ended: bool | None = None
        self._sentinel = self._meet_sentinel()
        self._leaving = False
        threading.Thread(target=self._watch, args=(os.getppid(),), daemon=True).start()

    def _meet_sentinel(self) -> socket.socket:
        """A connection to the sentinel (`_sentinel`), which rank 0 starts."""
        here = None
        if self.rank == 0:
            token = secrets.token_hex(8)
            child = subprocess.Popen([sys.executable, "-I", "-S", _sentinel.__file__, token],
                                     stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                     start_new_session=True, text=True)
            assert child.stdout is not None
            here = (socket.gethostname(), int(child.stdout.readline()), token)
        host, port, token = self.comm.bcast(here)
        near = socket.gethostname() == host
        connection = socket.create_connection(("127.0.0.1" if near else host, port))
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

    def check_equal(self, model: nn.Module) -> None:
        named = {**{n: p.data for n, p in model.named_parameters()}, **dict(model.named_buffers())}
        mine = {name: zlib.crc32(np.ascontiguousarray(to_device(array, "cpu")).data)
                for name, array in named.items()}
        everyones = self.comm.allgather(mine)
        for rank, theirs in enumerate(everyones):
            for name in mine:
                if theirs[name] != everyones[0][name]:
                    raise Diverged(f"{name} of rank {rank} is not that of rank 0: processes that "
                                   "no longer hold the same network cannot go on")

    def wait(self) -> None:
        request = self.comm.Ibarrier()
        while not request.Test():
            time.sleep(POLITE_SECONDS)

    def after_a_death(self, advice: str) -> None:
        with contextlib.suppress(OSError):  # the sentinel is gone, and this process soon
            self._sentinel.sendall(f"{_sentinel.ADVICE} {' '.join(advice.split())}\n".encode())

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
            self._say(_sentinel.FAILED)
            self.comm.Abort(status)
        self.wait()
        self._say(_sentinel.FAREWELL)

    def _watch(self, parent: int) -> None:
        """End this process when another has died, or the one that started it is gone."""
        while (os.getppid() == parent
               and not select.select([self._sentinel], [], [], WATCH_SECONDS)[0]):
            pass
        if not self._leaving:
            if self.rank == 0 and os.getppid() == parent and self._sentinel_died():
                print("error: the process that watches over the others has died, and all stop",
                      file=sys.stderr, flush=True)
            os._exit(1)

    def _sentinel_died(self) -> bool:
        """Whether the connection to the sentinel has ended without a word of it."""
        try:
            return not self._sentinel.recv(1)
        except OSError:  # it had not read all of ours
            return False

    def _say(self, word: str) -> None:
        """Tell the sentinel how this process ends."""
        self._leaving = True  # from here on it may end before this process does
        with contextlib.suppress(OSError):  # it may be gone already
            self._sentinel.sendall(f"{word}\n".encode())


class HostSums:
    """Sums over ranks of arrays in the host's memory, formed while the caller goes on."""

    def __init__(self, comm: Any, MPI: Any) -> None:
        self.comm, self.MPI = comm, MPI

    def begin(self, array: np.ndarray) -> Any:
        """Begin to put the sum over ranks in the place of `array`, flat and contiguous."""
        return self.comm.Iallreduce(self.MPI.IN_PLACE, array)

    def advance(self, pending: Sequence[Any]) -> None:
        """Let sums that are under way go on: MPI works on them only while it is called."""
        self.MPI.Request.Testall(list(pending))

    def finish(self, pending: Any) -> None:
        """Return when the sum is there for whatever the caller does next."""
        pending.Wait()

    def gather(self, array: np.ndarray) -> np.ndarray:
        """The arrays of all ranks, (ranks, …)."""
        out = np.empty((self.comm.size, *array.shape), array.dtype)
        self.comm.Allgather(np.ascontiguousarray(array), out)
        return out


class NcclSums:
    """Sums over ranks of arrays on GPUs, as `HostSums`, on a stream beside that of the work: the
    device is told what waits for what, the host waits for nothing."""

    def __init__(self, comm: Any, MPI: Any, like: Array) -> None:
        self.comm = comm
        self._cupy = cupy = require_cuda(f"cuda:{like.device.id}")
        from cupy.cuda import nccl

        self._types = {np.dtype("float32"): nccl.NCCL_FLOAT,
                       np.dtype("float64"): nccl.NCCL_DOUBLE}
        self._sum = nccl.NCCL_SUM
        name = comm.bcast(nccl.get_unique_id() if comm.rank == 0 else None)
        with like.device:
            self._nccl = nccl.NcclCommunicator(comm.size, name, comm.rank)
            self._stream = cupy.cuda.Stream(non_blocking=True)

    def begin(self, array: Array) -> Any:
        self._stream.wait_event(self._cupy.cuda.get_current_stream().record())
        self._nccl.allReduce(array.data.ptr, array.data.ptr, array.size, self._types[array.dtype],
                             self._sum, self._stream.ptr)
        return self._stream.record()

    def advance(self, pending: Sequence[Any]) -> None:
        pass  # the device does

    def finish(self, pending: Any) -> None:
        self._cupy.cuda.get_current_stream().wait_event(pending)

    def gather(self, array: Array) -> Array:
        array = self._cupy.ascontiguousarray(array)
        out = self._cupy.empty((self.comm.size, *array.shape), array.dtype)
        current = self._cupy.cuda.get_current_stream()
        self._nccl.allGather(array.data.ptr, out.data.ptr, array.size, self._types[array.dtype],
                             current.ptr)
        return out


Sums = HostSums | NcclSums


class _Place(NamedTuple):
    """A parameter, and where in the buffer of its bucket its gradient goes."""

    param: Tensor
    start: int
    stop: int


class _Bucket:
    """Gradients that are sent together."""

    def __init__(self, places: list[_Place]) -> None:
        self.places = places
        first = places[0].param
        self.buffer = array_module(first.data).empty(places[-1].stop, first.dtype)
        self.arrived: set[int] = set()
        self.pending: Any = None

    def put(self, number: int, grad: Array | None) -> None:
        param, start, stop = self.places[number]
        part = self.buffer[start:stop].reshape(param.shape)
        if grad is None:
            part[...] = 0
        elif param.grad is not None:
            array_module(grad).add(param.grad, grad, out=part)
        else:
            part[...] = grad
        self.arrived.add(number)


class GradientSums:
    """Replaces the gradients of `params` by their sums over ranks, beginning during backward.

        for batch in batches:
            with gradients.sent(batch is batches[-1]):
                loss(batch).backward()
        gradients.finish()

    Gradients are added up over the batches; in the last one each goes into its bucket when the walk
    has completed it, and a full bucket is sent while the walk goes on. Parameters are taken in
    reverse, about the order of the walk. Buckets are sent in the same order on every rank and every
    update, so that sums have the same bits; one that lacks a gradient holds back those after it
    until `finish`, where a rank sends zeros for what it has no gradient of. A parameter that has
    none on any rank has none afterwards.
    """

    def __init__(self, processes: Processes, params: Iterable[Tensor],
                 bucket_bytes: int = BUCKET_BYTES) -> None:
        self._buckets: list[_Bucket] = []
        self._sending = False
        if not isinstance(processes, MPIProcesses):
            return
        groups: list[list[_Place]] = []
        for param in reversed(list(params)):
            last = groups[-1][-1] if groups else None
            nbytes = 0 if last is None else last.stop * last.param.dtype.itemsize
            if last is None or last.param.dtype != param.dtype or nbytes >= bucket_bytes:
                groups.append([])
                last = None
            at = 0 if last is None else last.stop
            groups[-1].append(_Place(param, at, at + param.size))
        self._buckets = [_Bucket(places) for places in groups]
        self._comm, self._max = processes.comm, processes.MPI.MAX
        self._sums = processes.sums(self._buckets[0].buffer)
        self._sent = 0
        for bucket in self._buckets:
            for number, place in enumerate(bucket.places):
                place.param.register_hook(functools.partial(self._arrive, bucket, number))

    @contextlib.contextmanager
    def sent(self, last: bool) -> Iterator[None]:
        """Within it, if this is the `last` walk of an update, gradients are sent as they come."""
        self._sending = last
        try:
            yield
        finally:
            self._sending = False

    def _arrive(self, bucket: _Bucket, number: int, grad: Array) -> None:
        if self._sending:
            bucket.put(number, grad)
            self._send()

    def _send(self) -> None:
        """Send the buckets that are full, those before them having been sent."""
        while self._sent < len(self._buckets):
            bucket = self._buckets[self._sent]
            if len(bucket.arrived) < len(bucket.places):
                break
            bucket.pending = self._sums.begin(bucket.buffer)
            self._sent += 1
        self._sums.advance([bucket.pending for bucket in self._buckets[: self._sent]])

    def finish(self) -> None:
        """Send what is left, and set ``.grad`` of every parameter to the sum over ranks."""
        if not self._buckets:
            return
        found = [number in bucket.arrived or place.param.grad is not None
                 for bucket in self._buckets for number, place in enumerate(bucket.places)]
        for bucket in self._buckets:
            for number, place in enumerate(bucket.places):
                if number not in bucket.arrived:
                    grad, place.param.grad = place.param.grad, None
                    bucket.put(number, grad)
        self._send()
        anywhere = np.array(found, np.uint8)
        self._comm.Allreduce(anywhere.copy(), anywhere, self._max)
        flags = iter(anywhere)
        for bucket in self._buckets:
            self._sums.finish(bucket.pending)
            bucket.pending = None
            bucket.arrived.clear()
            for param, start, stop in bucket.places:
                part = bucket.buffer[start:stop].reshape(param.shape)
                param.grad = part if next(flags) else None
        self._sent = 0


class NormPool:
    """Within ``with pool:``, batch norms in training take the statistics of all ranks' batches.

    Forward, each rank's count, mean and sum of squared deviations are merged after Chan, Golub and
    LeVeque (1979); backward, the two sums of a norm's gradient are added up. All in float64 and in
    the order of the ranks, so that every rank has the same bits. The gradients of gamma and beta
    stay those of the rank's own values: `GradientSums` adds them up.

    """

    def __init__(self, processes: MPIProcesses, like: Array) -> None:
        self._sums = processes.sums(like)
        self._comm = processes.comm.Dup()
        self._idle = False

    def __enter__(self) -> NormPool:
        self._before, state.pool = state.pool, self
        return self

    def __exit__(self, *_: object) -> None:
        state.pool = self._before

    @contextlib.contextmanager
    def idle(self) -> Iterator[None]:
        """Within it this rank takes part, on some batch, but that counts for nothing."""
        self._idle = True
        try:
            yield
        finally:
            self._idle = False

    def moments(self, moments: Moments) -> Moments:
        """The moments of the union of all ranks' values."""
        xp, dtype = array_module(moments.mean), moments.mean.dtype
        mine = np.array(0 if self._idle else moments.count, np.int64)
        counted = np.empty(self._comm.size, np.int64)
        self._comm.Allgather(mine, counted)
        total = int(counted.sum())
        counts = xp.asarray(counted, dtype=np.float64)[:, None]
        parts = self._gather(moments.mean, moments.m2)
        means, m2s = parts[:, 0], parts[:, 1]
        mean = (counts * means).sum(axis=0) / total
        m2 = m2s.sum(axis=0) + (counts * xp.square(means - mean)).sum(axis=0)
        return Moments(total, mean.astype(dtype), m2.astype(dtype))

    def sums(self, sums: GradSums) -> GradSums:
        """The sums over all ranks' values."""
        both = self._gather(*sums).sum(axis=0).astype(sums.grad.dtype)
        return GradSums(both[0], both[1])

    def _gather(self, one: Array, two: Array) -> Array:
        """(ranks, 2, C) float64."""
        both = array_module(one).stack([one, two]).astype(np.float64)
        return self._sums.gather(array_module(both).zeros_like(both) if self._idle else both)


def average_statistics(processes: Processes, model: nn.Module, weight: float) -> None:
    """Make the running statistics of norms in training the mean of those of all ranks, by their
    weights, which add up to 1: where each normalises by its own batches, one network comes of it.
    """
    if processes.size == 1:
        return
    buffers = [buffer for module in model.modules()
               if isinstance(module, nn.BatchNorm2d) and module.mode == "train"
               for buffer in (module.running_mean, module.running_var)]
    if not buffers:
        return
    flat = array_module(buffers[0]).concatenate(buffers).astype(np.float64)
    flat, at = processes.total(flat * weight), 0
    for buffer in buffers:
        buffer[...] = flat[at : at + buffer.size]
        at += buffer.size


def pool_of(processes: Processes, like: Array) -> NormPool | contextlib.nullcontext[None]:
    """A `NormPool` of several processes; of one, a context in which nothing is different."""
    if isinstance(processes, MPIProcesses):
        return NormPool(processes, like)
    return contextlib.nullcontext()
