"""What is measured: the rows of the table, and the seeded arrays that every side computes with.

A row is plain data, so that it can be sent to the child processes. Its `job` names the function
that does it in each of the `on_*.py` modules; its `sides` are our engine and the opponents.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from recres.errors import InputError

Run = Callable[[], dict[str, Any]]  # one run of a side's part of a row, and what it computed
BATCH, SIZE, CLASSES = 8, 224, 101
LOSS_SCALE = 2.0**10  # with float16


class Side(NamedTuple):
    """An engine, and which of its ways to do a row."""

    engine: str
    variant: str = ""

    def __str__(self) -> str:
        return f"{self.engine} {self.variant}".rstrip()


OURS = Side("tensorlite")
PYTORCH = (Side("pytorch", "nchw"), Side("pytorch", "channels_last"))
# Batch norm folded into the convolutions: in eager mode, and in the graph that PyTorch freezes and
# hands to oneDNN.
FOLDED = tuple(Side("pytorch", f"{layout}_{how}") for layout in ("nchw", "channels_last")
               for how in ("fused", "frozen"))


class Tolerance(NamedTuple):
    """The largest difference allowed between two sides: of outputs, and of gradients. Over the
    largest value of the tensor; with `euclidean`, that of gradients is of the tensors' lengths."""

    outputs: float
    gradients: float
    euclidean: bool = False


