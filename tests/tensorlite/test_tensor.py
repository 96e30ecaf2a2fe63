"""Tensor: what it accepts, what it shows, and that its operators are the ops."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import Tensor, trace


def test_the_example_of_the_package():
    # Under another NumPy the dtype might be printed in another way; the numbers may not.
    assert doctest.testmod(tl).failed == 0
    assert doctest.testmod(tl).attempted == 5


def test_the_example_of_the_trace_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(trace).failed == 0
    assert (tmp_path / "flow.html").stat().st_size > 0


@pytest.mark.parametrize(("data", "dtype"), [
    (1.5, np.float32), ([1.0, 2.0], np.float32), ([[1, 2.5]], np.float32), (3, np.int64),
    ([1, 2], np.int64), (True, np.bool_), (np.float64(1), np.float64), (np.ones(2), np.float64),
    (np.ones(2, np.float32), np.float32), (np.ones(2, np.float16), np.float16),
    (np.arange(3, dtype=np.uint8), np.uint8), ([], np.float32),
])
def test_dtypes(data, dtype):
    assert Tensor(data).dtype == dtype


def test_dtype_is_applied_before_precision_is_lost():
    assert Tensor([0.1], dtype=np.float64).data[0] == 0.1
    assert Tensor(np.ones(2), dtype=np.float32).dtype == np.float32


def test_arrays_are_not_copied():
    array = np.ones(3)
    tensor = Tensor(array)
    assert tensor.data is array
    assert tensor.numpy() is array
    assert Tensor(tensor).data is array
    assert tensor.detach().data is array


@pytest.mark.parametrize(("data", "message"), [
    ("text", "data: expected an array of numbers, got ndarray of dtype <U4"),
    (None, "data: expected an array of numbers, got ndarray of dtype object"),
    (np.ones(2, complex), "data: expected an array of numbers, got ndarray of dtype complex128"),
    (type("Odd", (), {"dtype": "strange", "ndim": 1})(), "got Odd of dtype strange"),
])
def test_no_numbers(data, message: str):
    with pytest.raises(TypeError, match=message):
        Tensor(data)


@pytest.mark.parametrize("dtype", [complex, str, object])
def test_a_dtype_of_no_numbers(dtype):
    with pytest.raises(TypeError, match="data: expected an array of numbers, got ndarray of dtype"):
        Tensor([1.0], dtype=dtype)


def test_integers_have_no_gradient():
    with pytest.raises(TypeError, match="requires_grad: only a floating-point tensor .* int64"):
        Tensor([1, 2], requires_grad=True)


def test_shape_and_size():
    tensor = Tensor(np.zeros((2, 3, 4)))
    assert (tensor.shape, tensor.ndim, tensor.size, len(tensor)) == ((2, 3, 4), 3, 24, 2)
    assert tensor.device == "cpu"


def test_item():
    assert Tensor([[2.5]]).item() == 2.5
    assert isinstance(Tensor(3).item(), int)
    with pytest.raises(ValueError, match=r"item: expected .* one element, got shape \(2,\)"):
        Tensor([1.0, 2.0]).item()


def test_data_is_assigned_in_place_and_keeps_its_shape():
    tensor = Tensor(np.ones(2))
    array = tensor.data
    tensor.data += 1
    assert tensor.data is array
    tensor.data = np.array([5.0, 6.0])
    assert tensor.numpy().tolist() == [5.0, 6.0]
    with pytest.raises(ValueError, match=r"data: expected an array of shape \(2,\), got \(3,\)"):
        tensor.data = np.ones(3)
    with pytest.raises(ValueError, match=r"data: expected an array of shape \(2,\), got float"):
        tensor.data = 1.0


def test_data_stays_an_array_of_numbers_that_can_have_a_gradient():
    tensor = Tensor(np.ones(2, np.float32), requires_grad=True)
    tensor.data = Tensor(np.array([2.0, 3.0], np.float32))
    (tensor * tensor).sum().backward()
    assert type(tensor.data) is np.ndarray and tensor.grad.tolist() == [4.0, 6.0]
    with pytest.raises(TypeError, match="only a floating-point tensor can have a gradient"):
        tensor.data = np.ones(2, int)
    with pytest.raises(TypeError, match="data: expected an array of numbers"):
        tensor.data = np.array(["a", "b"])
    assert tensor.numpy().tolist() == [2.0, 3.0]
    scalar = Tensor(np.ones((), np.float32))
    scalar.data = scalar.data - np.float32(0.5)  # which NumPy makes no array of
    assert type(scalar.data) is np.ndarray


def test_repr():
    assert repr(Tensor([1.0, 2.0])) == "Tensor([1., 2.], float32)"
    assert repr(Tensor([1.0], requires_grad=True)) == "Tensor([1.], float32, requires_grad=True)"
    assert repr(Tensor([1.0], requires_grad=True) * 2) == "Tensor([2.], float32, node=multiply)"
    assert len(repr(Tensor(np.zeros((1000, 1000))))) < 600


def test_detach_cuts_the_tape():
    a = Tensor([2.0], requires_grad=True)
    (a * a.detach()).backward()
    assert a.grad.tolist() == [2.0]
    assert not a.detach().requires_grad


x, y = (np.random.default_rng(seed).uniform(0.5, 2, (3, 3)) for seed in (0, 1))

SPELLINGS = [
    (lambda a, b: a + b, tl.add), (lambda a, b: a - b, tl.subtract),
    (lambda a, b: a * b, tl.multiply), (lambda a, b: a / b, tl.divide),
    (lambda a, b: a**b, tl.power), (lambda a, b: a @ b, tl.matmul),
    (lambda a, b: -a, lambda a, b: tl.negative(a)),
    (lambda a, b: a.exp(), lambda a, b: tl.exp(a)), (lambda a, b: a.log(), lambda a, b: tl.log(a)),
    (lambda a, b: a.tanh(), lambda a, b: tl.tanh(a)),
    (lambda a, b: a.sigmoid(), lambda a, b: tl.sigmoid(a)),
    (lambda a, b: (a - b).relu(), lambda a, b: tl.relu(a - b)),
    (lambda a, b: a.sum(0, keepdims=True), lambda a, b: tl.sum(a, 0, True)),
    (lambda a, b: a.mean(1), lambda a, b: tl.mean(a, 1)),
    (lambda a, b: a.max((0, 1)), lambda a, b: tl.max(a)),
    (lambda a, b: a.reshape(9, -1), lambda a, b: tl.reshape(a, (9, 1))),
    (lambda a, b: a.reshape((9,)), lambda a, b: tl.reshape(a, 9)),
    (lambda a, b: a.transpose(), lambda a, b: tl.transpose(a)),
    (lambda a, b: a.transpose(1, 0), lambda a, b: tl.transpose(a, (1, 0))),
    (lambda a, b: a[1:, 0], lambda a, b: tl.index(a, (slice(1, None), 0))),
]


@pytest.mark.parametrize(("spelt", "op"), SPELLINGS)
def test_operators_and_methods_are_the_ops(spelt, op):
    a, b = Tensor(x, requires_grad=True), Tensor(y, requires_grad=True)
    one, two = spelt(a, b), op(a, b)
    assert one.node.function is two.node.function
    np.testing.assert_array_equal(one.numpy(), two.numpy())


@pytest.mark.parametrize("other", [2, 2.0, np.float32(2), x[0].astype(np.float32), [1.0, 2.0, 4.0]],
                         ids=["int", "float", "numpy scalar", "array", "list"])
@pytest.mark.parametrize("apply", [
    lambda a, b: a + b, lambda a, b: a - b, lambda a, b: a * b, lambda a, b: a / b,
    lambda a, b: a**b,
], ids="+-*/^")
def test_numbers_arrays_and_lists_on_either_side(apply, other):
    tensor = Tensor(y.astype(np.float32), requires_grad=True)
    plain = np.asarray(other, dtype=np.float32)
    for result, expected in ((apply(tensor, other), apply(tensor.data, plain)),
                             (apply(other, tensor), apply(plain, tensor.data))):
        assert isinstance(result, Tensor)
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result.numpy(), expected)


def test_matmul_with_an_array_on_the_left():
    result = x @ Tensor(y)
    assert isinstance(result, Tensor)
    np.testing.assert_allclose(result.numpy(), x @ y, rtol=1e-12)


def test_a_tensor_can_be_iterated_over():
    a = Tensor(np.arange(6.0).reshape(3, 2), requires_grad=True)
    rows = list(a)
    assert len(rows) == 3
    rows[1].sum().backward()
    assert a.grad.tolist() == [[0, 0], [1, 1], [0, 0]]
    with pytest.raises(TypeError, match=r"tensor of shape \(\) has no elements to iterate over"):
        list(Tensor(1.0))
