"""Every option of a training run in one dataclass, from which the command line is made.

A `Config` is complete: what was not given has been filled in, by data set where that matters, so
that the `config.json` of a run says all there is to say. Evaluating, predicting and resuming read
it back; only `CHANGEABLE` ones may be others when a run is gone on with.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import tensorlite
from recres import limits
from recres.datasets import figures
from recres.errors import InputError
from recres.models import (
    POSITIONS,
    READOUTS,
    RECURRENT_GRADIENTS,
    SKIPS,
    STAGES,
    TRUNCATIONS,
    VERSIONS,
)
from recres.video.source import INPUTS
from tensorlite.device import parse_device, require_cuda
from tensorlite.precision import PRECISIONS

DATA_SETS = ("figures", "ucf101")
BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
MOST_THREADS = 4096  # more than machines have cores; many more could not be started
MOST_WORKERS = 256
PLACES = 2  # of a worker, for chunks: one that it is at, and the next
# Far more than anyone has trained with; what is beyond would only ask for all memory.
MOST_WIDTH = 512  # eight times the paper's: a ResNet-152 of it has 15 GB of parameters
MOST_CONTEXT = 1024  # as many as a store of frames can be made for
MOST_PIXELS = 4096  # of the side of an image
MOST_CHUNKS = 2**16  # in a batch
MOST_PROCESSES = 2**16
MODELS = ("rrn", "avgpool", "gru", "lstm")
SAMPLINGS = ("chunks", "segments")
CHANGEABLE = ("threads", "workers", "keep", "save_seconds")  # when a run is gone on with
METAVARS = {"root": "DIR", "frames": "STORE", "weights": "FILE", "store": "DIR"}
# What means nothing to the other models.
RECURRENT_ONLY = ("skip", "position", "readout", "recurrent_gradient")


def _option(group: str, help: str, default: Any = None, *, ucf101: Any = None, kind: type = str,
            choices: tuple[str, ...] | None = None, above: float | None = None,
            least: float | None = None, most: float = math.inf, older: bool = False) -> Any:
    """A field that is an option: its default (that for ucf101, where it differs) and its range.

    older: there are runs from before the option, and they did what its default does.
    """
    return field(metadata={
        "group": group, "help": help, "kind": kind, "choices": choices,
        "defaults": {"figures": default, "ucf101": default if ucf101 is None else ucf101},
        "above": above, "least": least, "most": most, "older": older})


@dataclass(frozen=True)
class Config:
    """The options of a run; the help texts below are those of the command line."""

    data: str = _option("data", "the data set; figures is made where it is absent", "figures",
                        choices=DATA_SETS)
    root: str = _option("data", "folder of the data set (default: <data-root>/<data>)")
    split: int = _option("data", "which division into training and test side", 1, kind=int,
                         least=1, most=3)
    frame_step: int = _option("data", "sample every n-th frame of a video", figures.FRAME_STEP,
                              ucf101=10, kind=int, least=1)
    image_size: int = _option("data", "side of the square that the network sees, in pixels", 64,
                              ucf101=224, kind=int, least=32, most=MOST_PIXELS)
    frames: str | None = _option("data", "read the sampled frames from this folder, made by "
                                 "recres.data prepare, instead of decoding videos", older=True)
    input: str = _option("data", "what the network sees of each sampled frame: the frame itself; "
                         "a stack of optical flow that begins there; dynamic: one dynamic image "
                         "(approximate rank pooling) of the whole video", "frames", choices=INPUTS,
                         older=True)
    flow_length: int = _option("data", "with --input flow: fields of flow in a stack", 5,
                               ucf101=10, kind=int, least=1, most=32, older=True)
    sampling: str = _option("data", "chunks of successive sampled frames, or (temporal segment "
                            "networks) one frame of each of --context equal parts of a video",
                            "chunks", choices=SAMPLINGS, older=True)
    chunks_per_video: int | None = _option("data", "train on at most this many chunks of a video, "
                                           "spread evenly over it (default: all)", kind=int,
                                           least=1, older=True)
    holdout: float = _option("data", "share of the training videos, by whole groups, held out to "
                             "choose the best epoch by; 0: the last epoch is taken", 0.15,
                             kind=float, least=0, most=0.9)
    skip_bad: bool = _option("data", "leave out videos that cannot be read, and list them in the "
                             "result, instead of stopping", False, kind=bool)

    model: str = _option("model", "recurrent residual network; average pooling over frames; or, "
                         "on --features, a GRU or LSTM over frames", "rrn", choices=MODELS)
    backbone: str = _option("model", "the residual network", "resnet18", ucf101="resnet50",
                            choices=BACKBONES)
    width: int = _option("model", "channels of its stem; every stage scales with it", 16,
                         ucf101=64, kind=int, least=1, most=MOST_WIDTH)
    version: str = _option("model", "stride in the first 1x1 convolution (v1: Caffe, Keras) or in "
                           "the 3x3 (v1.5: torchvision, timm)", "v1", choices=VERSIONS)
    context: int = _option("model", "T, frames of a chunk", 2, kind=int, least=1,
                           most=MOST_CONTEXT)
    skip: str | None = _option("model", "type of the temporal skips", "identity", choices=SKIPS)
    position: str | None = _option("model", "place of the deepest one", "block4",
                                   choices=POSITIONS)
    readout: str | None = _option("model", "classify a chunk from its last frame or from the mean "
                                  "over frames", "last", choices=READOUTS)
    recurrent_gradient: str | None = _option(
        "model", "what a convolutional skip's weights learn from: the frame that they were applied "
        "to, or the frame after it, as in the code that the paper names (wrong; to compare)",
        "correct", choices=RECURRENT_GRADIENTS, older=True)
    truncate: str = _option("model", "end the network after this stage: pool and classify there",
                            "none", choices=("none", *TRUNCATIONS), older=True)
    features: str | None = _option(
        "model", "train on features of whole videos instead of on chunks of frames: those of the "
        "frozen backbone after this stage, pooled over each frame", choices=STAGES[1:],
        older=True)
    z_norm: bool = _option("model", "with --features: subtract each feature's mean and divide by "
                           "its deviation, over the frames trained on", False, kind=bool,
                           older=True)
    weights: str | None = _option("model", "start from the weights in this file (torchvision, "
                                  "timm, Keras, or our own)")
    freeze: str = _option("model", "train nothing up to and including this stage", "none",
                          choices=("none", *STAGES))

    # Those of figures were chosen on the held-out groups of a set made with another seed.
    epochs: int = _option("training", "how often every chunk is seen", 16, ucf101=20, kind=int,
                          least=1)
    updates: int | None = _option("training", "stop after this many updates (default: --epochs)",
                                  kind=int, least=1, older=True)
    batch: int = _option("training", "chunks that go through the network at once", 32, ucf101=16,
                         kind=int, least=1, most=MOST_CHUNKS)
    update_fraction: float | None = _option(
        "training", "update after this share of the training chunks, gradients of the batches "
        "added up (the paper: 0.01; default: update after every batch)", kind=float, above=0,
        most=1)
    lr: float = _option("training", "Adam's learning rate", 2e-3, ucf101=1e-4, kind=float, above=0)
    schedule: str = _option("training", "how it develops; cosine: up over the first twentieth of "
                            "the updates, then down to zero", "cosine", ucf101="constant",
                            choices=("constant", "cosine"))
    clip_norm: float | None = _option("training", "scale gradients down to this norm (default: "
                                      "never)", kind=float, above=0)
    on_nonfinite: str = _option("training", "what to do where an update's loss or gradient is not "
                                "finite: stop, or leave the update out (on a GPU the host then "
                                "waits for each)", "stop", choices=("stop", "skip"), older=True)
    colour_jitter: float = _option(
        "training", "how strongly to change the colours of each chunk at random, 0 to 1", 0.5,
        ucf101=0.0, kind=float, least=0, most=1)
    augment_per_frame: bool = _option("training", "draw crop and flip for every frame, not once a "
                                      "chunk", False, kind=bool)
    mirror: bool = _option("training", "where the views are fixed because features are kept: also "
                           "use every frame's mirror image", False, kind=bool)
    seed: int = _option("training", "seed of every random draw", 0, kind=int, least=0)

    store: str | None = _option("machine", "keep features of frozen stages in this folder, for "
                                "other runs too (default: with the run, until it is complete)",
                                older=True)
    threads: int = _option("machine", "threads to compute with (default: the cores this process "
                           "may use; with --resume the run's); runs are bit-equal at one number of "
                           "threads", kind=int, least=1, most=MOST_THREADS, older=True)
    workers: int = _option("machine", "processes that decode and augment videos ahead of training; "
                           "0: a thread does (default: 0; on cuda the cores this process may use, "
                           "at most 8); results do not depend on it", kind=int, least=0,
                           most=MOST_WORKERS, older=True)
    keep: int = _option("machine", "checkpoints to keep: the newest, and those before it for where "
                        "it turns out damaged", 2, kind=int, least=1, most=1000, older=True)
    save_seconds: float = _option("machine", "seconds of training from one checkpoint to the next",
                                  20.0, kind=float, least=0, older=True)
    tensorboard: bool = _option("machine", "also write event files for TensorBoard into the run's "
                                "folder", False, kind=bool, older=True)
    device: str = _option("machine", "cpu, cuda or cuda:N; of several processes with cuda each "
                          "takes a card", "cpu")
    processes: int = _option("machine", "processes that train together, as many as mpiexec starts; "
                             "each takes --batch chunks at once", 1, kind=int, least=1,
                             most=MOST_PROCESSES, older=True)
    sync_norm: bool = _option("machine", "with several processes: batch norms take the statistics "
                              "of all of their batches, not each of its own", False, kind=bool,
                              older=True)
    precision: str = _option("machine", "how products are computed on cuda: in float32; of float32 "
                             "operands rounded to TF32; or of float16 ones, activations being "
                             "float16 and the loss scaled", "float32", choices=PRECISIONS,
                             older=True)

    @property
    def depth(self) -> int:
        """Layers of the backbone."""
        return int(self.backbone.removeprefix("resnet"))

    def to_json(self) -> dict[str, Any]:
        """All options by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str) -> Config:
        """The options back from `to_json`, those that came after the run filled in.

        InputError, naming `where`, if they are not the options of a run.
        """
        found = dict(values) if isinstance(values, Mapping) else {}
        names = {f.name for f in fields(cls)}
        older = {f.name for f in fields(cls) if f.metadata["older"]}
        if wrong := sorted((names - older - set(found)) | (set(found) - names)):
            raise InputError(f"{where}: not the options of a run (see {', '.join(wrong[:4])})")
        for item in fields(cls):
            if item.name in found:
                _check_type(item.name, found[item.name], item, where)
        try:
            for item in fields(cls):
                if item.name in found:
                    _check_range(item.name, found[item.name], item.metadata)
            config = cls(**_defaults(found["data"]) | found)
            _check_size(config)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        return config


