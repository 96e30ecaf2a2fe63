"""The PyTorch networks of the benchmarks are ours: in float64 both sides differ by rounding alone,
and the convolutions that are listed are those that ResNet-50 runs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import tensorlite as tl
from bench import on_tensorlite, rows
from bench.cpu import compare
from bench.rows import OURS, PYTORCH, Row, Side, Tolerance
from recres.models import resnet50

FOLDED = (Side("pytorch", "nchw_fused"), Side("pytorch", "channels_last_fused"))


def results(engine, side: Side, row: Row) -> dict[str, np.ndarray]:
    """What a side computes, in this process."""
    run = engine.build(row, side.variant, 1, iter(rows.arrays(row).items()))
    return {name: np.array(engine.to_numpy(name, value)) for name, value in run().items()}


def check(row: Row, sides: tuple[Side, ...]) -> None:
    from bench import on_pytorch

    row = dataclasses.replace(row, dtype="float64")
    ours = results(on_tensorlite, OURS, row)
    for side in sides:
        theirs = results(on_pytorch, side, row)
        assert all(array.dtype == np.float64 for array in theirs.values())
        compare(ours, theirs.items(), side, Tolerance(1e-8, 1e-8))


# PyTorch's own modules for it use what is deprecated in PyTorch.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("phase", "depth", "context", "sides"),
    [("train", 18, 0, PYTORCH), ("train", 50, 0, PYTORCH), ("train", 50, 2, PYTORCH),
     ("train", 18, 3, PYTORCH), ("infer", 50, 0, PYTORCH), ("infer", 50, 0, FOLDED),
     ("infer", 18, 2, PYTORCH)],
)
def test_networks_are_the_same_program(phase, depth, context, sides):
    pytest.importorskip("torch")
    check(rows.network("tiny", phase, depth, 4, context, size=64, width=4), sides)


@pytest.mark.parametrize("phase", ["forward", "backward", "both"])
@pytest.mark.parametrize("row", [
    rows.conv("conv", 9, 4, 5, 3, 2, "", PYTORCH, batch=2),
    rows.conv("image", 8, 3, 5, 7, 2, "", PYTORCH, batch=2),
    rows.norm_relu(5, 6, ""),
    rows.gru("gru", 3, 4, 5, 6),
], ids=lambda row: row.name)
def test_layers_are_the_same_program(row, phase):
    pytest.importorskip("torch")
    check(dataclasses.replace(row, phase=phase), row.sides[1:])


def test_the_listed_convolutions_are_those_of_the_network():
    seen = set()

    class Collect(tl.Observer):
        def forward(self, node, output):
            if node.name == "conv2d":
                x, weight = node.inputs[:2]
                kernel, _, cin, cout = weight.shape
                seen.add((x.shape[1], cin, cout, kernel, node.options["stride"][0]))
                assert output.shape[1:3] == (-(-x.shape[1] // node.options["stride"][0]),) * 2

    # Where the engine joins convolutions with what follows them, it is told not to.
    simple = tl.unfused
    with tl.no_grad(), tl.observe(Collect()), simple():
        resnet50(3, version="v1.5", rng=0)(tl.Tensor(np.zeros((1, 224, 224, 3), np.float32)))
    assert seen == set(rows.CONVOLUTIONS)
    assert len(rows.CONVOLUTIONS) == len(seen)
