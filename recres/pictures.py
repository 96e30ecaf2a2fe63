"""The pictures of a run: how training went, and what is mistaken for what. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from recres import metrics
from recres.metrics import Scores
from recres.runs import read_metrics
from tensorlite.io import replacing

matplotlib.use("Agg")
BLUE, ORANGE, GREY = "#2b6cb0", "#dd6b20", "#a0aec0"


def _save(figure: Figure, path: Path) -> None:
    """Write a figure; the file appears whole or not at all."""
    with replacing(path) as beside:
        figure.savefig(beside, dpi=120, format="png")


def curves(log: Path, path: Path) -> None:
    """Draw a run's metrics.jsonl: losses, held-out error, learning rate and gradient norm."""
    updates, evaluations = read_metrics(log), read_metrics(log, "evaluation")
    per_epoch = max(1, len(updates) / max(1, len(evaluations)))
    at = np.array([line["update"] for line in updates]) / per_epoch
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    loss, error, rate = figure.subplots(1, 3)
    losses = np.array([line["loss"] for line in updates])
    loss.plot(at, losses, color=GREY, linewidth=0.7, label="update")
    epochs = [line["epoch"] for line in evaluations]
    loss.plot(epochs, [line["training_loss"] for line in evaluations], color=BLUE,
              label="epoch's mean")
    held = [line for line in evaluations if "loss" in line]
    if held:
        loss.plot([line["epoch"] for line in held], [line["loss"] for line in held],
                  color=ORANGE, label="held out")
        for name, colour in (("video_error", ORANGE), ("chunk_error", BLUE)):
            error.plot(epochs, [line[name] for line in held], color=colour, marker=".",
                       label=name.replace("_", " "))
        for best in [line for line in held if line["best"]][-1:]:  # (its line may be lost)
            error.plot(best["epoch"], best["video_error"], "o", color=ORANGE, markersize=9,
                       markerfacecolor="none", label=f"best, epoch {best['epoch']}")
        error.legend(frameon=False, loc="best")
    loss.set(title="cross-entropy", xlabel="epoch")
    loss.set_ylim(bottom=0)
    loss.legend(frameon=False, loc="lower left")  # a loss falls from left to right
    error.set(title="error on held-out groups", xlabel="epoch")
    error.set_ylim(0, 1.1 * error.get_ylim()[1])
    rate.plot(at, [line["gradient_norm"] for line in updates], color=GREY, linewidth=0.7)
    rate.set(title="gradient norm, learning rate", xlabel="epoch", yscale="log")
    rate.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    rate.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    rate.yaxis.set_minor_formatter(NullFormatter())
    rate.set_ylabel("gradient norm", color="#718096")
    right = rate.twinx()
    right.plot(at, [line["learning_rate"] for line in updates], color=BLUE)
    right.set_ylim(bottom=0)
    right.set_ylabel("learning rate", color=BLUE)
    for axes in (loss, error, rate):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.set_xlim(left=0)
    for axes in (loss, error, rate, right):
        axes.spines["top"].set_visible(False)
    _save(figure, path)


def confusion(scores: Scores, classes: Sequence[str], path: Path,
              pairs: Sequence[tuple[str, str]] = ()) -> None:
    """Draw which class is taken for which, in shares of the true class's videos; the classes of
    `pairs` side by side."""
    paired = [name for pair in pairs for name in pair]
    order = sorted(range(len(classes)), key=lambda i: (
        paired.index(classes[i]) if classes[i] in paired else len(paired), i))
    table = metrics.confusion(scores)[np.ix_(order, order)]
    classes = [classes[i] for i in order]
    totals = table.sum(axis=1, keepdims=True)
    share = table / np.maximum(totals, 1)
    n = len(classes)
    side = min(16.0, 2.6 + 0.42 * n)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    size = 8 if n <= 30 else 5
    axes.set_xticks(range(n), classes, rotation=45, ha="right", rotation_mode="anchor",
                    fontsize=size)
    axes.set_yticks(range(n), classes, fontsize=size)
    axes.set(xlabel="answer", ylabel="true class",
             title=f"{len(scores.names)} videos, video error {scores.video_error:.3f}")
    if n <= 30:
        for row, column in zip(*np.nonzero(table), strict=True):
            axes.text(column, row, str(table[row, column]), ha="center", va="center",
                      fontsize=size, color="white" if share[row, column] > 0.55 else "black")
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the class's videos")
    _save(figure, path)
