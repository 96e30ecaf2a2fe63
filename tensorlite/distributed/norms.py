"""Batch norms of several processes: by the statistics of all, or each by its own and averaged."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np

from tensorlite import nn
from tensorlite.device import Array, array_module
from tensorlite.distributed.processes import MPIProcesses, Processes
from tensorlite.kernels.contract import GradSums, Moments
from tensorlite.recording import state


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
