"""Elementwise ops where the table of `op_cases` does not look: edges, extremes, dropout, errors."""

from __future__ import annotations

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import Tensor
from tensorlite.ops.elementwise import unbroadcast


def leaf(*values: float) -> Tensor:
    return Tensor(np.array(values), requires_grad=True)


@pytest.mark.parametrize("op", [tl.add, tl.subtract, tl.multiply, tl.divide, tl.power])
def test_shapes_that_do_not_broadcast(op):
    with pytest.raises(ValueError, match=rf"^{op.__name__}: shapes \(2, 3\) and \(4,\) do not"):
        op(Tensor(np.ones((2, 3))), Tensor(np.ones(4)))


def test_inputs_of_two_plain_numbers():
    assert tl.add(1.0, 2.0).item() == 3.0
    assert tl.multiply(3.0, [1.0, 2.0]).numpy().tolist() == [3.0, 6.0]


def test_a_fraction_does_not_become_an_integer():
    assert (Tensor([1, 2]) * 0.5).numpy().tolist() == [0.5, 1.0]
    assert (Tensor([1, 2]) + 1).dtype == np.int64


def test_a_number_does_not_become_a_truth_value():
    mask = Tensor([True, False])
    for result, expected in ((mask * 3, [3, 0]), (2 + mask, [3, 2]), (1 - mask, [0, 1])):
        assert (result.dtype, result.numpy().tolist()) == (np.int64, expected)
    assert (mask * True).dtype == bool


@pytest.mark.parametrize(("shape", "expected"), [
    ((2, 3), [[1, 2, 3], [4, 5, 6]]), ((3,), [5, 7, 9]), ((1, 3), [[5, 7, 9]]),
    ((2, 1), [[6], [15]]), ((1, 1), [[21]]), ((), 21),
])
def test_unbroadcast(shape, expected):
    grad = np.arange(1.0, 7.0).reshape(2, 3)
    result = unbroadcast(grad, shape)
    assert result.shape == shape
    np.testing.assert_array_equal(result, expected)


def test_one_number_against_many():
    scale = Tensor(np.array(2.0), requires_grad=True)
    (Tensor(np.arange(6.0).reshape(2, 3)) * scale).sum().backward()
    assert scale.grad.shape == ()
    assert scale.grad == 15


def test_sigmoid_and_tanh_do_not_overflow():
    x = leaf(-1e4, -1e2, 0, 1e2, 1e4)
    y = tl.sigmoid(x)
    np.testing.assert_allclose(y.numpy(), [0, 0, 0.5, 1, 1], atol=1e-15)
    y.sum().backward()
    np.testing.assert_allclose(x.grad, [0, 0, 0.25, 0, 0], atol=1e-15)
    np.testing.assert_array_equal(tl.tanh(x).numpy(), [-1, -1, 0, 1, 1])


def test_a_small_sigmoid_is_exact():
    x = np.array([-80.0, -30.0, -9.0, 0.0, 9.0], np.float32)
    expected = 1 / (1 + np.exp(-x.astype(np.float64)))
    np.testing.assert_allclose(tl.sigmoid(Tensor(x)).numpy(), expected, rtol=3e-7)
    for dtype in (np.uint8, np.int8, bool):
        x = np.array([0, 1, 128]).astype(dtype)
        np.testing.assert_allclose(tl.sigmoid(Tensor(x)).numpy(),
                                   1 / (1 + np.exp(-x.astype(np.float64))), rtol=1e-15)


@pytest.mark.parametrize(("dtype", "value"), [(np.float32, 1e-25), (np.float32, 1e25),
                                              (np.float16, 300.0)])
def test_gradient_of_a_quotient_where_the_square_is_out_of_range(dtype, value: float):
    a, b = (Tensor(np.array([value], dtype), requires_grad=True) for _ in range(2))
    (a / b).backward()
    np.testing.assert_allclose(b.grad, -1 / b.numpy(), rtol=1e-3)


def test_relu_at_zero_and_nan():
    x = leaf(-1.0, 0.0, -0.0, 2.0, np.nan)
    y = tl.relu(x)
    np.testing.assert_array_equal(y.numpy(), [0, 0, 0, 2, np.nan])
    y.backward(np.ones(5))
    np.testing.assert_array_equal(x.grad[:4], [0, 0, 0, 1])


@pytest.mark.parametrize(("exponent", "slope"), [(0, 0), (1, 1), (2, 0), (3, 0)])
def test_power_at_zero(exponent: int, slope: float):
    x = leaf(0.0)
    (x**exponent).backward()
    assert x.grad.tolist() == [slope]


def test_power_of_a_negative_number():
    tl.gradcheck(lambda x: x**3, [np.array([-2.0, -0.5, 1.5])])
    tl.gradcheck(lambda x: x**-2, [np.array([-2.0, -0.5, 1.5])])


def test_zero_to_a_variable_power():
    exponent = leaf(2.0)
    (Tensor(np.zeros(1)) ** exponent).backward()
    assert exponent.grad.tolist() == [0.0]
    exponent = leaf(-1.0)
    with np.errstate(divide="ignore"):
        (Tensor(np.zeros(1)) ** exponent).backward()
    assert exponent.grad.tolist() == [-np.inf]


def test_number_to_a_variable_power():
    tl.gradcheck(lambda x: 2.0**x, [np.array([-1.0, 0.0, 2.5])])


def test_dropout_out_of_training_is_the_tensor_itself():
    x = leaf(1.0, 2.0)
    assert tl.dropout(x, 0.5, training=False) is x
    assert tl.dropout(x, 0, training=True) is x


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_dropout_keeps_its_share_and_the_mean(p: float):
    x = Tensor(np.ones(100_000, np.float32), requires_grad=True)
    y = tl.dropout(x, p, rng=np.random.default_rng(0))
    values = y.numpy()
    kept = values != 0
    deviation = np.sqrt(p * (1 - p) / x.size)
    assert abs(kept.mean() - (1 - p)) < 4 * deviation
    np.testing.assert_allclose(values[kept], 1 / (1 - p), rtol=1e-6)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, values)


def test_dropout_draws_from_its_generator():
    x = Tensor(np.ones(100))
    masks = [tl.dropout(x, 0.5, rng=rng).numpy()
             for rng in (np.random.default_rng(1), np.random.default_rng(1))]
    np.testing.assert_array_equal(*masks)
    rng = np.random.default_rng(1)
    tl.dropout(x, 0.5, rng=rng)
    assert (tl.dropout(x, 0.5, rng=rng).numpy() != masks[0]).any()


def test_dropout_errors():
    for p in (-0.1, 1, 1.5):
        with pytest.raises(ValueError, match=rf"p: expected a probability in \[0, 1\), got {p}"):
            tl.dropout(leaf(1.0), p, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="rng: dropout in training needs a numpy.random.Generator"):
        tl.dropout(leaf(1.0), 0.5)
    with pytest.raises(ValueError, match=r"rng: .* needs a numpy.random.Generator, got 7"):
        tl.dropout(leaf(1.0), 0.5, rng=7)
    with pytest.raises(TypeError, match="x: expected a floating-point tensor, got int64"):
        tl.dropout(Tensor([1, 2]), 0.5, rng=np.random.default_rng(0))
