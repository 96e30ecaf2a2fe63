"""The gradient checker fails on wrong gradients: what is built on it is worth what it is."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import Function, GradientError, Node, Tensor, gradcheck
from tensorlite.gradcheck import numerical_gradient


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def function(forward: Callable, backward: Callable) -> Callable[..., Tensor]:
    """``backward(grad, *inputs)`` is claimed to be the gradient of ``forward(*inputs)``."""

    class Claim(Function):
        @staticmethod
        def forward(ctx: Node, *arrays):
            ctx.save(*arrays)
            return forward(*arrays)

        @staticmethod
        def backward(ctx: Node, grad):
            return backward(grad, *ctx.saved)

    return Claim.apply


def off_in_one_element(grad: np.ndarray, x: np.ndarray) -> np.ndarray:
    dx = grad * np.cos(x)
    dx[1, 2] *= 1.001
    return dx


WRONG = {
    "by 0.1 %": lambda grad, x: 1.001 * grad * np.cos(x),
    "by 1e-5": lambda grad, x: (1 + 1e-5) * grad * np.cos(x),
    "in one element": off_in_one_element,
    "in sign": lambda grad, x: -grad * np.cos(x),
    "zero": lambda grad, x: 0 * grad,
    "nan": lambda grad, x: np.nan * grad,
    "for a constant cotangent right": lambda grad, x: grad.mean() * np.cos(x),
}


def test_a_right_gradient_is_accepted():
    sine = function(np.sin, lambda grad, x: grad * np.cos(x))
    assert 0 <= gradcheck(sine, [draw(3, 4)]) <= 1


@pytest.mark.parametrize("backward", WRONG.values(), ids=WRONG)
def test_a_wrong_gradient_is_rejected(backward: Callable):
    with pytest.raises(GradientError, match="gradient of input 0 at element"):
        gradcheck(function(np.sin, backward), [draw(3, 4)])


def test_the_message_names_input_element_and_values():
    wrong = function(lambda a, b: a * b, lambda grad, a, b: (
        grad * b, grad * a * (1 + (np.arange(6).reshape(2, 3) == 4))))
    with pytest.raises(GradientError) as caught:
        gradcheck(wrong, [draw(2, 3), draw(2, 3, seed=1)])
    message = str(caught.value)
    found = re.fullmatch(r"gradient of input 1 at element \(1, 1\): analytic (\S+), numeric (\S+), "
                         r"\S+ times what is tolerated", message)
    assert found, message
    assert float(found[1]) == pytest.approx(2 * float(found[2]), rel=1e-6)


def normalise(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(0)) / x.std(0)


def batch_norm_backward(grad: np.ndarray, x: np.ndarray) -> np.ndarray:
    y = normalise(x)
    return (grad - grad.mean(0) - y * (grad * y).mean(0)) / x.std(0)


def test_batch_norm_without_its_mean_terms_is_rejected():
    x = draw(6, 3)
    gradcheck(function(normalise, batch_norm_backward), [x])
    with pytest.raises(GradientError):
        gradcheck(function(normalise, lambda grad, x: grad / x.std(0)), [x])
    with pytest.raises(GradientError):
        gradcheck(function(normalise, lambda grad, x: (grad - grad.mean(0)) / x.std(0)), [x])


def test_a_forgotten_broadcast_sum_is_rejected():
    def first_row_only(grad: np.ndarray, x: np.ndarray, b: np.ndarray) -> tuple:
        return grad, grad[0]

    def summed(grad: np.ndarray, x: np.ndarray, b: np.ndarray) -> tuple:
        return grad, grad.sum(0)

    inputs = [draw(4, 3), draw(3, seed=1)]
    gradcheck(function(np.add, summed), inputs)
    with pytest.raises(GradientError, match="gradient of input 1"):
        gradcheck(function(np.add, first_row_only), inputs)


def test_an_input_that_gets_no_gradient_is_rejected_if_it_should():
    with pytest.raises(GradientError, match="gradient of input 0 .* analytic 0,"):
        gradcheck(lambda x, y: x.detach() * y, [draw(2), draw(2, seed=1)])
    gradcheck(lambda x, y: y * 2.0, [draw(2), draw(2, seed=1)])  # x does not matter: zero is right


def test_integer_inputs_are_passed_as_they_are():
    labels, seen = np.array([2, 0, 1]), []

    def run(logits: Tensor, labels: Tensor) -> Tensor:
        seen.append(labels.dtype)
        return tl.cross_entropy(logits, labels)

    gradcheck(run, [draw(3, 4), labels])
    assert set(seen) == {np.dtype(np.int64)}
    with pytest.raises(ValueError, match="inputs: none is of a floating-point dtype"):
        gradcheck(lambda x: x, [labels])


@pytest.mark.parametrize("x", [
    draw(3, 2).astype(np.float32), Tensor(draw(3, 2).astype(np.float32)), draw(2, 3).T,
    draw(6, 2)[::2], np.float64(0.5), draw(0, 3),
], ids=["float32", "tensor", "transposed", "strided", "scalar", "empty"])
def test_inputs_of_any_kind(x):
    kept = np.array(x.numpy() if isinstance(x, Tensor) else x)
    gradcheck(lambda x: x * x, [x])
    np.testing.assert_array_equal(x.numpy() if isinstance(x, Tensor) else x, kept)


def test_samples_limits_the_work_and_covers_each_input():
    calls = []

    def run(a: Tensor, b: Tensor) -> Tensor:
        calls.append(1)
        return a * b

    gradcheck(run, [draw(10, 10), draw(10, 10, seed=1)], samples=3)
    assert len(calls) == 1 + 2 * 3 * 4
    with pytest.raises(GradientError, match="gradient of input 1"):
        gradcheck(function(np.multiply, lambda grad, a, b: (grad * b, 2 * grad * a)),
                  [draw(10, 10), draw(10, 10, seed=1)], samples=3)


def test_the_function_must_return_a_float64_tensor():
    with pytest.raises(TypeError, match="function: expected it to return a Tensor, got ndarray"):
        gradcheck(lambda x: x.data, [draw(2)])
    with pytest.raises(TypeError, match="function: returned float32 for float64 inputs"):
        gradcheck(lambda x: Tensor(x.data, dtype=np.float32), [draw(2)])


def test_numerical_gradient_is_good_to_ten_digits():
    x = draw(3, 4)
    before = x.copy()
    gradient = numerical_gradient(lambda: float(np.sin(x).sum()), x)
    np.testing.assert_allclose(gradient, np.cos(x).ravel(), rtol=1e-9, atol=1e-11)
    np.testing.assert_array_equal(x, before)
    some = numerical_gradient(lambda: float(np.sin(x).sum()), x, where=[5, 2])
    np.testing.assert_array_equal(some, gradient[[5, 2]])
    with pytest.raises(ValueError, match="array: must be contiguous"):
        numerical_gradient(lambda: 0.0, x.T)


@pytest.mark.parametrize("one", [Tensor(np.ones(3)), np.ones((1, 3)), Tensor(2.0)])
def test_one_array_is_no_sequence_of_inputs(one):
    with pytest.raises(TypeError, match="inputs: expected a sequence of tensors or arrays, got "):
        gradcheck(lambda x: x * x, one)


@pytest.mark.parametrize("samples", [0, -1])
def test_no_samples_would_pass_anything(samples: int):
    with pytest.raises(ValueError, match=f"samples: expected an int >= 1, got {samples}"):
        gradcheck(lambda x: x * x, [draw(3)], samples=samples)
