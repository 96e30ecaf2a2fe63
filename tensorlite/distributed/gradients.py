"""The sums of gradients over processes, formed while the backward walk goes on."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from tensorlite.device import Array, array_module
from tensorlite.distributed.processes import MPIProcesses, Processes
from tensorlite.tensor import Tensor

BUCKET_BYTES = 4 << 20  # of gradients that are sent together


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
        self._comm = processes.comm
        self._in_place, self._max = processes.MPI.IN_PLACE, processes.MPI.MAX
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
        self._comm.Allreduce(self._in_place, anywhere, self._max)
        flags = iter(anywhere)
        for bucket in self._buckets:
            self._sums.finish(bucket.pending)
            bucket.pending = None
            bucket.arrived.clear()
            for param, start, stop in bucket.places:
                part = bucket.buffer[start:stop].reshape(param.shape)
                param.grad = part if next(flags) else None
        self._sent = 0