def add_options(parser: argparse.ArgumentParser, only: Collection[str] | None = None) -> None:
    """Add every option of `Config`, or these; those not given are absent from the namespace."""
    groups: dict[str, Any] = {}
    for item in fields(Config):
        info = item.metadata
        if only is not None and item.name not in only:
            continue
        if info["group"] not in groups:
            groups[info["group"]] = parser.add_argument_group(info["group"])
            if info["group"] == "data":
                groups["data"].add_argument("--data-root", metavar="DIR", default="data",
                                            help="folder of the data sets (default: data)")
        flag, text = "--" + item.name.replace("_", "-"), info["help"] + _default_text(info)
        keywords: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text}
        if info["kind"] is bool:
            keywords["action"] = "store_true"
        else:
            keywords.update(type=info["kind"], choices=info["choices"])
            if info["choices"] is None:
                keywords["metavar"] = {int: "N", float: "X"}.get(
                    info["kind"], METAVARS.get(item.name, item.name.upper()))
        groups[info["group"]].add_argument(flag, **keywords)


def add_overrides(parser: argparse.ArgumentParser, without: Collection[str] = ()) -> None:
    """Add the options in which using a run may differ from training it, but for some."""
    options: dict[str, dict[str, Any]] = {
        "root": {"metavar": "DIR", "help": "folder of the data set (default: the run's)"},
        "frames": {"metavar": "STORE", "help": "read the sampled frames from this folder, made by "
                   "recres.data prepare (default: as the run did); none: decode the videos"},
        "threads": {"metavar": "N", "type": int, "help": "threads to compute with (default: the "
                    "cores this process may use)"},
        "device": {"help": "cpu, cuda or cuda:N (default: the run's)"},
        "precision": {"choices": PRECISIONS, "help": "how products are computed on cuda (default: "
                      "as in the run; on the CPU float32)"},
    }
    for name, about in options.items():
        if name not in without:
            parser.add_argument(f"--{name}", **about)


