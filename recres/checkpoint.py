"""What a checkpoint and a saved model are as files, so that going on equals never having stopped.

A checkpoint is one safetensors file: parameters and buffers under "model/", the optimiser's state
under "optimizer/", the loss scaler's under "scaler/" if there is one, the counters as JSON in the
metadata. A saved model has the parameters and buffers alone, under their own names. Both name their
format and carry a SHA-256 of their arrays and metadata, so that a file that was altered is not
taken for whole. Checkpoints of format 1 had none, the first saved models not even a format. The
file appears whole or not at all; which files a run keeps, and when it writes them, is in
`recres.checkpoints`.
Random draws need no state: each is keyed by what it is for (`recres.random`).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from recres.errors import InputError
from tensorlite.io import FormatError, load_safetensors, save_safetensors
from tensorlite.nn import Module
from tensorlite.optim import LossScaler, Optimizer

FORMAT = "recres-checkpoint-2"
OLDER = ("recres-checkpoint-1",)  # without a digest
MODEL_FORMAT = "recres-model-1"
DIGEST = "sha256"  # the same in every version: it tells a newer file from a damaged one

Arrays = dict[str, np.ndarray]


@dataclass
class Progress:
    """How far a run has come.

    epoch: epochs complete. done: updates made in the present one. update: updates made in all.
    seconds: spent training. best: the held-out evaluation of the best epoch, None at first.
    unlogged: lines for metrics.jsonl that could not be written there.
    """

    epoch: int = 0
    done: int = 0
    update: int = 0
    seconds: float = 0.0
    best: dict[str, Any] | None = None
    unlogged: list[str] = field(default_factory=list)

    def check(self) -> None:
        """ValueError for what no run can have come to."""
        counts = (self.epoch, self.done, self.update)
        if not (all(type(count) is int and 0 <= count < 2**63 for count in counts)
                and isinstance(self.seconds, int | float) and 0 <= self.seconds < math.inf
                and (self.best is None or isinstance(self.best, dict))
                and isinstance(self.unlogged, list)
                and all(isinstance(line, str) for line in self.unlogged)):
            raise ValueError(f"no counters of a run: {self}")


def arrays_of(model: Module, optimizer: Optimizer) -> Arrays:
    """Copies of the parameters, buffers and moments, by the names that they have in a file."""
    return ({f"model/{name}": array for name, array in model.state_dict().items()}
            | {f"optimizer/{name}": array for name, array in optimizer.state_dict().items()})


def snapshot(model: Module, optimizer: Optimizer, progress: Progress,
             scaler: LossScaler | None = None) -> tuple[Arrays, dict[str, str]]:
    """Copies of all that training goes on from, as the arrays and metadata of a checkpoint."""
    arrays = arrays_of(model, optimizer)
    if scaler is not None:
        arrays |= {f"scaler/{name}": array for name, array in scaler.state_dict().items()}
    return arrays, {"format": FORMAT, "progress": json.dumps(asdict(progress))}


def save(path: str | os.PathLike[str], model: Module, optimizer: Optimizer,
         progress: Progress, scaler: LossScaler | None = None) -> None:
    """Write all that training goes on from."""
    write(path, *snapshot(model, optimizer, progress, scaler))


def load(path: str | os.PathLike[str], model: Module, optimizer: Optimizer,
         scaler: LossScaler | None = None) -> Progress:
    """Restore `model`, `optimizer` and `scaler`, and return the counters.

    Raises FormatError for a damaged file and InputError for one that is not of this run.
    """
    arrays, progress = read_checkpoint(path)
    parts: dict[str, dict[str, Any]] = {"model": {}, "optimizer": {}, "scaler": {}}
    for name, array in arrays.items():
        part, _, rest = name.partition("/")
        parts.get(part, {})[rest] = array
    restore_model(path, model, parts["model"])
    try:
        optimizer.load_state_dict(parts["optimizer"])
        if scaler is not None:
            scaler.load_state_dict(parts["scaler"])
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return progress


def load_network(path: str | os.PathLike[str], model: Module) -> None:
    """Restore the model alone. Raises as `load`."""
    arrays, _ = read_checkpoint(path)
    restore_model(path, model, {name.removeprefix("model/"): array for name, array in arrays.items()
                                if name.startswith("model/")})


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[Arrays, Progress]:
    """The arrays and counters of a checkpoint, found whole. Raises as `load`."""
    arrays, metadata = read(path)
    found = metadata.get("format", "")
    if found not in (FORMAT, *OLDER):
        _refuse_newer(path, found, FORMAT)
        raise InputError(f"{path}: not a checkpoint to go on from")
    try:
        progress = Progress(**json.loads(metadata["progress"]))
        progress.check()
        return arrays, progress
    except (KeyError, TypeError, ValueError, RecursionError):
        raise FormatError(f"{path}: its counters cannot be read") from None


def _refuse_newer(path: str | os.PathLike[str], found: str, newest: str) -> None:
    """InputError where the format `found` is a later one than `newest`."""
    kind = re.escape(newest.rpartition("-")[0])
    if re.fullmatch(rf"{kind}-\d{{1,9}}", found):
        raise InputError(f"{path}: its format is {found}, and this version of recres reads none "
                         f"after {newest}")


def save_model(path: str | os.PathLike[str], model: Module, about: Mapping[str, str]) -> None:
    """Write the parameters and buffers alone, under their own names; `about` is the metadata."""
    write_model(path, model.state_dict(), about)


def write_model(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray],
                about: Mapping[str, str]) -> None:
    """`save_model` of arrays that were copied from the model before."""
    write(path, arrays, {**about, "format": MODEL_FORMAT})


def load_model(path: str | os.PathLike[str]) -> tuple[Arrays, dict[str, str]]:
    """What `save_model` wrote: arrays and metadata. FormatError or InputError if it is not that."""
    arrays, about = read(path)
    found = about.pop("format", MODEL_FORMAT)  # (the first ones had none)
    if found != MODEL_FORMAT:
        _refuse_newer(path, found, MODEL_FORMAT)
    if found != MODEL_FORMAT or "classes" not in about:
        raise InputError(f"{path}: not a model saved by a run")
    return arrays, about


def restore_model(path: str | os.PathLike[str], model: Module, arrays: Mapping[str, Any]) -> None:
    """Put arrays from `path` into a model; InputError, naming both, where they do not fit."""
    try:
        model.load_state_dict(arrays)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def write(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray],
          metadata: Mapping[str, str]) -> None:
    """Write arrays and metadata with their digest; on disk when it returns."""
    save_safetensors(path, arrays, {**metadata, DIGEST: digest(arrays, metadata)})


def read(path: str | os.PathLike[str]) -> tuple[Arrays, dict[str, str]]:
    """What `write` wrote, the digest left out. FormatError where something was altered since.

    A file from before there was a digest is taken as it is.
    """
    arrays, metadata = load_safetensors(path)
    expected = metadata.pop(DIGEST, None)
    if expected is None and metadata.get("format") in (FORMAT, MODEL_FORMAT):
        raise FormatError(f"{path}: damaged: it lacks its {DIGEST}")
    if expected is not None and digest(arrays, metadata) != expected:
        raise FormatError(f"{path}: damaged: its {DIGEST} is not that of what was written")
    return arrays, metadata


def digest(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """SHA-256 of names, types, shapes and numbers, and of the metadata."""
    result = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        if array.dtype == np.float16:  # as it is read back
            array = array.astype(np.float32)
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        result.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        result.update(array.reshape(-1).view(np.uint8).data)  # no copy, and other threads go on
    return result.hexdigest()
