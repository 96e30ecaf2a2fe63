"""What a run has to say for itself: environment, result.json, and the tables that are printed."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Sequence
from typing import Any

import tensorlite
from recres.config import Config
from recres.feature_store import FeatureStore
from recres.loader import Videos, describe_updates
from recres.models import RecurrentResNet
from tensorlite import nn

PRECISIONS = {
    "float32": "float32 products, exact",
    "tf32": "float32, products of operands rounded to TF32 (10 bits of fraction)",
    "float16": "float16 products and activations; parameters, statistics and sums in float32",
}


def environment() -> dict[str, str]:
    """Versions that a result may depend on."""
    packages = ("numpy", "scipy", "opencv-python-headless", "safetensors")
    versions = {"python": platform.python_version(), "tensorlite": tensorlite.__version__}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions | {"machine": f"{platform.system()} {platform.machine()}"}


def command_line(module: str, argv: Sequence[str] | None) -> list[str]:
    """The command as it was given."""
    return ["python", "-m", module, *(sys.argv[1:] if argv is None else argv)]


def count(number: int, what: str) -> str:
    """ "1 thread", "2 threads"."""
    return f"{number} {what}" + ("" if number == 1 else "s")


def protocol(config: Config) -> str:
    """How a result was come by, in a sentence."""
    length = f"{config.updates} updates" if config.updates else f"{config.epochs} epochs"
    chosen = (f"best epoch of {length} on held-out training groups ({config.holdout:g} of the "
              "videos)" if config.holdout else f"the last of {length}")
    return (f"{_seen(config)}, softmax averaged over a video's chunks; {chosen}; test side seen "
            "once")


def _seen(config: Config) -> str:
    """What of a video a chunk is."""
    sampled = f"one frame in {config.frame_step}"
    if config.features:
        norm = ", Z-normalised," if config.z_norm else ""
        return f"{sampled}, features after {config.features} pooled{norm} of whole videos"
    if config.input == "dynamic":
        return "one dynamic image a video"
    flow = f", {config.flow_length} fields of flow each" if config.input == "flow" else ""
    if config.sampling == "segments":
        return f"{sampled}{flow}, one of each of {config.context} segments of a video"
    most = (f", at most {config.chunks_per_video} a video to train on"
            if config.chunks_per_video else "")
    return f"{sampled}{flow}, chunks of {config.context} frames tiling each video{most}"


def counts(videos: Videos) -> dict[str, Any]:
    """Numbers of videos and chunks by side, and the videos that were skipped."""
    result: dict[str, Any] = {}
    for side, places in videos.sides.items():
        result[f"{side}_videos"] = len(places)
        result[f"{side}_chunks"] = len(videos.chunks(side))
    return result | {"skipped": len(videos.skipped)}


def heading(config: Config, model: nn.Module, videos: Videos, store: FeatureStore | None) -> str:
    """What is about to be trained, printed at the start."""
    split, n = videos.split, counts(videos)
    size = sum(p.size for p in model.parameters())
    trained = sum(p.size for p in model.parameters() if p.requires_grad)
    update = describe_updates(n["train_chunks"], config)
    length = f"{config.updates} updates" if config.updates else f"{config.epochs} epochs"
    model_text = f"{config.model}, {config.backbone} {config.version}, width {config.width}"
    if config.truncate != "none":
        model_text += f", ends after {config.truncate}"
    if isinstance(model, RecurrentResNet):
        model_text += (f", {config.skip} temporal skip: {', '.join(model.recurrent)}"
                       if model.recurrent else ", no temporal skip")
    if config.recurrent_gradient == "same-frame":
        model_text += ", learning from the same frame"
    frozen = f"up to {config.freeze}" if config.freeze != "none" else "nothing"
    if store is not None:
        frozen = frozen if config.freeze != "none" else "the backbone"
        frozen += f"; features after {store.stage} are computed once"
    batches = (f" in {update['batches']} batches, gradients added up"
               if update["batches"] > 1 else "")
    rows = {
        "data": f"{split.name} split {split.number}: {len(split.classes)} classes; videos: "
                f"{n['train_videos']} to train on, {n['holdout_videos']} held out, "
                f"{n['test_videos']} to test on"
                + (f", {n['skipped']} skipped" if n["skipped"] else ""),
        "input": f"{_seen(config)}, {config.image_size} x {config.image_size} pixels",
        "model": f"{model_text}; {size:,} parameters, {trained:,} of them trained",
        "frozen": frozen,
        "training": f"{length}, an epoch being {n['train_chunks']} chunks in {update['updates']} "
                    f"updates of {update['chunks']} chunks{batches}; Adam, {config.schedule} "
                    f"learning rate {config.lr:g}",
        "machine": f"{config.device}, {count(config.threads, 'thread')}, "
                   + (f"{config.workers} loading processes, " if config.workers and not store
                      else "") + f"seed {config.seed}",
        "precision": PRECISIONS[config.precision],
    }
    return "\n".join(f"{name:9} {text}" for name, text in rows.items())


def result(config: Config, videos: Videos, summary: dict[str, Any],
           best: dict[str, Any] | None, seconds: float) -> dict[str, Any]:
    """What result.json says; `summary` as from `evaluation.assess` of the test side."""
    return {
        **summary,
        "split": videos.split.number,
        "data": config.data,
        "model": config.model,
        "protocol": protocol(config),
        "best": best,
        "training_seconds": round(seconds, 1),
        "counts": counts(videos),
        "skipped": videos.skipped,
    }


def table(summary: dict[str, Any], worst: int = 3) -> str:
    """The errors in a few lines."""
    n = summary["counts"]
    rows = [("video error", summary["video_error"], f"of {n['videos']} videos"),
            ("chunk error", summary["chunk_error"], f"of {n['chunks']} chunks")]
    if "pair_error" in summary:
        rows += [("pair error", summary["pair_error"], "neither the class nor its reverse"),
                 ("within pair", summary["within_pair_error"], "taken for its reverse, pair right"),
                 ("reversed", summary["reversed_becomes_partner"],
                  "of the right ones become their reverse when played backwards")]
    lines = [f"{name:12} {'none' if value is None else f'{value:.4f}'}  {text}"
             for name, value, text in rows]
    hard = sorted(summary["per_class"].items(), key=lambda item: -item[1]["video_error"])
    hard = [f"{name} {row['video_error']:.2f}" for name, row in hard[:worst] if row["video_error"]]
    return "\n".join(lines + ([f"{'hardest':12} {', '.join(hard)}"] if hard else []))
