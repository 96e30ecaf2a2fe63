"""Sums of arrays over processes: by MPI in the host's memory, by NCCL between GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tensorlite.device import Array, require_cuda
from tensorlite.distributed.errors import Missing


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
        try:
            from cupy.cuda import nccl

            self._types = {np.dtype("float32"): nccl.NCCL_FLOAT,
                           np.dtype("float64"): nccl.NCCL_DOUBLE}
        except (ImportError, AttributeError):  # (CuPy may put an empty module in its place)
            raise Missing("processes on GPUs need NCCL, which CuPy does not find; with --device "
                          "cpu they go without") from None
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
