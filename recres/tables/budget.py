"""How long a cell of a table takes: its network is run once on random numbers.

From that a budget of time becomes a number of updates, the same for all cells that train networks.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from recres import build
from recres.config import Config
from recres.errors import InputError
from recres.evaluation import CHUNKS_AT_ONCE, predict_logits
from recres.feature_store import FRAMES_AT_ONCE, Kind, encode_frames, feature_shape
from recres.loader import Videos, describe_updates
from tensorlite import Tensor, cross_entropy, optim, precision
from tensorlite.device import to_device

SEQUENCE_FRAMES = 16  # of a video, where whole videos go through a model of features
# What comes beside the measured work: augmenting and logging, and, for each run, its folder, the
# pictures and what is checked. Of ten cells on the figures (2 cores), runs took 1.1 to 1.3 times
# what their updates and evaluations were measured to take.
MARGIN, EACH_RUN = 1.25, 2.0


class Cost(NamedTuple):
    """Seconds: of an update, and of all else that a run of the cell does each time."""

    update: float
    rest: float

    def seconds(self, updates: int) -> float:
        """Of a run."""
        return MARGIN * (updates * self.update + self.rest) + EACH_RUN


def parse_duration(text: str) -> float:
    """Seconds of "90s", "15m", "2h" or "1.5h"; InputError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if match is None or not float(match[1]):
        raise InputError(f"--budget {text}: expected a time such as 90s, 15m or 2h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def show_duration(seconds: float) -> str:
    """Such as "45 s", "12 min" or "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def measure(config: Config, classes: int, train_chunks: int, test_chunks: int) -> Cost:
    """What a cell with so many chunks costs, by an update and an evaluation of random ones."""
    with precision.using(config.precision):
        network = build.build_network(config, classes).to(config.device)
        model = build.build_model(config, classes).to(config.device)
        stage = build.frozen_stage(config, network)
        rng, count = np.random.default_rng(0), max(config.batch, CHUNKS_AT_ONCE)
        arguments: dict[str, object] = {}
        if config.features:
            shape: tuple[int, ...] = (SEQUENCE_FRAMES, build.feature_channels(config))
            arguments["lengths"] = np.full(count, SEQUENCE_FRAMES)
        else:
            size = config.image_size
            channels = 2 * config.flow_length if config.input == "flow" else 3
            shape = (config.context, *((size, size, channels) if stage is None
                                       else feature_shape(network, stage, size)))
            arguments["after"] = stage
        inputs = rng.random((count, *shape), np.float32)
        optimizer = optim.Adam([p for p in model.parameters() if p.requires_grad], lr=config.lr)

        def part(n: int) -> dict[str, object]:
            return {name: value[:n] if isinstance(value, np.ndarray) else value
                    for name, value in arguments.items()}

        def update(n: int) -> float:
            began = time.perf_counter()
            optimizer.zero_grad()
            logits = model.train()(Tensor(inputs[:n], device=config.device), **part(n))
            cross_entropy(logits, np.zeros(n, np.int64)).backward()
            optimizer.step()
            to_device(next(iter(model.parameters())).data, "cpu")  # wait for the device
            return time.perf_counter() - began

        def evaluate(n: int) -> float:
            began = time.perf_counter()
            predict_logits(model, inputs[:n], **part(n))
            return time.perf_counter() - began

        update(2)
        batch = min(update(config.batch), update(config.batch))
        evaluate(1)
        evaluation = evaluate(CHUNKS_AT_ONCE) / CHUNKS_AT_ONCE
    batches = describe_updates(train_chunks, config)["batches"]
    return Cost(batch * batches, evaluation * test_chunks)


def encoding_rate(config: Config, classes: int) -> float:
    """Frames a second through the frozen stages, decoding not counted."""
    network = build.build_network(config, classes).to(config.device)
    stage, size = build.frozen_stage(config, network), config.image_size
    assert stage is not None
    kinds = [Kind(stage, bool(config.features))]
    frames = np.zeros((FRAMES_AT_ONCE, size, size, network.channels), np.float32)
    with precision.using(config.precision):
        encode_frames(network, kinds, frames[:2])
        began = time.perf_counter()
        encode_frames(network, kinds, frames)
    return FRAMES_AT_ONCE / (time.perf_counter() - began)


def reading_time(videos: Videos, tried: int = 3) -> float:
    """Seconds to make what the network sees of all videos, once, which one thread does; tested ones
    in both directions where classes come in pairs."""
    source, places = videos.source, list(videos.counts)
    some = places[:: max(1, len(places) // tried)][:tried]
    began = time.perf_counter()
    for place in some:
        source.frames(place)
    each = (time.perf_counter() - began) / len(some)
    twice = len(videos.sides["test"]) if videos.split.pairs else 0
    return each * (len(places) + twice)


def updates_within(budget: float, costs: Sequence[Cost], runs: int, fixed: float) -> int | None:
    """How many updates each cell may make in `budget` seconds: costs, of the cells that share it,
    each of which is run so often; fixed, seconds of everything else. None where no cell does.
    InputError where it is not enough for one."""
    each = runs * sum(cost.seconds(1) - cost.seconds(0) for cost in costs)
    rest = fixed + runs * sum(cost.seconds(0) for cost in costs)
    if not costs:
        if rest > budget:
            raise InputError(f"--budget {show_duration(budget)}: too little, the runs take "
                             f"{show_duration(rest)}, and that it does not change")
        return None
    updates = int((budget - rest) // each)
    if updates < 1:
        raise InputError(f"--budget {show_duration(budget)}: too little, one update of every cell "
                         f"takes {show_duration(rest + each)}")
    return updates
