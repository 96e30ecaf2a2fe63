"""From options to videos and a network: the same for every command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recres import checkpoint
from recres.commands import bar, say
from recres.config import Config
from recres.datasets import Split, figures, ucf101
from recres.errors import InputError
from recres.feature_store import FeatureStore, Kind, create_all, encoder, feature_shape, made_by
from recres.files import parse_json, read_json, write_json
from recres.loader import SIDES, FrameLoader, Loader, Videos
from recres.models import STAGES, VideoResNet, average_pooling, recurrent_resnet
from recres.models.resnet import BasicBlock, Bottleneck, parts_up_to, stage_number
from recres.models.sequence import SequenceModel
from recres.models.weights import load_pretrained
from recres.random import generator
from recres.runs import Run
from recres.sequences import SequenceLoader
from recres.video.source import FrameSource
from tensorlite import nn

CONVENTIONS = ("torch", "caffe")  # see `video.augment.normalise`


def read_split(config: Config, log: Callable[[str], object] = print) -> Split:
    """The split of the data set that the options name; the figures are made where they are absent.

    Raises InputError where the data cannot be used.
    """
    if config.data == "ucf101":
        return ucf101.read(config.root, config.split)
    numbers = {}
    try:
        settings = read_json(Path(config.root) / "figures.json")
        numbers = {name: settings[name] for name in ("seed", "groups", "clips_per_group")}
    except (InputError, LookupError, TypeError):
        pass  # absent, or `ensure` will say what is wrong with it
    figures.ensure(config.root, **numbers, progress=sys.stderr.isatty(), log=log)
    return figures.read(config.root, config.split)


def scan_videos(config: Config, log: Callable[[str], object] = say,
                source: FrameSource | None = None) -> Videos:
    """The videos of the options, every one of which is decoded to count its frames; see `Videos`.

    InputError where the data or, without --skip-bad, a video cannot be used.
    """
    split = read_split(config, log)
    with bar("reading videos", "video", len(split.train) + len(split.test)) as shown:
        return Videos(split, config, progress=lambda done, _: shown.update(done - shown.n),
                      source=source)


def refuse_no_figures(config: Config, root: str | None) -> None:
    """InputError where the `root` that a command was given, if it was, has no drawn figures, which
    `open_videos` would make: a run was tested on videos that are there."""
    if root is not None and config.data == "figures" \
            and not (Path(root) / "figures.json").is_file():
        raise InputError(f"--root {root}: no drawn figures there (no figures.json)")


def open_videos(config: Config, folder: Path, log: Callable[[str], object] = say,
                source: FrameSource | None = None) -> Videos:
    """The videos of the run in `folder`, which remembers what was found when they were first read.

    Raises as `scan_videos`.
    """
    path = folder / "videos.json"
    if path.is_file():
        return Videos(read_split(config, log), config, read_json(path), source=source)
    videos = scan_videos(config, log, source)
    write_json(path, videos.found)
    return videos


def build_network(config: Config, classes: int) -> VideoResNet:
    """The network of images that the options name, its weights drawn from the seed, frozen as far
    as they say; with --features the backbone. InputError for options that fit no network."""
    options: dict[str, Any] = {
        "classes": classes, "context": config.context, "version": config.version,
        "width": config.width, "rng": generator(config.seed, "initial weights"),
        "truncate": None if config.truncate == "none" else config.truncate,
        "channels": 2 * config.flow_length if config.input == "flow" else 3}
    try:
        if config.model == "rrn":
            model: VideoResNet = recurrent_resnet(
                config.depth, skip=config.skip, position=config.position, readout=config.readout,
                recurrent_gradient=config.recurrent_gradient or "correct", **options)
        else:
            model = average_pooling(config.depth, **options)
        if config.freeze != "none":
            model.freeze(config.freeze)
    except ValueError as error:
        raise InputError(f"--{error}") from None
    return model


def build_sequence_model(config: Config, classes: int) -> SequenceModel:
    """The model of sequences of --features, its weights drawn from the seed."""
    return SequenceModel(config.model, feature_channels(config), classes,
                         rng=generator(config.seed, "initial weights", "sequence"))


def build_model(config: Config, classes: int) -> nn.Module:
    """What is trained: the network of images or, with --features, the model of sequences."""
    build = build_sequence_model if config.features else build_network
    return build(config, classes)


def feature_channels(config: Config) -> int:
    """How many features --features gives of a frame."""
    assert config.features
    expansion = Bottleneck.expansion if config.depth >= 50 else BasicBlock.expansion
    return config.width * 2 ** (stage_number(config.features) - 1) * expansion


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


def refuse_untrained(config: Config, start: Mapping[str, Any], stage: str, flag: str) -> None:
    """InputError where --weights do not reach as far as the features after `stage`, which `flag`
    asks for. start: as from `load_weights`."""
    used = parts_up_to(stage)
    for name in start["weights"]["initialised"] if start["weights"] else ():
        if name.partition(".")[0] in used:
            raise InputError(f"{flag} {stage}: {config.weights} has no {name}")


def _temporal_start(config: Config) -> str:
    if config.skip in (None, "none"):
        return "none: there is no temporal skip"
    if config.skip in ("identity", "pure_temporal"):
        return f"none: {config.skip} has no weights"
    return f"Kaiming normal, fan out, seed {config.seed}; a batch norm after each"


def frozen_stage(config: Config, model: VideoResNet) -> str | None:
    """The last stage that is frozen and looks at each frame alone: its features can be kept."""
    if config.features:
        return config.features
    if config.freeze == "none":
        return None
    last = min(stage_number(config.freeze), stage_number(model.last_framewise_stage()))
    return STAGES[last] if last >= 0 else None


def open_store(config: Config, network: VideoResNet, videos: Videos, folder: Path,
               start: Mapping[str, Any], sides: Sequence[str] = SIDES) -> FeatureStore | None:
    """Where features of the frozen stages are kept for a run in `folder`; None if nothing is.

    start: what config.json says of the model's start. Whatever is missing is yet to be made.
    """
    stage = frozen_stage(config, network)
    if stage is None:
        return None
    return store_of(Kind(stage, bool(config.features)), config, network, videos,
                    Path(config.store) if config.store else folder / "features", start, sides)


def store_of(kind: Kind, config: Config, network: VideoResNet, videos: Videos, folder: Path,
             start: Mapping[str, Any], sides: Sequence[str] = SIDES) -> FeatureStore:
    """The store of these features of `network` among those in `folder`."""
    source = start["weights"]["source"] if start["weights"] else None
    made = made_by(network, kind.stage, kind.pooled, config, start["input"], source,
                   videos.source.pixels)
    shape = feature_shape(network, kind.stage, config.image_size)
    return FeatureStore(folder, made, shape[-1:] if kind.pooled else shape, videos, config, sides)


def make_features(store: FeatureStore, network: VideoResNet, frames: FrameLoader,
                  log: Callable[[str], object] = say) -> None:
    """Make what features `store` lacks."""
    if not store.missing:
        return
    log(f"features  {store.nbytes_missing / 1e9:.2f} GB to make, in {store.path}")
    total = sum(store.videos.counts[place] for place in store.missing)
    with bar("features", "frame", total) as shown:
        create_all([store], encoder(network, frames, store.config.threads), shown.update)


def open_loader(config: Config, store: FeatureStore | None, frames: Loader) -> Loader:
    """What makes the inputs of `build_model`."""
    if store is None:
        return frames
    return SequenceLoader(store, config.seed) if config.features else store


def open_model(run: Run, config: Config, path: Path | None = None
               ) -> tuple[nn.Module, tuple[str, ...], str]:
    """A run's best model, or the one saved in `path`, on the device of `config`; its classes; and
    how it wants its images. InputError or FormatError where there is none that fits."""
    path = path or run.path / "best.safetensors"
    if not path.is_file():
        hint = "; the run has not finished an epoch" if path.parent == run.path else ""
        raise InputError(f"{path}: no such file{hint}")
    arrays, about = checkpoint.load_model(path)
    classes = parse_json(about["classes"], path)
    convention = about.get("input_convention")
    if (not isinstance(classes, list) or not all(isinstance(name, str) for name in classes)
            or len(set(classes)) < max(len(classes), 1) or convention not in CONVENTIONS):
        raise InputError(f"{path}: does not say its classes, or how it wants its images")
    stem = arrays.get("conv1.weight")
    if not config.features and (stem is None or stem.shape[-1:] != (config.width,)):
        # (before as much memory is asked for as the options say)
        raise InputError(f"{path}: has no stem of the run's --width {config.width}")
    model = build_model(config, len(classes))
    checkpoint.restore_model(path, model, arrays)
    return model.to(config.device), tuple(classes), convention
