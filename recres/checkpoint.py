"""Saving and restoring a training run, so that going on equals never having stopped.

A checkpoint is one safetensors file: parameters and buffers under "model/", the optimiser's state
under "optimizer/", the loss scaler's under "scaler/" if there is one, the counters as JSON in the
metadata. The file appears whole or not at all.
Random draws need no state: each is keyed by what it is for (`recres.random`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from recres.errors import InputError
from tensorlite.io import load_safetensors, save_safetensors
from tensorlite.nn import Module
from tensorlite.optim import LossScaler, Optimizer

FORMAT = "recres-checkpoint-1"


@dataclass
class Progress:
    """How far a run has come.

    epoch: epochs complete. done: updates made in the present one. update: updates made in all.
    seconds: spent training. best: the held-out evaluation of the best epoch, None at first.
    """

    epoch: int = 0
    done: int = 0
    update: int = 0
    seconds: float = 0.0
    best: dict[str, Any] | None = None


def save(path: str | os.PathLike[str], model: Module, optimizer: Optimizer,
         progress: Progress, scaler: LossScaler | None = None) -> None:
    """Write all that training goes on from."""
    arrays = {f"model/{name}": array for name, array in model.state_dict().items()}
    arrays |= {f"optimizer/{name}": array for name, array in optimizer.state_dict().items()}
    if scaler is not None:
        arrays |= {f"scaler/{name}": array for name, array in scaler.state_dict().items()}
    save_safetensors(path, arrays, {"format": FORMAT, "progress": json.dumps(asdict(progress))})


def load(path: str | os.PathLike[str], model: Module, optimizer: Optimizer,
         scaler: LossScaler | None = None) -> Progress:
    """Restore `model`, `optimizer` and `scaler`, and return the counters.

    Raises FormatError for a damaged file and InputError for one that is not of this run.
    """
    arrays, metadata = load_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path}: not a checkpoint to go on from")
    parts: dict[str, dict[str, Any]] = {"model": {}, "optimizer": {}, "scaler": {}}
    for name, array in arrays.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = array
    restore_model(path, model, parts["model"])
    try:
        optimizer.load_state_dict(parts["optimizer"])
        if scaler is not None:
            scaler.load_state_dict(parts["scaler"])
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return Progress(**json.loads(metadata["progress"]))


def load_network(path: str | os.PathLike[str], model: Module) -> None:
    """Restore the model alone. Raises as `load`."""
    arrays, _ = load_safetensors(path)
    restore_model(path, model, {name.removeprefix("model/"): array for name, array in arrays.items()
                                if name.startswith("model/")})


def save_model(path: str | os.PathLike[str], model: Module, about: Mapping[str, str]) -> None:
    """Write the parameters and buffers alone, under their own names; `about` is the metadata."""
    save_safetensors(path, model.state_dict(), about)


def load_model(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """What `save_model` wrote: arrays and metadata. FormatError or InputError if it is not that."""
    arrays, about = load_safetensors(path)
    if "classes" not in about:
        raise InputError(f"{path}: not a model saved by a run")
    return arrays, about


def restore_model(path: str | os.PathLike[str], model: Module, arrays: Mapping[str, Any]) -> None:
    """Put arrays from `path` into a model; InputError, naming both, where they do not fit."""
    try:
        model.load_state_dict(arrays)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
