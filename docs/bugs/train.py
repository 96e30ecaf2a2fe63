"""What the bugs of `trace.inject` do to training: `python docs/bugs/train.py [NAME ...]`.

For each bug one or two small networks in which it matters learn a made-up task, with the right
gradient and with the wrong one, from the same weights and batches, for a few seeds. Prints the
numbers that the pages of this folder quote, and draws the curves into NAME.png beside this file.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import tensorlite as tl
from tensorlite import Tensor, trace

SEEDS, BATCH, TEST, EVERY = 5, 32, 1000, 10

Weights = dict[str, Tensor]
Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


class Task(NamedTuple):
    """A network, what it learns, for how long, and the bug."""

    bug: str
    title: str
    draw: Draw  # examples and their classes
    weights: Callable[[np.random.Generator], dict[str, np.ndarray]]
    network: Callable[[Weights, Tensor], Tensor]
    steps: int
    lr: float


def he(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    return rng.standard_normal(shape) * scale * np.sqrt(2 / np.prod(shape[:-1]))


# Points in two rings around (1, 1): what is inside, what is outside?


def rings(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    classes = rng.integers(0, 3, n)
    radius, angle = 0.5 + classes + 0.2 * rng.standard_normal(n), rng.uniform(0, 2 * np.pi, n)
    return 1 + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1), classes


WIDTH, BLOCKS = 16, 6


def residual_weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    weights = {"in": he(rng, 2, WIDTH), "in bias": np.zeros(WIDTH), "out": he(rng, WIDTH, 3)}
    for k in range(BLOCKS):
        weights |= {f"a{k}": he(rng, WIDTH, WIDTH), f"b{k}": he(rng, WIDTH, WIDTH, scale=0.3)}
    return weights


def residual(w: Weights, x: Tensor) -> Tensor:
    """h + F(h), six times."""
    h = tl.linear(x, w["in"], w["in bias"])
    for k in range(BLOCKS):
        h = h + tl.linear(tl.relu(tl.linear(h, w[f"a{k}"])), w[f"b{k}"])
    return tl.linear(h, w["out"])


def bias_weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"a": he(rng, 2, 32), "b": np.zeros(32), "c": he(rng, 32, 32), "d": np.zeros(32),
            "e": he(rng, 32, 3), "f": np.zeros(3)}


def with_biases(w: Weights, x: Tensor) -> Tensor:
    """Two hidden layers whose biases are added by themselves."""
    h = tl.relu(x @ w["a"] + w["b"])
    return tl.relu(h @ w["c"] + w["d"]) @ w["e"] + w["f"]


def norm_weights(layers: int) -> Callable[[np.random.Generator], dict[str, np.ndarray]]:
    def weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
        drawn = {"out": he(rng, 32, 3)}
        for k in range(layers):
            drawn |= {f"w{k}": he(rng, 32 if k else 2, 32), f"gamma{k}": np.ones(32),
                      f"beta{k}": np.zeros(32)}
        return drawn

    return weights


def normalised(w: Weights, x: Tensor) -> Tensor:
    """Hidden layers with a batch norm each. (A test is one large batch, whose own statistics do.)
    """
    for k in range(len(w) // 3):
        running = np.zeros(32, np.float32), np.ones(32, np.float32)
        x = tl.relu(tl.batch_norm(x @ w[f"w{k}"], w[f"gamma{k}"], w[f"beta{k}"], *running))
    return x @ w["out"]


# Small shapes somewhere in an image: which one is it?

SHAPES = np.array([[[1, 1, 1], [1, 0, 0], [1, 0, 0]], [[1, 1, 1], [0, 0, 1], [0, 0, 1]],
                   [[1, 0, 0], [1, 0, 0], [1, 1, 1]], [[0, 0, 1], [0, 0, 1], [1, 1, 1]]])


def shapes(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    classes = rng.integers(0, 4, n)
    images = 0.3 * rng.standard_normal((n, 10, 10, 1))
    for image, k, (i, j) in zip(images, classes, rng.integers(0, 8, (n, 2)), strict=True):
        image[i : i + 3, j : j + 3, 0] += SHAPES[k]
    return images, classes


def convolution_weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"a": he(rng, 3, 3, 1, 8), "b": he(rng, 3, 3, 8, 8), "c": he(rng, 3, 3, 8, 8),
            "out": he(rng, 8, 4)}


def convolutions(w: Weights, x: Tensor) -> Tensor:
    """Three convolutions that keep the size, and the largest value in the image."""
    for name in "abc":
        x = tl.relu(tl.conv2d(x, w[name], padding=1))
    return tl.linear(x.max((1, 2)), w["out"])


# A dot moves along a line: which way?


def moving(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    pixels, frames = 12, 4
    classes = rng.integers(0, 2, n)
    start, speed = rng.uniform(0, pixels, n), rng.uniform(0.5, 1.5, n) * (2 * classes - 1)
    where = start[:, None] + speed[:, None] * np.arange(frames)
    off = (np.arange(pixels) - where[..., None] + pixels / 2) % pixels - pixels / 2
    return np.exp(-off**2 / 2) + 0.1 * rng.standard_normal((n, frames, pixels)), classes


def temporal_weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"now": he(rng, 12, 4), "before": he(rng, 12, 4), "out": he(rng, 4, 2)}


def temporal(w: Weights, x: Tensor) -> Tensor:
    """relu(x_t A + x_{t-1} W), and the mean over frames."""
    h = tl.relu(tl.linear(x[:, 1:], w["now"]) + tl.linear(x[:, :-1], w["before"]))
    return tl.linear(h.mean(1), w["out"])


# Noise, but for the first step: what was shown there?


def recall(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    classes, x = rng.integers(0, 4, n), 0.5 * rng.standard_normal((n, 8, 4))
    x[np.arange(n), 0, classes] += 3
    return x, classes


def gru_weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"w_ih": rng.uniform(-0.25, 0.25, (4, 48)), "w_hh": rng.uniform(-0.25, 0.25, (16, 48)),
            "b_ih": np.zeros(48), "b_hh": np.zeros(48), "out": he(rng, 16, 4)}


def gru(w: Weights, x: Tensor) -> Tensor:
    """A GRU of 16 units, read after the last of 8 steps."""
    h = tl.gru(x, None, w["w_ih"], w["w_hh"], w["b_ih"], w["b_hh"])
    return tl.linear(h[:, -1], w["out"])


TASKS = {
    "no-accumulation": Task("no-accumulation", "six residual blocks, points in rings", rings,
                            residual_weights, residual, 400, 0.01),
    "same-frame": Task("same-frame", "a temporal layer of four units, which way a dot moves",
                       moving, temporal_weights, temporal, 300, 0.1),
    "same-frame-gru": Task("same-frame", "a GRU, what was shown 8 steps before", recall,
                           gru_weights, gru, 300, 0.1),
    "norm-means": Task("norm-means", "4 layers with batch norm, points in rings", rings,
                       norm_weights(4), normalised, 300, 0.05),
    "norm-means-deep": Task("norm-means", "24 layers with batch norm, points in rings", rings,
                            norm_weights(24), normalised, 300, 0.01),
    "broadcast": Task("broadcast", "two layers with biases, points in rings", rings, bias_weights,
                      with_biases, 300, 0.05),
    "padding": Task("padding", "three convolutions, small shapes in images", shapes,
                    convolution_weights, convolutions, 300, 0.05),
}


def train(task: Task, seed: int, bug: str | None) -> list[float]:
    """The error on test examples, in percent, before each `EVERY` steps and at the end."""
    rng = np.random.default_rng([seed, 0])
    w = {name: Tensor(a.astype(np.float32), requires_grad=True)
         for name, a in task.weights(rng).items()}
    optimizer = tl.optim.SGD(list(w.items()), lr=task.lr, momentum=0.9)
    test_x, test_classes = task.draw(np.random.default_rng([seed, 1]), TEST)
    errors = []

    def test() -> None:
        with tl.no_grad():
            scores = task.network(w, Tensor(test_x.astype(np.float32))).numpy()
        errors.append(100 * float((scores.argmax(1) != test_classes).mean()))

    for step in range(task.steps):
        if step % EVERY == 0:
            test()
        x, classes = task.draw(rng, BATCH)
        optimizer.zero_grad()
        with trace.inject(bug) if bug else contextlib.nullcontext():
            tl.cross_entropy(task.network(w, Tensor(x.astype(np.float32))), classes).backward()
        optimizer.step()
    test()
    return errors


def picture(path: Path, task: Task, right: np.ndarray, wrong: np.ndarray) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    steps = np.minimum(np.arange(right.shape[1]) * EVERY, task.steps)
    for curves, colour, dashes, label in ((right, "#0072B2", "-", "right gradient"),
                                          (wrong, "#D55E00", "--", "with the bug")):
        axes.plot(steps, curves.mean(0), dashes, color=colour, label=label)
        axes.fill_between(steps, curves.min(0), curves.max(0), color=colour, alpha=0.15)
    axes.set(xlabel="updates", ylabel="test error, %", ylim=(0, None),
             title=f"{task.bug}: {task.title}")
    axes.legend(title=f"mean and range of {len(right)} seeds")
    figure.savefig(path, dpi=110)


def main(names: list[str]) -> None:
    print(f"test error in percent, mean and range of {SEEDS} seeds")
    print(f"{'':16} {'updates':>7}   {'right gradient':22} with the bug")
    for name in names or TASKS:
        task = TASKS[name]
        right, wrong = (np.array([train(task, seed, bug) for seed in range(SEEDS)])
                        for bug in (None, task.bug))
        for at in (len(right[0]) // 6, len(right[0]) - 1):
            columns = [f"{c[:, at].mean():5.1f} ({c[:, at].min():.1f} to {c[:, at].max():.1f})"
                       for c in (right, wrong)]
            print(f"{name:16} {min(at * EVERY, task.steps):7}   {columns[0]:22} {columns[1]}",
                  flush=True)
        picture(Path(__file__).with_name(f"{name}.png"), task, right, wrong)


if __name__ == "__main__":
    main(sys.argv[1:])
