"""An evaluation by several processes is that of one: the same batches, each made by one of them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from recres import config, evaluation
from recres.build import build_network, scan_videos
from recres.evaluation import assess
from recres.loader import FrameLoader
from tensorlite.distributed import Processes


class Among(Processes):
    """One of several that are threads of this process."""

    def __init__(self, rank: int, places: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size = rank, len(places)
        self._places, self._barrier = places, barrier

    def wait(self) -> None:
        self._barrier.wait()

    def everyones(self, value: Any) -> list[Any]:
        self._places[self.rank] = value
        self.wait()
        try:
            return list(self._places)
        finally:
            self.wait()


@pytest.fixture(scope="module")
def parts(figures_root):
    options = config.resolve({"root": str(figures_root), "threads": 1, "context": 2, "width": 4,
                              "image_size": 32, "holdout": 0.3})
    videos = scan_videos(options, str)
    network = build_network(options, len(videos.split.classes))
    return network, FrameLoader(videos.source, options, "torch"), videos


@pytest.mark.parametrize("size", [2, 3, 5])
def test_every_batch_is_made_by_one_and_known_to_all(parts, size, monkeypatch):
    """Backwards as well; also where there are more processes than batches."""
    monkeypatch.setattr(evaluation, "CHUNKS_AT_ONCE", 7)
    made: list[int] = []
    logits, one_by_one = evaluation.predict_logits, threading.Lock()

    def counted(model, inputs, **more):
        with one_by_one:
            made.append(len(inputs))
            return logits(model, inputs, **more)

    monkeypatch.setattr(evaluation, "predict_logits", counted)
    done: list[list[int]] = [[] for _ in range(size)]
    alone, scores = assess(*parts, "test", done[0].append)
    batches = [*made]
    assert batches == done[0] == 2 * [7, 7, 6]
    made.clear(), done[0].clear()
    places, barrier = [None] * size, threading.Barrier(size, timeout=60)
    with ThreadPoolExecutor(size) as pool:
        found = list(pool.map(lambda rank: assess(*parts, "test", done[rank].append,
                                                  Among(rank, places, barrier)), range(size)))
    assert sorted(made) == sorted(batches)
    assert sum(done[0]) == sum(batches)
    for errors, other in found:
        assert errors == alone
        assert other.posteriors.tobytes() == scores.posteriors.tobytes()
