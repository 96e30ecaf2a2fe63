"""Running a network over one side of the data, and what that says about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from recres import metrics
from recres.loader import Chunk, Loader, Videos, prefetch
from recres.metrics import Scores
from tensorlite import Tensor, nn, no_grad
from tensorlite.distributed import Processes

CHUNKS_AT_ONCE = 32


def score(model: nn.Module, loader: Loader, videos: Videos, side: str, *,
          backwards: bool = False, progress: Callable[[int], Any] | None = None,
          processes: Processes | None = None) -> Scores:
    """What the network says of a side's videos, with running statistics and the fixed view.

    backwards: of the videos played backwards, that is their sampled frames in reverse.
    `progress` is called with numbers of chunks done. processes: those that make it together, each
    by a call of its own with the same network, and all have the result.
    """
    processes = processes or Processes()
    chunks, size = videos.chunks(side), processes.size
    batches, mine = batches_of(chunks), own_batches(chunks, processes)
    place = {video: i for i, video in enumerate(videos.sides[side])}
    listed = [videos.source.videos[video] for video in place]
    logits = []
    with prefetch(loader, lambda batch: loader.load(batch, None, backwards), mine) as loaded:
        for i, (batch, inputs) in enumerate(zip(mine, loaded, strict=True)):
            logits.append(predict_logits(model, inputs, **loader.arguments(batch)))
            if progress is not None:
                progress(sum(map(len, batches[i * size : (i + 1) * size])))
    processes.wait()  # which an interrupt ends, as it does not what follows
    everyones = processes.everyones(logits)
    logits = [everyones[i % size][i // size] for i in range(len(batches))]
    return metrics.gather([video.name for video in listed], [video.label for video in listed],
                          np.concatenate(logits), [place[chunk.video] for chunk in chunks])


def batches_of(chunks: Sequence[Chunk]) -> list[Sequence[Chunk]]:
    """The batches of an evaluation, which are the same however many processes make it."""
    return [chunks[i : i + CHUNKS_AT_ONCE] for i in range(0, len(chunks), CHUNKS_AT_ONCE)]


def own_batches(chunks: Sequence[Chunk], processes: Processes) -> list[Sequence[Chunk]]:
    """Those that one of `processes` computes."""
    return batches_of(chunks)[processes.rank :: processes.size]


@np.errstate(all="ignore")  # answers that are not finite are still answers
def predict_logits(model: nn.Module, inputs: np.ndarray, **arguments: Any) -> np.ndarray:
    """Logits (B, classes) of chunks (B, T, ...), on the CPU, with running statistics; `arguments`
    is what else the model takes."""
    model.eval()
    device = next(model.parameters()).device
    with no_grad():
        return in_full(model(Tensor(inputs, device=device), **arguments))


def in_full(x: Tensor) -> np.ndarray:
    """A network's output on the CPU, float32 where it is float16."""
    array = x.numpy()
    return array.astype(np.promote_types(array.dtype, np.float32), copy=False)


def assess(model: nn.Module, loader: Loader, videos: Videos, side: str,
           progress: Callable[[int], Any] | None = None,
           processes: Processes | None = None) -> tuple[dict[str, Any], Scores]:
    """The errors on a side, as they stand in result.json, and the scores they come from.
    progress, processes: see `score`.

    Where classes come in time-reversed pairs, also whether the network knows the pair, which of
    the two it is, and what it says when the videos are played backwards.
    """
    scores = score(model, loader, videos, side, progress=progress, processes=processes)
    split = videos.split
    summary: dict[str, Any] = {
        "chunk_error": scores.chunk_error,
        "video_error": scores.video_error,
        "loss": scores.loss,
        "per_class": _per_class(scores, split.classes),
        "counts": {"videos": len(scores.names), "chunks": int(scores.chunks.sum())},
    }
    if split.pairs:
        partner = metrics.partners(split.classes, split.pairs)
        reverse = score(model, loader, videos, side, backwards=True, progress=progress,
                        processes=processes)
        summary["pair_error"] = metrics.pair_error(scores, partner)
        summary["within_pair_error"] = metrics.within_pair_error(scores, partner)
        summary["reversed_becomes_partner"] = metrics.becomes_partner(scores, reverse, partner)
    return summary, scores


def chunks_to_assess(videos: Videos, side: str) -> int:
    """How many chunks `assess` goes through: those of a side, twice where there are pairs."""
    return len(videos.chunks(side)) * (2 if videos.split.pairs else 1)


def _per_class(scores: Scores, classes: Sequence[str]) -> dict[str, dict[str, float]]:
    """For each class its number of videos and their error; classes without videos are left out."""
    result = {}
    for label, name in enumerate(classes):
        mine = scores.labels == label
        if mine.any():
            error = float((scores.answers != label)[mine].mean())
            result[name] = {"videos": int(mine.sum()), "video_error": error}
    return result


def chunk_labels(videos: Videos, chunks: Sequence[Chunk]) -> np.ndarray:
    """(B,) classes of chunks."""
    return np.array([videos.label(chunk) for chunk in chunks], np.int64)
