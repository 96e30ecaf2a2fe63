"""What training takes beyond one process, where several (`tensorlite.distributed`) train together.

Each computes the gradients of its share of an update, and all make the same update. With one
process everything here leaves things as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from recres.checkpoint import Progress
from recres.commands import Interrupts, RunFailed
from recres.config import Config
from recres.loader import Chunk, share
from tensorlite import nn
from tensorlite.distributed import (
    Diverged,
    GradientSums,
    Missing,
    NormPool,
    Processes,
    average_statistics,
    pool_of,
)
from tensorlite.optim import LossScaler, Optimizer

CHECK_UPDATES = 100  # between looks whether all processes still hold the same parameters


class Together:
    """The part of one of `processes` in the training of `model`."""

    def __init__(self, processes: Processes, model: nn.Module, optimizer: Optimizer,
                 config: Config) -> None:
        self.processes, self.model, self.optimizer = processes, model, optimizer
        self.config, self.alone = config, processes.size == 1
        try:
            self._gradients = GradientSums(processes, optimizer.params.values())
        except Missing as error:
            raise RunFailed(str(error)) from None
        self._pool = pool_of(processes if config.sync_norm else Processes(),
                             next(model.parameters()).data)

    def begin(self, progress: Progress, scaler: LossScaler | None) -> Progress:
        """Let every process begin with what rank 0 has; its counters."""
        if self.alone:
            return progress
        parts = [part for part in (self.optimizer, scaler) if part is not None]
        progress, states = self.processes.share((progress, [part.state_dict() for part in parts]))
        for part, state in zip(parts, states, strict=True):
            part.load_state_dict(state)
        named = {name: p.data for name, p in self.model.named_parameters()}
        self.processes.share_arrays(named | dict(self.model.named_buffers()))
        return progress

    def share(self, batches: Sequence[Sequence[Chunk]]) -> Sequence[Sequence[Chunk]]:
        """What this process has of an update's batches; one of them may be empty."""
        return batches if self.alone else share(batches, self.processes.rank, self.config)

    def shares(self, batches: Sequence[Sequence[Chunk]]) -> Sequence[Sequence[Chunk]]:
        """An update's batches as its norms see them: those of all processes one after another or,
        with --sync-norm, whole."""
        if self.alone or self.config.sync_norm:
            return batches
        return [mine for rank in range(self.processes.size)
                for mine in share(batches, rank, self.config) if mine]

    def may_send(self, batches: Sequence[Sequence[Chunk]]) -> bool:
        """Whether gradients may be sent while an update's last batch goes backwards. Not where some
        process only goes along: sums of gradients and of norms, which are different communicators
        of NCCL, have to come in the same order on all, or they may wait for each other."""
        return not self.config.sync_norm or len(batches[-1]) >= self.processes.size

    @contextlib.contextmanager
    def walk(self, last: bool) -> Iterator[None]:
        """Around forward and backward of a batch; last: gradients are complete after it, and may be
        sent."""
        with self._pool, self._gradients.sent(last):
            yield

    def go_along(self, logits: Any) -> float:
        """Take part in the norms of a batch of which this process has nothing: `logits()` are of
        chunks of another's, which count neither there nor in the gradients."""
        assert isinstance(self._pool, NormPool)
        before = [(p, p.grad) for p in self.optimizer.params.values()]
        with self._pool.idle():
            logits().sum().backward()
        for parameter, grad in before:
            parameter.grad = grad
        return 0.0

    def combine(self, loss: Any, weight: float) -> Any:
        """Put the gradients and the norms' statistics of all processes together; the loss of all.
        loss: a number, or on all of them an array. weight: this process's share of the update."""
        if self.alone:
            return loss
        self._gradients.finish()
        if not self.config.sync_norm:
            average_statistics(self.processes, self.model, weight)
        return self.processes.total(loss)

    def leave_out(self) -> None:
        """Forget an update that failed; rank 0 has seen to its own parameters and buffers."""
        if not self.alone:
            self.processes.wait()  # rank 0 looks for the reason
            self.processes.share_arrays(dict(self.model.named_buffers()))
            self.optimizer.zero_grad()

    def check(self, update: int) -> None:
        """RunFailed, every now and then, if processes no longer hold the same parameters."""
        if update % CHECK_UPDATES == 0:
            try:
                self.processes.check_equal(self.model)
            except Diverged as error:
                raise RunFailed(f"update {update}: {error}") from None

    def deferred(self, interrupts: Interrupts) -> contextlib.AbstractContextManager[None]:
        """Around training: several processes stop after the same update, none of them at once."""
        return contextlib.nullcontext() if self.alone else interrupts.deferred()
