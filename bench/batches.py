"""Frames a second of augmented training batches, by the number of processes that load them.

Each clip gives one chunk, drawn at random, and no decoded video is kept: the case of a data set
that is larger than memory. Every side's batches must be those of the first, bit for bit.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from recres import config
from recres.commands import RunFailed
from recres.datasets import Video
from recres.loader import Chunk, FrameLoader, Loader, prefetch
from recres.video.frame_store import FrameStore
from recres.video.source import FrameSource
from recres.workers import WorkerLoader

BATCH = 8  # chunks
WORKERS = (0, 1, 2)  # 0: a thread of this process

Batches = Sequence[Sequence[Chunk]]


def measure(args: argparse.Namespace, videos: Sequence[Video], store: FrameStore, turns: int
            ) -> list[dict[str, Any]]:
    """An entry for each number of workers, from videos and from the store: see `bench.data`."""
    options = config.resolve({"data": "ucf101", "root": args.root, "context": args.context,
                              "frame_step": args.frame_step, "image_size": args.image_size})
    rng = np.random.default_rng(0)
    chunks = [Chunk(i, i, int(rng.integers(store.count(video, args.context) - args.context + 1)))
              for i, video in enumerate(videos)]
    batches = [chunks[i : i + BATCH] for i in range(0, len(chunks), BATCH)]
    entries: list[dict[str, Any]] = []
    for name, used in (("videos", None), (f"store, {store.settings.codec}", store)):
        source = FrameSource(videos, args.frame_step, args.context, 0, store=used)
        frames = FrameLoader(source, options, "torch")
        with contextlib.ExitStack() as stack:
            loaders: dict[str, Loader] = {
                f"{name}, {n} workers": stack.enter_context(WorkerLoader(frames, n, BATCH))
                if n else frames for n in WORKERS}
            refuse_difference(loaders, batches)  # (that also waits for workers to have begun)
            entries += time_all(loaders, batches, turns)
    return entries


def refuse_difference(loaders: dict[str, Loader], batches: Batches) -> None:
    """RunFailed where a loader's batches are not those of the first."""
    first, *others = loaders
    expected = [loaders[first].load(batch, 0) for batch in batches]
    for name in others:
        for batch, array in zip(batches, expected, strict=True):
            if loaders[name].load(batch, 0).tobytes() != array.tobytes():
                raise RunFailed(f"batches: {name}: other bits than {first}")


def time_all(loaders: dict[str, Loader], batches: Batches, turns: int) -> list[dict[str, Any]]:
    """Each loader's frames a second and its ratio to the first's; they take turns."""
    rates = in_turns([partial(frames_a_second, loader, batches) for loader in loaders.values()],
                     turns)
    return [{"group": "batches", "name": name, "difference": None, "frames_s": median(found),
             "ratio": median(a / b for a, b in zip(found, rates[0], strict=True))}
            for name, found in zip(loaders, rates, strict=True)]


def in_turns(sides: Sequence[Callable[[], float]], turns: int,
             done: Callable[[], object] = lambda: None) -> list[list[float]]:
    """What each side gives in each turn: A B, B A, and so on. `done` is called after each."""
    rates: list[list[float]] = [[] for _ in sides]
    for turn in range(turns):
        for i in range(len(sides))[:: -1 if turn % 2 else 1]:
            rates[i].append(sides[i]())
            done()
    return rates


def frames_a_second(loader: Loader, batches: Batches) -> float:
    """One pass over the batches, loaded ahead as training has them."""
    began = time.perf_counter()
    with prefetch(loader, lambda batch: loader.load(batch, 0), batches) as results:
        frames = sum(result.shape[0] * result.shape[1] for result in results)
    return frames / (time.perf_counter() - began)
