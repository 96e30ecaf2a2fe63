"""In what a run departs from the paper, and what it settled that the paper leaves open.

Drawn from the options alone; docs/paper.md gives the reasons.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from recres.config import Config
from recres.models.resnet import STAGES

UCF101_CLASSES = 101
PAPER_CONTEXTS = (1, 2, 3, 5)
PAPER_POSITIONS = ("block1", "block2", "mid_block4", "block4")
PAPER_SKIPS = ("identity", "conv", "conv_nonlinear")
PAPER_FEATURES = ("block2", "block3", "block4")


class Difference(NamedTuple):
    """paper: what it does; empty where it does not say."""

    what: str
    paper: str
    here: str


def differences(config: Config, about: Mapping[str, Any], classes: int | None = None
                ) -> list[Difference]:
    """Where a run differs from the paper, and then what the paper leaves open.

    about: the rest of the run's config.json. classes: how many there are, where that is known.
    """
    found = [*_data(config, classes), *_network(config, about), *_training(config)]
    return [row for row in found if row.paper] + [row for row in found if not row.paper]


def _data(config: Config, classes: int | None) -> Iterator[Difference]:
    if config.data != "ucf101":
        yield Difference("data", "UCF-101", f"{config.data}, the embedded set of drawn figures")
    elif classes is not None and classes != UCF101_CLASSES:
        yield Difference("data", f"the {UCF101_CLASSES} classes of UCF-101", f"{classes} classes")
    if config.input == "flow":
        yield Difference("input", "frames", f"stacks of {config.flow_length} fields of optical "
                         "flow (the two-stream comparator)")
    elif config.input == "dynamic":
        yield Difference("input", "frames", "one dynamic image of each video (a comparator)")
    if config.frame_step != 10 and config.input != "dynamic":
        yield Difference("frames", "every tenth is sampled", f"one in {config.frame_step}")
    if config.sampling == "segments":
        yield Difference("chunks", "successive sampled frames", "one frame of each of "
                         f"{config.context} equal parts of a video (temporal segments)")
    if config.chunks_per_video is not None:
        yield Difference("chunks trained on", "all M of a video",
                         f"at most {config.chunks_per_video} of a video")
    if config.image_size != 224:
        yield Difference("image", "224 × 224 pixels, as ImageNet's ResNet",
                         f"{config.image_size} × {config.image_size} pixels")


def _network(config: Config, about: Mapping[str, Any]) -> Iterator[Difference]:
    if config.depth != 50:
        yield Difference("backbone", "ResNet-50", f"ResNet-{config.depth}")
    if config.width != 64:
        yield Difference("width", "64 channels in the stem", f"{config.width} channels")
    if config.version != "v1":
        yield Difference("stride", "in a stage's first 1×1 convolution (v1)",
                         "in its 3×3 convolution (v1.5)")
    start = about.get("model") or {}
    if config.weights is None:
        yield Difference("weights", "pre-trained on ImageNet", "drawn at random")
    elif (start.get("weights") or {}).get("source") == "recres":
        yield Difference("weights", "pre-trained on ImageNet", "of a network that recres trained "
                         "(on the drawn figures: on their single frames)")
    elif parts := _from_scratch(start, config.features):
        yield Difference("weights", "all pre-trained on ImageNet but the new layers",
                         f"drawn at random: {parts}")
    if config.truncate != "none":
        yield Difference("depth", "the network to its end, block4", f"ends after {config.truncate}")
    if config.model == "rrn":
        yield from _skips(config, start)
    elif config.model == "avgpool" and config.features is None and not _all_frozen(config):
        yield Difference("baseline", "a classifier on frozen features",
                         "the network is trained, too")
    elif config.model == "lstm":
        yield Difference("model", "GRU with 128 units as the recurrent baseline", "LSTM")
    if config.features is not None:
        if config.features not in PAPER_FEATURES:
            yield Difference("features", "after block2, block3 or block4",
                             f"after {config.features}")
        return
    yield Difference("batch norm", "", "trained stages: statistics over the frames of a batch that "
                     "still reach the output"
                     + ("" if config.freeze == "none" else
                        f"; frozen stages (up to {config.freeze}): their stored statistics"))
    convolved = config.skip in ("conv", "conv_nonlinear")
    yield Difference("layers trained", "", "all" if config.freeze == "none"
                     else f"those after {config.freeze}"
                     + (", and W_s with its norm" if convolved else ""))


def _skips(config: Config, start: Mapping[str, Any]) -> Iterator[Difference]:
    if config.context not in PAPER_CONTEXTS:
        yield Difference("context", "T = 1, 2, 3 or 5 frames", f"T = {config.context}")
    if config.skip == "none":
        yield Difference("temporal skip", "identity, conv or conv_nonlinear", "none: the control "
                         "that is fine-tuned alike, which the paper does not show")
    if config.readout == "last":
        yield Difference("readout", "", "a chunk is classified from its last frame")
    elif config.readout is not None:
        yield Difference("readout", "", "a chunk is classified from the mean over its frames")
    if config.context == 1 or config.skip == "none":
        return
    if config.skip not in PAPER_SKIPS:
        yield Difference("temporal skip", "identity, conv or conv_nonlinear", f"{config.skip}: the "
                         "unit-weight recurrence of a block on its own output (a comparator)")
    if config.position not in PAPER_POSITIONS:
        yield Difference("position", ", ".join(PAPER_POSITIONS), str(config.position))
    yield Difference("non-linearity", "inside the sum, as its equations have it: "
                     "σ(x ∗ W) + x + S",
                     "around the sum, as in ResNet v1: relu(F(x) + x + S)")
    yield Difference("first frame of a chunk", "", "nothing is added to it")
    if config.skip in ("conv", "conv_nonlinear"):
        wrong = config.recurrent_gradient == "same-frame"
        yield Difference(
            "gradient of W_s", "",
            "of the same frame, Σ x(t) · e(t): wrong on purpose, as in the code the paper names"
            if wrong else "the right one, Σ x(t−1) · e(t); the code the paper names pairs e(t) "
            "with x(t)")
        begun = start.get("temporal_convolutions")
        yield Difference("start of W_s", "", str(begun) if begun else "not recorded")


def _training(config: Config) -> Iterator[Difference]:
    baseline = config.model != "rrn" and config.features is not None
    if baseline:
        pass  # the paper excepts its baselines, and does not say how often these are updated
    elif config.update_fraction is None:
        yield Difference("update", "after 1 % of the training data",
                         f"after every batch of {config.batch}")
    elif config.update_fraction != 0.01:
        yield Difference("update", "after 1 % of the training data",
                         f"after {100 * config.update_fraction:g} %")
    yield Difference("learning rate", "", f"Adam, {config.lr:g}, {config.schedule}")
    amount = f"{config.epochs} epochs" if config.updates is None else f"{config.updates} updates"
    chosen = ("the best epoch on held-out training groups "
              f"({100 * config.holdout:g} % of the videos, not trained on)" if config.holdout
              else "the last epoch")
    yield Difference("length, choice of epoch", "", f"{amount}; {chosen}")
    if config.clip_norm is not None:
        yield Difference("gradient clipping", "", f"to a norm of {config.clip_norm:g}")
    if config.freeze == "none" and config.features is None:
        drawn = "for every frame" if config.augment_per_frame else "once a chunk"
        jitter = (f", colours changed by up to {config.colour_jitter:g}" if config.colour_jitter
                  else "")
        yield Difference("crop and mirroring", "", f"drawn {drawn}{jitter}")
    else:
        yield Difference("crop and mirroring", "", "none: the centre"
                         + (" and its mirror image" if config.mirror else ""))
    if config.precision != "float32":
        yield Difference("precision", "", config.precision)


def _all_frozen(config: Config) -> bool:
    return config.freeze == ("block4" if config.truncate == "none" else config.truncate)


def _from_scratch(start: Mapping[str, Any], features: str | None) -> str:
    """The parts in use that a weights file did not fill, the classifier and temporal layers aside,
    which are new in the paper too."""
    weights = start.get("weights") or {}
    unused = STAGES[STAGES.index(features) + 1 :] if features else ()
    parts = [name.partition(".")[0] for name in weights.get("initialised", ())
             if ".temporal" not in name]
    return ", ".join(dict.fromkeys(part for part in parts if part not in ("fc", *unused)))
