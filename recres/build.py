"""From options to videos and a network: the same for every command."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recres import checkpoint
from recres.commands import bar, say
from recres.config import Config
from recres.datasets import Split, figures, ucf101
from recres.errors import InputError
from recres.loader import Videos
from recres.models import STAGES, VideoResNet, average_pooling, recurrent_resnet
from recres.models.resnet import stage_number
from recres.models.weights import load_pretrained
from recres.random import generator
from recres.runs import Run, read_json, write_json


def read_split(config: Config, log: Callable[[str], object] = print) -> Split:
    """The split of the data set that the options name; the figures are made where they are absent.

    Raises InputError where the data cannot be used.
    """
    if config.data == "ucf101":
        return ucf101.read(config.root, config.split)
    numbers = {}
    try:
        settings = json.loads((Path(config.root) / "figures.json").read_text())
        numbers = {name: settings[name] for name in ("seed", "groups", "clips_per_group")}
    except (OSError, ValueError, LookupError, TypeError):
        pass  # absent, or `ensure` will say what is wrong with it
    figures.ensure(config.root, **numbers, progress=sys.stderr.isatty(), log=log)
    return figures.read(config.root, config.split)


def open_videos(config: Config, folder: Path) -> Videos:
    """The videos of the run in `folder`, which remembers what was found when they were first read.

    InputError where the data or, without --skip-bad, a video cannot be used.
    """
    split, path = read_split(config, log=say), folder / "videos.json"
    if path.is_file():
        return Videos(split, config, read_json(path))
    with bar("reading videos", "video", len(split.train) + len(split.test)) as shown:
        videos = Videos(split, config, progress=lambda done, _: shown.update(done - shown.n))
    write_json(path, videos.found)
    return videos


def build_model(config: Config, classes: int) -> VideoResNet:
    """The network of the options, its weights drawn from the seed, frozen as far as they say.

    InputError for options that fit no network.
    """
    options: dict[str, Any] = {
        "classes": classes, "context": config.context, "version": config.version,
        "width": config.width, "rng": generator(config.seed, "initial weights")}
    try:
        if config.model == "avgpool":
            model: VideoResNet = average_pooling(config.depth, **options)
        else:
            model = recurrent_resnet(config.depth, skip=config.skip, position=config.position,
                                     readout=config.readout, **options)
    except ValueError as error:
        raise InputError(f"--{error}") from None
    if config.freeze != "none":
        model.freeze(config.freeze)
    return model


def load_weights(model: VideoResNet, config: Config,
                 log: Callable[[str], object] = print) -> dict[str, Any]:
    """Load --weights if there are any; what config.json says of the model's start.

    "input" is how the network wants its images: "torch" or "caffe" (`video.augment.normalise`).
    """
    start: dict[str, Any] = {"weights": None, "input": "torch",
                             "temporal_convolutions": _temporal_start(config)}
    if config.weights is not None:
        report = load_pretrained(model, config.weights, log=log)
        start["input"] = report.input_convention or "torch"
        start["weights"] = {"source": report.source, "version": report.version,
                            "loaded": list(report.loaded), "initialised": list(report.initialised)}
    return start


def _temporal_start(config: Config) -> str:
    if config.model == "avgpool" or config.context == 1:
        return "none: there is no temporal skip"
    if config.skip == "identity":
        return "none: identity has no weights"
    return f"Kaiming normal, fan out, seed {config.seed}; a batch norm after each"


def frozen_stage(config: Config, model: VideoResNet) -> str | None:
    """The last stage that is frozen and looks at each frame alone: its features can be kept."""
    if config.freeze == "none":
        return None
    last = min(stage_number(config.freeze), stage_number(model.last_framewise_stage()))
    return STAGES[last] if last >= 0 else None


def open_model(run: Run, config: Config, path: Path | None = None
               ) -> tuple[VideoResNet, tuple[str, ...], str]:
    """A run's best model, or the one saved in `path`, on the device of `config`; its classes; and
    how it wants its images. InputError or FormatError where there is none that fits."""
    path = path or run.path / "best.safetensors"
    if not path.is_file():
        hint = "; the run has not finished an epoch" if path.parent == run.path else ""
        raise InputError(f"{path}: no such file{hint}")
    arrays, about = checkpoint.load_model(path)
    classes = tuple(json.loads(about["classes"]))
    model = build_model(config, len(classes))
    checkpoint.restore_model(path, model, arrays)
    return model.to(config.device), classes, about["input_convention"]
