"""Classifiers of feature sequences: their equations, and what must and must not matter to them."""

from __future__ import annotations

import re

import numpy as np
import pytest

from recres.models.sequence import KINDS, SequenceModel
from tensorlite import Tensor, cross_entropy, optim

LENGTHS = np.array([4, 1, 6])
RECURRENT = KINDS[1:]


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def make(kind: str, z_norm: bool = True) -> SequenceModel:
    """A model of 5 features, 3 classes and 4 units in float64, with weights that matter."""
    model = SequenceModel(kind, 5, 3, units=4, rng=0).to(dtype=np.float64)
    for i, p in enumerate(model.parameters()):
        p.data = draw(*p.shape, seed=10 + i)
    if z_norm:
        model.set_statistics(draw(5, seed=1), np.abs(draw(5, seed=2)) + 0.5)
    return model


def sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


def reference(model: SequenceModel, frames: np.ndarray) -> np.ndarray:
    """The logits of one video (n, F), frame by frame."""
    weights = {name: p.data for name, p in model.named_parameters()}
    frames = [(x - model.mean) * model.scale for x in frames]
    if model.kind == "avgpool":
        vector = sum(frames) / len(frames)
    else:
        w_x, w_h, b_x, b_h = (weights[f"recurrent.{n}"] for n in ("w_ih", "w_hh", "b_ih", "b_hh"))
        vector, cell = np.zeros(4), np.zeros(4)
        for x in frames:
            from_x, from_h = x @ w_x + b_x, vector @ w_h + b_h
            if model.kind == "gru":
                r, z = np.split(sigmoid(from_x[:8] + from_h[:8]), 2)
                vector = (1 - z) * np.tanh(from_x[8:] + r * from_h[8:]) + z * vector
            else:
                i, f, g, o = np.split(from_x + from_h, 4)
                cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
                vector = sigmoid(o) * np.tanh(cell)
    return vector @ weights["fc.weight"] + weights["fc.bias"]