def override(config: Config, args: argparse.Namespace) -> Config:
    """`config` with what `add_overrides` found. InputError for what is out of range or absent."""
    names = ("root", "frames", "threads", "device", "precision")
    values = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    if values.get("frames") == "none":  # (a folder of that name is ./none)
        values["frames"] = None
    if values.get("device") == "cpu":
        values = {"precision": "float32"} | values
    changed = replace(config, **{"threads": tensorlite.get_num_threads()} | values)
    for item in fields(Config):
        _check_range(item.name, getattr(changed, item.name), item.metadata)
    _check_size(changed)
    _check_device(changed)
    return changed


def with_changes(config: Config, values: Mapping[str, Any]) -> Config:
    """`config` with those of `values` that are `CHANGEABLE`. InputError if one is out of range."""
    changed = {name: values[name] for name in CHANGEABLE if name in values}
    for item in fields(Config):
        if item.name in changed:
            _check_range(item.name, changed[item.name], item.metadata)
    result = replace(config, **changed)
    _check_size(result)
    return result


def _default_text(info: Mapping[str, Any]) -> str:
    one, two = info["defaults"]["figures"], info["defaults"]["ucf101"]
    if one is None or one is False:
        return ""
    return f" (default: {one})" if one == two else f" (default: {one}; for ucf101 {two})"


