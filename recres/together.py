"""What training takes beyond one process, where several (`tensorlite.distributed`) train together.

Each computes the gradients of its share of an update, and all make the same update. With one
process everything here leaves things as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from recres.checkpoint import Progress
from recres.commands import RunFailed
from recres.config import Config
from recres.errors import InputError
from recres.loader import Chunk, share
from tensorlite import nn
from tensorlite.device import parse_device, visible_cards
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


def choose_card(device: str, local_rank: int, local_size: int, cards: int) -> str:
    """The card of one of `local_size` processes on a machine, each of which sees so many cards, for
    --device `device`. A launcher may show each its own card alone: that is the first it sees.

    InputError where there is not one for each.
    """
    if local_size == 1:
        return parse_device(device)
    if device == "cuda" and cards >= local_size:
        return f"cuda:{local_rank}"
    if cards == 1 and parse_device(device) == "cuda:0":
        return "cuda:0"
    if device != "cuda":
        raise InputError(f"--device {device}: is one card, and {local_size} processes on this "
                         "machine need one each: --device cuda gives each its own, "
                         "CUDA_VISIBLE_DEVICES says of which")
    raise InputError(f"--device cuda: {local_size} processes on this machine need a card each, and "
                     f"they see {cards}: start no more than there are cards")


def own_device(device: str, processes: Processes) -> str:
    """Where this one of `processes` computes; all of a machine ask together. InputError where they
    cannot have a card each."""
    if processes.size == 1 or device == "cpu":
        return device
    try:
        cards = visible_cards()
    except RuntimeError as error:
        raise InputError(f"--{error}") from None
    chosen = choose_card(device, processes.local_rank, processes.local_size, len(cards))
    index = int(chosen.partition(":")[2])
    mine = cards[index] if index < len(cards) else "none"
    used = processes.neighbours(mine)
    if len(set(used)) < len(used):
        raise InputError(f"--device {device}: {len(used)} processes on this machine need a card "
                         f"each, and {used.count(mine)} see the same one alone ({mine}): start no "
                         "more than there are cards, or let each see its own")
    return chosen


def share_network(processes: Processes, network: nn.Module) -> None:
    """Overwrite all parameters and buffers with those of rank 0."""
    processes.share_arrays({name: p.data for name, p in network.named_parameters()}
                           | dict(network.named_buffers()))


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
        share_network(self.processes, self.model)
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