# What float32 rounding does, measured on a Zen 3 against PyTorch in float64.
# Layers and inference: outputs ours 1.5e-6 at the most, PyTorch's 3.5e-6; gradients ours 6e-7,
# PyTorch's 1.0e-5, the weights' of the first convolution.
LAYER = Tolerance(5e-5, 5e-5)
# Training: outputs and running statistics ours 1.5e-6, PyTorch's 4.6e-6. Where rounding decides on
# which side of a ReLU's zero a value falls, whole gradients come or go, and single values differ by
# up to an eighth of the largest, in PyTorch too: so lengths are compared. Ours differ by 0.9 %,
# PyTorch's by 1.7 %. That both are the same program, to 1e-8 in float64, is for the tests to show.
TRAINING = Tolerance(5e-5, 5e-2, euclidean=True)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    job: "conv", "norm_relu", "gru" or "network". phase: "forward", "backward" or "both"; of a
    network "train" or "infer". shapes: of the arrays, channels last. options: what else the job
    needs. cost: seconds it takes, about, for the time left. dtype: of the arrays. precision: what
    a GPU computes products in, "float32", "tf32" or "float16"; with float16, weights and whatever
    belongs to channels stay in `dtype`.
    """

    name: str
    job: str
    phase: str
    shapes: dict[str, tuple[int, ...]]
    options: dict[str, Any]
    sides: tuple[Side, ...]
    tolerance: Tolerance
    cost: float
    dtype: str = "float32"
    precision: str = "float32"

    @property
    def activations(self) -> str:
        """The dtype of what flows through the network, gradients included."""
        return "float16" if self.precision == "float16" else self.dtype


# Every distinct convolution of ResNet-50 v1.5 at 224x224: the image's size (height and width),
# channels in and out, kernel, stride.
CONVOLUTIONS = (
    (224, 3, 64, 7, 2),
    (56, 64, 64, 1, 1), (56, 64, 64, 3, 1), (56, 64, 256, 1, 1), (56, 256, 64, 1, 1),
    (56, 256, 128, 1, 1), (56, 128, 128, 3, 2), (28, 128, 512, 1, 1), (56, 256, 512, 1, 2),
    (28, 512, 128, 1, 1), (28, 128, 128, 3, 1),
    (28, 512, 256, 1, 1), (28, 256, 256, 3, 2), (14, 256, 1024, 1, 1), (28, 512, 1024, 1, 2),
    (14, 1024, 256, 1, 1), (14, 256, 256, 3, 1),
    (14, 1024, 512, 1, 1), (14, 512, 512, 3, 2), (7, 512, 2048, 1, 1), (14, 1024, 2048, 1, 2),
    (7, 2048, 512, 1, 1), (7, 512, 512, 3, 1),
)


def conv(name: str, size: int, cin: int, cout: int, kernel: int, stride: int, phase: str,
         opponents: tuple[Side, ...], batch: int = BATCH) -> Row:
    """A convolution, padded by half its kernel; images (cin = 3) need no gradient."""
    padding = kernel // 2
    out = (size + 2 * padding - kernel) // stride + 1
    shapes: dict[str, tuple[int, ...]] = {
        "x": (batch, size, size, cin), "weight": (kernel, kernel, cin, cout),
        "grad": (batch, out, out, cout)}
    options = {"stride": stride, "padding": padding, "needs_dx": cin > 3}
    return Row(name, "conv", phase, shapes, options, (OURS, *opponents), LAYER, cost=10)


def norm_relu(size: int, channels: int, phase: str, batch: int = BATCH) -> Row:
    x = (batch, size, size, channels)
    shapes: dict[str, tuple[int, ...]] = {
        "x": x, "gamma": (channels,), "beta": (channels,), "grad": x}
    return Row(f"norm_relu_{size}x{size}_{channels}_{phase}", "norm_relu", phase, shapes, {},
               (OURS, *PYTORCH), LAYER, cost=10)


def network(name: str, phase: str, depth: int, batch: int = BATCH, context: int = 0,
            opponents: tuple[Side, ...] = PYTORCH, size: int = SIZE, width: int = 64) -> Row:
    """A whole ResNet v1.5; with `context` frames a chunk, the recurrent one that has an identity
    skip at block4 and classifies from the last frame."""
    frames = (context,) if context else ()
    shapes = {"x": (batch, *frames, size, size, 3)}
    options = {"depth": depth, "context": context, "width": width}
    tolerance, cost = (TRAINING, 90) if phase == "train" else (LAYER, 30)
    return Row(name, "network", phase, shapes, options, (OURS, *opponents), tolerance, cost)


def gru(name: str, batch: int, steps: int, features: int, hidden: int) -> Row:
    """The features come from a network that is not trained, and need no gradient."""
    shapes: dict[str, tuple[int, ...]] = {
        "x": (batch, steps, features), "w_ih": (features, 3 * hidden),
        "w_hh": (hidden, 3 * hidden), "b_ih": (3 * hidden,), "b_hh": (3 * hidden,),
        "grad": (batch, steps, hidden)}
    return Row(name, "gru", "both", shapes, {}, (OURS, Side("pytorch")), LAYER, cost=10)


ROWS = (
    network("resnet50_train_b8", "train", 50),
    network("resnet50_infer_b8", "infer", 50),
    network("resnet50_infer_folded_b8", "infer", 50, opponents=FOLDED),
    network("resnet50_infer_b1", "infer", 50, batch=1),
    network("resnet50_infer_folded_b1", "infer", 50, batch=1, opponents=FOLDED),
    network("rrn50_train_b4x2", "train", 50, batch=4, context=2),
    network("resnet18_train_b8", "train", 18),
    gru("gru128_32x19x2048", 32, 19, 2048, 128),
    *(norm_relu(*shape, phase) for shape in ((112, 64), (56, 256))
      for phase in ("forward", "backward")),
    *(conv(f"conv_{s}x{s}_{cin}_{cout}_k{kernel}_s{stride}_{phase}", s, cin, cout, kernel, stride,
           phase, PYTORCH)
      for s, cin, cout, kernel, stride in CONVOLUTIONS for phase in ("forward", "backward")),
    *(conv("_".join(["engines_conv_56x56_64_64_k3", *str(side).split()]), 56, 64, 64, 3, 1, "both",
           (side,))
      for side in (Side("mygrad"), Side("autograd"), Side("autograd", "by hand"))),
)


def select(patterns: Sequence[str], rows: Sequence[Row]) -> list[Row]:
    """The rows that have one of the names, or match it as a beginning or a glob, or all without a
    pattern; InputError for a pattern that no row matches."""
    names = [row.name for row in rows]
    chosen: set[str] = set()
    for pattern in patterns:
        found = [pattern] if pattern in names else [
            name for name in names
            if name.startswith(pattern) or fnmatch.fnmatchcase(name, pattern)]
        if not found:
            kinds = dict.fromkeys(name.partition("_")[0] for name in names)
            raise InputError(f"--only {pattern}: no such row; names begin with {', '.join(kinds)}")
        chosen.update(found)
    return [row for row in rows if not patterns or row.name in chosen]


def arrays(row: Row) -> dict[str, np.ndarray]:
    """What every side computes with: the row's arrays, of a network also its state and labels.

    Names of a state's arrays begin with "state.". The same float32 numbers for every dtype.
    """
    rng = np.random.default_rng(0)
    made: dict[str, np.ndarray] = {name: rng.standard_normal(shape, np.float32)
                                   for name, shape in row.shapes.items()}
    for name, values in made.items():
        if name in ("weight", "w_ih", "w_hh"):
            values *= np.float32(1 / math.sqrt(math.prod(values.shape[:-1])))
    if row.job == "norm_relu":
        # What is near zero is so after rounding.
        made["x"] = made["x"].astype(row.activations).astype(np.float32)
        made["gamma"] = 1 + made["gamma"].clip(-2, 2) / 4
        avoid_zero(made["x"], made["gamma"], made["beta"])
    if row.job == "network":
        from bench.on_tensorlite import model  # here: the opponents' processes do without it

        last = "norm3.gamma" if row.options["depth"] >= 50 else "norm2.gamma"
        for name, values in model(row).state_dict().items():
            # Away from zeros and ones, where many mistakes do not show.
            if name.endswith(("gamma", "beta", "running_mean", "running_var")):
                values += rng.uniform(-0.3, 0.3, values.shape).astype(np.float32)
            if name.endswith(last):  # branches weaker than the shortcut, as in a trained network:
                values *= np.float32(0.25)  # rounding then grows less from block to block
            made[f"state.{name}"] = values
    made = {name: values.astype(row.dtype, copy=False) for name, values in made.items()}
    if row.job == "network":
        made["labels"] = rng.integers(0, CLASSES, row.shapes["x"][0])
    return made


def avoid_zero(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> None:
    """Move what would come out of a batch norm so near zero that rounding decides its sign, and
    with it whether the ReLU lets the whole gradient through. (In place.)"""
    axes = tuple(range(x.ndim - 1))
    normed = gamma * ((x - x.mean(axes)) / x.std(axes)) + beta
    x += np.where(np.abs(normed) < 1e-3, np.float32(0.01), np.float32(0))


def phases(row: Row, forward: Callable[[], Any], gradients: Callable[..., dict[str, Any]]) -> Run:
    """A layer's forward, its backward alone, or both, by the row's phase.

    gradients(y, retain_graph=…) walks back from what forward made.
    """
    def both() -> dict[str, Any]:
        y = forward()
        return {"y": y, **gradients(y, retain_graph=False)}

    if row.phase == "backward":
        y = forward()
        return lambda: gradients(y, retain_graph=True)
    return both if row.phase == "both" else lambda: {"y": forward()}