def given(args: argparse.Namespace) -> dict[str, Any]:
    """The options that stood on the command line, paths made absolute."""
    values = {f.name: getattr(args, f.name) for f in fields(Config) if hasattr(args, f.name)}
    for name in ("root", "frames", "weights", "store"):
        if name in values:
            values[name] = os.path.abspath(values[name])
    return values


def resolve(values: Mapping[str, Any], data_root: str | os.PathLike[str] = "data") -> Config:
    """Fill in what is not among `values`. InputError for what is out of range or contradicts."""
    data = values.get("data", "figures")
    full = _defaults(data) | dict(values)
    full["root"] = full["root"] or os.path.abspath(Path(data_root) / data)
    if "workers" not in values and full["device"] != "cpu":  # there the cores have nothing to do
        full["workers"] = cuda_workers()
    for item in fields(Config):
        _check_range(item.name, full[item.name], item.metadata)
    if full["updates"] is not None and "epochs" in values:
        raise InputError(f"--epochs {values['epochs']}: --updates {full['updates']} says already "
                         "how long to train")
    _fit_to_model(full, values)
    if (full["freeze"] != "none" or full["features"] or full["input"] == "flow") \
            and "colour_jitter" not in values:
        full["colour_jitter"] = 0.0
    config = Config(**full)
    _check_size(config)
    _check_together(config)
    return config


