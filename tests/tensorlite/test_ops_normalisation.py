"""Batch normalisation: running statistics, modes, precision; and what it refuses."""

from __future__ import annotations

import re

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import Tensor


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def arguments(channels: int, dtype: type = np.float64) -> list:
    """gamma, beta, running mean and variance."""
    rng = np.random.default_rng(1)
    gamma, var = rng.uniform(0.5, 2, (2, channels)).astype(dtype)
    beta, mean = rng.standard_normal((2, channels)).astype(dtype)
    return [Tensor(gamma, requires_grad=True), Tensor(beta, requires_grad=True), mean, var]


@pytest.mark.parametrize("momentum", [0.1, 0.5, 1.0])
def test_running_statistics_move_towards_the_batch(momentum: float):
    x, (gamma, beta, mean, var) = 3 * draw(4, 3, 3, 2) + 5, arguments(2)
    expected = ((1 - momentum) * mean + momentum * x.mean((0, 1, 2)),
                (1 - momentum) * var + momentum * x.var((0, 1, 2), ddof=1))
    tl.batch_norm(Tensor(x), gamma, beta, mean, var, momentum=momentum)
    np.testing.assert_allclose((mean, var), expected, rtol=1e-12)  # updated in place


@pytest.mark.parametrize("mode", ["frozen", "eval"])
def test_other_modes_leave_the_running_statistics(mode: str):
    x, (gamma, beta, mean, var) = draw(4, 3, 3, 2), arguments(2)
    before = mean.copy(), var.copy()
    tl.batch_norm(Tensor(x, requires_grad=True), gamma, beta, mean, var, mode=mode).sum().backward()
    np.testing.assert_array_equal((mean, var), before)
    assert np.abs(gamma.grad).min() > 0


def test_a_later_update_of_the_running_statistics_does_not_reach_back():
    grads = []
    for change in (False, True):
        x, (gamma, beta, mean, var) = Tensor(draw(4, 2), requires_grad=True), arguments(2)
        y = tl.batch_norm(x, gamma, beta, mean, var, mode="frozen")
        if change:
            mean += 1
            var *= 2
        y.backward(draw(4, 2, seed=3))
        grads.append((x.grad, gamma.grad))
    np.testing.assert_array_equal(grads[0][0], grads[1][0])
    np.testing.assert_array_equal(grads[0][1], grads[1][1])


def test_two_batches_through_one_norm():
    """Each application keeps its own statistics: the trap of one saved mean per layer."""
    gamma, beta = draw(2, seed=1), draw(2, seed=2)

    def run(x1: Tensor, x2: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        mean, var = np.zeros(2), np.ones(2)
        return (tl.batch_norm(x1, gamma, beta, mean, var)
                * tl.batch_norm(x2, gamma, beta, mean, var))

    tl.gradcheck(run, [draw(5, 2), 3 * draw(5, 2, seed=3) + 1, gamma, beta])


def test_statistics_do_not_cancel_in_float32():
    """A mean a thousand times the spread: Σx² - (Σx)²/n would lose every digit."""
    x = (1000 + draw(16, 9, 9, 3)).astype(np.float32)
    gamma, beta, mean, var = arguments(3, np.float32)
    tl.batch_norm(Tensor(x), gamma, beta, mean, var, momentum=1.0)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(var, wide.var((0, 1, 2), ddof=1), rtol=1e-5)


def test_a_constant_channel():
    x, (gamma, beta, mean, var) = Tensor(np.full((4, 2), 3.0), requires_grad=True), arguments(2)
    y = tl.batch_norm(x, gamma, beta, mean, var)
    np.testing.assert_allclose(y.numpy(), np.broadcast_to(beta.data, (4, 2)), atol=1e-12)
    y.backward(draw(4, 2))
    assert np.isfinite(x.grad).all()


def test_errors_name_argument_and_shapes():
    x = Tensor(draw(4, 2))

    def refused(message: str, x: Tensor = x, mode: str = "train", **other) -> None:
        named = dict(zip(("gamma", "beta", "running_mean", "running_var"), arguments(2),
                         strict=True))
        with pytest.raises(ValueError, match=re.escape(message)):
            tl.batch_norm(x, **named | other, mode=mode)

    refused("gamma: expected shape (2,) for x of shape (4, 2), got (3,)", gamma=Tensor(np.ones(3)))
    refused("beta: expected shape (2,) for x of shape (4, 2), got ()", beta=Tensor(np.float64(1)))
    refused("running_mean: expected shape (2,) for x of shape (4, 2), got (1,)",
            running_mean=np.ones(1))
    refused("running_var: expected shape (2,)", running_var=np.ones(3))
    refused("mode: got 'training', expected one of train, frozen, eval", mode="training")
    refused("batch_norm: mode 'train' needs more than one value per channel, got x of shape (1, 2)",
            x=Tensor(draw(1, 2)))
    refused("batch_norm: mode 'train' needs more than one value per channel, got x of shape (0, 2)",
            x=Tensor(draw(0, 2)))


def test_dtypes_must_agree():
    with pytest.raises(TypeError, match="gamma: expected the dtype float32 of x, got float64"):
        tl.batch_norm(Tensor(draw(4, 2).astype(np.float32)), *arguments(2))
    with pytest.raises(TypeError, match="x: expected a floating-point tensor, got int64"):
        tl.batch_norm(Tensor([[1, 2]]), *arguments(2))