@pytest.mark.parametrize("z_norm", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_its_equations(kind: str, z_norm: bool):
    model, x = make(kind, z_norm), draw(3, 6, 5)
    expected = [reference(model, video[:n]) for video, n in zip(x, LENGTHS, strict=True)]
    np.testing.assert_allclose(model(Tensor(x), LENGTHS).numpy(), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_never_matters(kind: str):
    """Neither to the logits nor to any gradient: not what it holds, nor how much there is."""
    results = []
    for junk, more in ((0.0, 0), (100.0, 0), (-3.0, 5)):
        x = np.pad(draw(3, 6, 5), ((0, 0), (0, more), (0, 0)))
        for video, length in zip(x, LENGTHS, strict=True):
            video[length:] = junk
        model, inputs = make(kind), Tensor(x, requires_grad=True)
        logits = model(inputs, LENGTHS)
        cross_entropy(logits, np.array([0, 1, 2])).backward()
        for grad, length in zip(inputs.grad, LENGTHS, strict=True):
            assert grad[:length].all() and not grad[length:].any()
        results.append([logits.numpy(), inputs.grad[:, :6], *(p.grad for p in model.parameters())])
    for values in zip(*results, strict=True):
        for other in values[1:]:
            np.testing.assert_allclose(values[0], other, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_order_matters_to_those_that_have_a_state(kind: str):
    model, x = make(kind), draw(1, 6, 5)
    forwards, backwards = (model(Tensor(a), np.array([6])).numpy() for a in (x, x[:, ::-1]))
    if kind == "avgpool":
        np.testing.assert_allclose(forwards, backwards, rtol=1e-12)
    else:
        assert np.abs(forwards - backwards).max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_trained_and_no_statistic(kind: str):
    model = SequenceModel(kind, 5, 3, units=4, rng=0)
    cross_entropy(model(Tensor(draw(3, 6, 5).astype(np.float32)), LENGTHS),
                  np.array([0, 1, 2])).backward()
    names = [name for name, _ in model.named_parameters()]
    weights = [f"recurrent.{n}" for n in ("w_ih", "w_hh", "b_ih", "b_hh")]
    assert names == weights * (kind != "avgpool") + ["fc.weight", "fc.bias"]
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.any(), name


def test_statistics_are_saved_with_the_model_and_used():
    mean, deviation = draw(5, seed=1), np.abs(draw(5, seed=2)) + 0.5
    model, other = make("gru"), make("gru", z_norm=False)
    x = draw(3, 6, 5)
    np.testing.assert_allclose(other(Tensor((x - mean) / deviation), LENGTHS).numpy(),
                               model(Tensor(x), LENGTHS).numpy(), rtol=1e-5)
    other.load_state_dict(model.state_dict())
    np.testing.assert_array_equal(other(Tensor(x), LENGTHS).numpy(),
                                  model(Tensor(x), LENGTHS).numpy())


@pytest.mark.parametrize("deviation", [0.0, 1e-320, 1e-39])
def test_a_feature_that_never_varied_says_nothing(deviation: float):
    model = SequenceModel("avgpool", 3, 2, rng=0)
    model.set_statistics([1.0, 2.0, 3.0], [0.5, deviation, 0.25])
    np.testing.assert_array_equal(model.scale, np.array([2, 0, 4], np.float32))
    x = np.ones((1, 2, 3), np.float32)
    logits = model(Tensor(x), np.array([2])).numpy()
    x[..., 1] = 1e30
    np.testing.assert_array_equal(model(Tensor(x), np.array([2])).numpy(), logits)
    assert np.isfinite(logits).all()


def order_task() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """48 sequences of uneven length and, as another class, each of them in reverse."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 9, 48)
    x = np.zeros((2, 48, 8, 3), np.float32)
    for i, n in enumerate(lengths):
        x[0, i, :n] = rng.standard_normal((n, 3)) / 2 + np.linspace(0, 2, n)[:, None]
        x[1, i, :n] = x[0, i, :n][::-1]
    return x.reshape(96, 8, 3), np.tile(lengths, 2), np.repeat([0, 1], 48)


@pytest.mark.parametrize("kind", KINDS)
def test_order_is_learned_by_those_that_have_a_state(kind: str):
    x, lengths, labels = order_task()
    model = SequenceModel(kind, 3, 2, units=8, rng=0)
    optimizer = optim.Adam(model.named_parameters(), lr=0.02)
    for _ in range(80):
        optimizer.zero_grad()
        logits = model(Tensor(x), lengths)
        loss = cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
    error = (logits.numpy().argmax(axis=1) != labels).mean()
    if kind == "avgpool":  # a sequence and its reverse have one mean: no better than a coin
        assert loss.item() >= np.log(2) - 1e-6
    else:
        assert error < 0.05 and loss.item() < 0.2


def test_errors_name_argument_and_shapes():
    def refused(message: str, x=(2, 4, 5), lengths=(4, 2)):
        for kind in KINDS:
            with pytest.raises(ValueError, match=re.escape(message)):
                make(kind)(Tensor(draw(*x)), np.array(lengths))

    refused("x: expected sequences (B, T, 5), got shape (4, 5)", x=(4, 5))
    refused("x: expected sequences (B, T, 5), got shape (2, 4, 6)", x=(2, 4, 6))
    refused("lengths: expected 2 integers, got int64 of shape (3,)", lengths=(1, 2, 3))
    refused("lengths: expected 2 integers, got float64 of shape (2,)", lengths=(1.0, 2.0))
    refused("lengths: expected values in [1, 4], got 0 to 4", lengths=(4, 0))
    refused("lengths: expected values in [1, 4], got 2 to 5", lengths=(5, 2))


@pytest.mark.parametrize(("options", "message"), [
    ({"kind": "rnn"}, "kind: got 'rnn', expected one of avgpool, gru, lstm"),
    ({"features": 0}, "features: expected an integer >= 1, got 0"),
    ({"classes": 2.5}, "classes: expected an integer >= 1, got 2.5"),
    ({"units": -1}, "units: expected an integer >= 1, got -1"),
])
def test_options_that_make_no_model(options: dict, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        SequenceModel(**{"kind": "gru", "features": 5, "classes": 3} | options)


@pytest.mark.parametrize(("mean", "deviation", "message"), [
    ([0.0, np.nan], [1.0, 1.0], "expected finite means and finite deviations >= 0"),
    ([0.0, 0.0], [1.0, np.inf], "expected finite means and finite deviations >= 0"),
    ([0.0, 0.0], [1.0, -1.0], "expected finite means and finite deviations >= 0"),
    ([0.0] * 3, [1.0] * 3, "mean has shape (3,), expected (2,)"),
    ([0.0] * 2, [1.0], "scale has shape (1,), expected (2,)"),
])
def test_statistics_that_fit_no_model(mean: list, deviation: list, message: str):
    model = SequenceModel("avgpool", 2, 2)
    with pytest.raises(ValueError, match=re.escape(message)):
        model.set_statistics(mean, deviation)
    assert not model.mean.any() and (model.scale == 1).all()


def test_a_seed_gives_the_model():
    for kind in KINDS:
        one, same, other = (SequenceModel(kind, 5, 3, rng=s).state_dict() for s in (1, 1, 2))
        assert all(np.array_equal(one[name], same[name]) for name in one)
        assert not np.array_equal(one["fc.weight"], other["fc.weight"])
    assert SequenceModel("gru", 5, 3).recurrent.hidden == 128
