"""What becomes of an update whose loss or gradient is not finite: it stops the run or, by
--on-nonfinite skip, is left out; the first is written down so that it can be made again.

Such an update is run once more from the state that it began with, which is there still, to see
which batch it comes from and which gradients it reaches. `recres.replay` makes it again from what
is written here, and says where it begins.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from recres.checkpoint import arrays_of
from recres.commands import RunFailed
from recres.evaluation import chunk_labels
from recres.files import write_json
from recres.loader import Chunk
from recres.runs import read_metrics
from tensorlite import Tensor, cross_entropy, nn
from tensorlite.device import Array, array_module
from tensorlite.io import save_safetensors

if TYPE_CHECKING:
    from recres.trainer import Trainer

FORMAT = "recres-nonfinite-1"
SHOWN = 8  # files of a batch that a line names
IN_A_ROW = 10  # updates left out one after another, after which the run gives up


class Batch(NamedTuple):
    """What one batch of an update gives the network: inputs, what else it takes, and classes."""

    inputs: np.ndarray
    arguments: Mapping[str, Any]
    labels: np.ndarray


class Found(NamedTuple):
    """What running an update again has shown. loss: the share of the batches so far. parameter: the
    first, in the network's order, whose gradient is not finite; None if all are. batches: how many
    were run, none after the first that is not finite."""

    loss: float
    parameter: str | None
    batches: int

    @property
    def finite(self) -> bool:
        """Whether nothing was the matter."""
        return self.parameter is None and math.isfinite(self.loss)


def again(model: nn.Module, batches: Iterable[Batch], size: int, scale: float = 1.0) -> Found:
    """Run an update's batches forwards and backwards, as in training, up to the first that is not
    finite. size: chunks of the whole update; scale: what the loss is multiplied by for backward."""
    model.train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for parameter in trained.values():
        parameter.zero_grad()
    device, found = next(model.parameters()).device, Found(0.0, None, 0)
    for batch in batches:
        logits = model(Tensor(batch.inputs, device=device), **batch.arguments)
        loss = cross_entropy(logits, batch.labels, reduction="sum") * (1 / size)
        xp = array_module(loss.data)
        loss.backward(xp.full(loss.shape, scale, loss.dtype))
        found = Found(found.loss + float(loss.item()), first_nonfinite(trained), found.batches + 1)
        if not found.finite:
            break
    return found


def first_nonfinite(parameters: Mapping[str, Tensor]) -> str | None:
    """The name of the first parameter whose gradient has an element that is not finite."""
    for name, parameter in parameters.items():
        grad = parameter.grad
        if grad is not None and not bool(array_module(grad).isfinite(grad).all()):
            return name
    return None


class Guard:
    """Watches the updates of `trainer`.

    Attributes: count, of updates left out in the run so far; dumps, whether they are written down.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.skips = trainer, trainer.config.on_nonfinite == "skip"
        self.count = _count(trainer.run.path / "metrics.jsonl", trainer.progress.update)
        self.dumps, self._in_a_row = True, 0
        self._buffers: dict[str, Array] = {}

    def begin(self) -> None:
        """An update begins. What it may spoil though it is left out, the running statistics, is
        kept."""
        if self.skips:
            self._buffers = self._state()

    def passed(self) -> None:
        """An update was made."""
        self._in_a_row = 0

    def failed(self, line: Mapping[str, Any], what: str, batches: Sequence[Sequence[Chunk]],
               scale: float = 1.0) -> None:
        """`what` is the matter with the update of `line` of the log: RunFailed, unless it is to be
        left out. batches: the chunks of the update. scale: of its loss."""
        trainer, spoilt = self.trainer, self._state()
        loaded: list[Batch] = []
        found = again(trainer.model, self._load(batches, line["epoch"] - 1, loaded), line["chunks"],
                      scale)
        kept = self._buffers if self.skips else spoilt
        for name, buffer in trainer.model.named_buffers():
            buffer[...] = kept[name]
        trainer.optimizer.zero_grad()
        guilty = batches[found.batches - 1 : found.batches] if not found.finite else batches
        files = _files(trainer, guilty)
        text = f"update {line['update']}: {what}; the chunks were of {shown(files)}"
        if found.parameter is not None:
            text += f"; the first gradient that is not finite is that of {found.parameter}"
        elif found.finite:
            text += "; run again, it was finite"
        self.count, self._in_a_row = self.count + 1, self._in_a_row + 1
        last = not self.skips or self._in_a_row >= IN_A_ROW
        if self.dumps and (last or self.count == 1):
            text += "; " + self._dump(line, what, batches, loaded, found, scale)
        if last and self.skips:
            text += f"; {self._in_a_row} updates in a row were left out"
        if last:
            raise RunFailed(text)
        trainer.log(f"left out  {text}")
        trainer.record({"kind": "nonfinite", "update": line["update"], "epoch": line["epoch"],
                        "what": what, "parameter": found.parameter, "files": files})

    def _state(self) -> dict[str, Array]:
        return {name: array.copy() for name, array in self.trainer.model.named_buffers()}

    def _load(self, batches: Sequence[Sequence[Chunk]], epoch: int,
              loaded: list[Batch]) -> Iterable[Batch]:
        """The batches, loaded once more, each as it is asked for, and kept in `loaded`."""
        trainer = self.trainer
        for chunks in batches:
            loaded.append(Batch(trainer.loader.load(chunks, epoch),
                                trainer.loader.arguments(chunks),
                                chunk_labels(trainer.videos, chunks)))
            yield loaded[-1]

    def _dump(self, line: Mapping[str, Any], what: str, batches: Sequence[Sequence[Chunk]],
              loaded: Sequence[Batch], found: Found, scale: float) -> str:
        """Write all that the update is made from; says where, or why not."""
        trainer = self.trainer
        path = trainer.run.path / f"nonfinite-{line['update']}.json"
        arrays = arrays_of(trainer.model, trainer.optimizer)
        arrays["optimizer/lr"] = np.array(line["learning_rate"], np.float64)
        for i, batch in enumerate(loaded):
            arrays |= {f"inputs/{i}": batch.inputs, f"labels/{i}": batch.labels}
            arrays |= {f"arguments/{i}/{name}": np.asarray(value)
                       for name, value in batch.arguments.items()}
        videos = trainer.videos.source.videos
        about = {
            "format": FORMAT, "update": line["update"], "epoch": line["epoch"], "what": what,
            "parameter": found.parameter, "again": not found.finite, "chunks": line["chunks"],
            "scale": scale, "learning_rate": line["learning_rate"],
            "batches": [[{"file": str(videos[c.video].path), "number": c.number, "start": c.start}
                         for c in chunks] for chunks in batches],
            "batches_kept": len(loaded), "classes": list(trainer.videos.split.classes),
            "options": trainer.config.to_json()}
        try:
            save_safetensors(path.with_suffix(".safetensors"), arrays, {"format": FORMAT})
            write_json(path, about)
        except OSError as error:
            return f"it could not be written down: {error.strerror}"
        return f"to see where it begins: python -m recres.replay {path}"


def _files(trainer: Trainer, batches: Sequence[Sequence[Chunk]]) -> list[str]:
    videos = trainer.videos.source.videos
    return list(dict.fromkeys(videos[chunk.video].path.name
                              for batch in batches for chunk in batch))


def shown(files: Sequence[str]) -> str:
    """Names of files for a line that is read: not more than a few. All are in the dump, or, of an
    update that was left out, in metrics.jsonl."""
    more = len(files) - SHOWN
    return ", ".join(files[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _count(path: Path, update: int) -> int:
    """How many updates up to this one a metrics.jsonl says were left out."""
    return sum(line["update"] <= update for line in read_metrics(path, "nonfinite"))