def cuda_workers(sharing: int = 1) -> int:
    """How many workers each of so many processes on this machine has, unless told otherwise."""
    return max(1, min(8, tensorlite.get_num_threads() // sharing))


def _fit_to_model(full: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Take out of `full` the options that mean nothing beside the others; InputError for one that
    was given nevertheless."""

    def without(names: Sequence[str], why: str, instead: Any = None) -> None:
        for name in names:
            if name in values and values[name] != instead:
                raise InputError(f"--{name.replace('_', '-')} {values[name]}: {why}")
            full[name] = instead

    if full["features"]:
        without(["context"], "--features takes whole videos", 1)
        without(["freeze", "truncate"], "--features stand behind a frozen backbone, which ends "
                "there", "none")
    if full["input"] == "dynamic":
        without(["context"], "a video has one dynamic image", 1)
    if full["input"] != "flow" and "flow_length" in values:
        raise InputError(f"--flow-length {values['flow_length']}: --input {full['input']} is no "
                         "flow")
    if full["features"] or full["sampling"] == "segments" or full["input"] == "dynamic":
        without(["chunks_per_video"], "a video is one chunk")
    if full["model"] != "rrn":
        without(RECURRENT_ONLY, f"--model {full['model']} has no temporal skip")
        return
    if full["context"] == 1:
        without(["skip"], "a chunk of one frame (--context 1) has no temporal skip", "none")
        without(["readout"], "a chunk of one frame (--context 1) is read out from it", "last")
    if full["skip"] == "none":
        without(["position"], "--skip none has no temporal skip")
    elif full["truncate"] != "none" and "position" not in values:
        full["position"] = full["truncate"]
    if full["skip"] not in ("conv", "conv_nonlinear"):
        without(["recurrent_gradient"], f"--skip {full['skip']} has no weights")


def _defaults(data: str) -> dict[str, Any]:
    """Every option's default for a data set; None for those that have none."""
    values = {f.name: f.metadata["defaults"].get(data) for f in fields(Config)}
    return values | {"threads": tensorlite.get_num_threads(), "workers": 0}


def _check_type(name: str, value: Any, item: Field[Any], where: str) -> None:
    """Raise InputError unless `value`, from a file, is what the option can be."""
    kind = item.metadata["kind"]
    if value is None and "None" in str(item.type):
        return
    kinds = (int, float) if kind is float else (kind,)
    if type(value) not in kinds or (kind is str and "\0" in value):
        raise InputError(f"{where}: {name} is {value!r}, expected {_KINDS[kind]}")
    if type(value) is int and abs(value) >= 2**63:
        raise InputError(f"{where}: {name} is a number of {len(str(value))} digits")


_KINDS = {str: "a text", int: "an integer", float: "a number", bool: "true or false"}


def _check_range(name: str, value: Any, info: Mapping[str, Any]) -> None:
    flag = "--" + name.replace("_", "-")
    if value is None or isinstance(value, bool):
        return
    if info["choices"] and value not in info["choices"]:
        raise InputError(f"{flag} {value}: expected one of {', '.join(info['choices'])}")
    low, above, most = info["least"], info["above"], info["most"]
    if low is None and above is None:
        return
    big_enough = value >= low if above is None else value > above
    if not (big_enough and value <= most and math.isfinite(value)):
        bound = f"at least {low}" if above is None else f"more than {above}"
        upper = f" and at most {most}" if most < math.inf else ""
        raise InputError(f"{flag} {value}: expected {bound}{upper}")


def _check_size(config: Config) -> None:
    """Refuse options that are in range one by one, but of which a batch cannot be held."""
    if config.features:
        return  # images are not put together
    channels = 2 * config.flow_length if config.input == "flow" else 3
    chunk = 4 * config.context * config.image_size**2 * channels
    for name, chunks in (("batch", config.batch), ("workers", PLACES * config.workers)):
        if chunks * chunk > limits.BATCH_BYTES:
            raise InputError(
                f"--{name} {getattr(config, name)}: with --context {config.context} and "
                f"--image-size {config.image_size} {chunks * chunk} bytes at once, more than the "
                f"{limits.BATCH_BYTES} of recres.limits.BATCH_BYTES")


def _check_together(config: Config) -> None:
    """Refuse what contradicts, and a device that is not there."""
    kept = config.features or (config.freeze if config.freeze != "none" else None)
    fixed = "--features" if config.features else "--freeze"
    if config.features and config.model == "rrn":
        raise InputError(f"--features {config.features}: a recurrent residual network needs "
                         "feature maps: --freeze keeps them")
    if config.model in ("gru", "lstm") and not config.features:
        raise InputError(f"--model {config.model}: works on the features of a frozen backbone, "
                         "expected --features with one of " + ", ".join(STAGES[1:]))
    if config.features and config.input != "frames":
        raise InputError(f"--input {config.input}: --features are of frames")
    if config.frames and config.input != "frames":
        raise InputError(f"--input {config.input}: is made of all frames of a video, --frames "
                         f"{config.frames} has sampled ones")
    if config.z_norm and not config.features:
        raise InputError("--z-norm: without --features there are none to normalise")
    ends = ("none", *STAGES)
    if config.truncate != "none" and ends.index(config.freeze) > ends.index(config.truncate):
        raise InputError(f"--freeze {config.freeze}: --truncate {config.truncate} ends the network "
                         "before it")
    if config.sampling == "segments" and (config.features or config.input == "dynamic"):
        raise InputError("--sampling segments: whole videos are taken, not chunks")
    if kept and config.augment_per_frame:
        raise InputError(f"--augment-per-frame: with {fixed} the views are fixed")
    if kept and config.colour_jitter:
        raise InputError(f"--colour-jitter: with {fixed} the views are fixed")
    if config.input == "flow" and config.colour_jitter:
        raise InputError("--colour-jitter: flow has no colours")
    if config.mirror and not kept:
        raise InputError("--mirror: without --freeze every chunk's view is drawn, mirroring "
                         "included")
    if config.store and not kept:
        raise InputError(f"--store {config.store}: nothing is frozen whose features could be kept")
    if config.weights is not None and not os.path.isfile(config.weights):
        raise InputError(f"--weights {config.weights}: no such file")
    if config.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise InputError("--tensorboard: needs tensorboardX (pip install 'recres[tensorboard]')")
    _check_device(config)


def _check_device(config: Config) -> None:
    try:
        device = parse_device(config.device)
        if device != "cpu":
            require_cuda(device)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"--{error}") from None
    if device == "cpu" and config.precision != "float32":
        raise InputError(f"--precision {config.precision} needs --device cuda")
