"""The models through the CUDA kernels, on their emulator: logits and gradients in float64 are those
of the CPU."""

from __future__ import annotations

import numpy as np
import pytest

import tensorlite as tl
from recres.models import average_pooling, recurrent_resnet
from recres.models.sequence import SequenceModel
from tests.cuda_on_cpu.emulator import require_compiler
from tests.tensorlite.conftest import emulated

TOLERANCE = 1e-9  # of each array's largest value: sums are in another order
LABELS = np.array([0, 2])


def step(model, x, **arguments) -> dict[str, np.ndarray]:
    """Logits and gradients of a step in training mode; running statistics as they were before."""
    model.train().zero_grad()
    buffers = {name: array.copy() for name, array in model.named_buffers()}
    logits = model(tl.Tensor(x), **arguments)
    tl.cross_entropy(logits, LABELS).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.load_state_dict(buffers, strict=False)
    return {"logits": logits.data, **found}


def assert_same(model, x, **arguments) -> None:
    require_compiler()
    expected = step(model, x, **arguments)
    with emulated():
        found = step(model, x, **arguments)
    assert found.keys() == expected.keys() and len(found) >= 3
    for name, value in expected.items():
        assert np.abs(found[name] - value).max() <= TOLERANCE * np.abs(value).max(), name


@pytest.mark.parametrize(("skip", "options"), [
    ("identity", {"context": 3}), ("conv", {}), ("conv_nonlinear", {"readout": "mean"}),
    ("conv", {"recurrent_gradient": "same-frame"}), ("pure_temporal", {"context": 3}),
    ("none", {"readout": "mean"}), ("none", {"channels": 10}),
    ("identity", {"truncate": "block3", "freeze": "block1"})])
def test_recurrent_networks(skip, options):
    options = dict(options)
    freeze, channels = options.pop("freeze", None), options.get("channels", 3)
    model = recurrent_resnet(18, classes=3, skip=skip, width=4, rng=0, **options)
    if freeze:
        model.freeze(freeze)
    x = np.random.default_rng(1).normal(size=(2, model.context, 32, 32, channels))
    assert_same(model.to(dtype=np.float64), x)


def test_average_pooling():
    model = average_pooling(18, classes=3, context=3, width=4, rng=0).to(dtype=np.float64)
    assert_same(model, np.random.default_rng(1).normal(size=(2, 3, 32, 32, 3)))


@pytest.mark.parametrize("kind", ["avgpool", "gru", "lstm"])
def test_models_of_sequences(kind):
    rng = np.random.default_rng(2)
    model = SequenceModel(kind, 6, 3, units=5, rng=0)
    model.set_statistics(rng.normal(size=6), rng.uniform(0.5, 2, 6))
    assert_same(model.to(dtype=np.float64), rng.normal(size=(2, 4, 6)), lengths=np.array([4, 2]))
