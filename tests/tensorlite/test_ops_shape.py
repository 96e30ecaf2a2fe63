"""Ops that move elements: repeated indices, keys of every kind, errors."""

from __future__ import annotations

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import Tensor


def ones(*shape: int) -> Tensor:
    return Tensor(np.ones(shape), requires_grad=True)


def test_an_element_taken_several_times_gets_the_sum():
    x = ones(4)
    x[[1, 1, 3, 1]].backward(np.array([1.0, 2.0, 4.0, 8.0]))
    assert x.grad.tolist() == [0, 11, 0, 4]


@pytest.mark.parametrize("key", [
    0, -1, np.int64(1), slice(None, None, -1), ..., None, (slice(None), None, 1), [2, 0],
    ([0, 1], [2, 2]), (slice(None), [1, 1]), True, np.array([[0, 1], [1, 1]]),
], ids=str)
def test_every_kind_of_key(key):
    x = np.random.default_rng(0).standard_normal((3, 3))
    np.testing.assert_array_equal(Tensor(x)[key].numpy(), x[key])
    tl.gradcheck(lambda x: x[key], [x])


def test_a_tensor_as_key():
    x = ones(3)
    assert x[Tensor([2, 0])].shape == (2,)
    x[Tensor([2, 0]), ].sum().backward()
    assert x.grad.tolist() == [1, 0, 1]


def test_index_out_of_bounds():
    with pytest.raises(IndexError, match="index 3 is out of bounds for axis 0 with size 3"):
        _ = ones(3)[3]


def test_reshape_errors():
    assert ones(2, 3).reshape(np.int64(6)).shape == (6,)
    for shape in ((4,), (-1, 4), (-1, -1), (2.0, 3)):
        with pytest.raises(ValueError) as caught:
            tl.reshape(ones(2, 3), shape)
        assert str(caught.value) == f"reshape: a tensor of shape (2, 3) cannot become {shape}"


def test_transpose_errors():
    for axes in ((0,), (0, 0), (0, 2), (0, -3), 1):
        with pytest.raises(ValueError, match=r"transpose: axes .* is no order of the 2 axes of a "
                                             r"tensor of shape \(2, 3\)"):
            tl.transpose(ones(2, 3), axes)
    assert tl.transpose(ones(3), 0).shape == tl.transpose(ones(3), np.int64(0)).shape == (3,)


def test_any_sequence_of_tensors_is_joined():
    rows = ones(2, 3)
    assert tl.concatenate(row for row in rows).shape == tl.concatenate(rows).shape == (6,)
    assert tl.stack(row for row in rows).shape == tl.stack(rows).shape == (2, 3)


def test_concatenate_errors():
    with pytest.raises(ValueError, match="concatenate: needs at least one tensor, got none"):
        tl.concatenate([])
    with pytest.raises(ValueError, match=r"concatenate: axis 2 is out of range for shape \(2, 3\)"):
        tl.concatenate([ones(2, 3)], 2)
    with pytest.raises(ValueError, match=r"concatenate: tensor 1 has shape \(2, 4\), which differs "
                                         r"from \(2, 3\) outside axis 0"):
        tl.concatenate([ones(2, 3), ones(2, 4)])


def test_stack_errors():
    with pytest.raises(ValueError, match="stack: needs at least one tensor, got none"):
        tl.stack([])
    with pytest.raises(ValueError, match="stack: axis 3 is out of range for a result with 3 axes"):
        tl.stack([ones(2, 3)], 3)
    with pytest.raises(ValueError, match=r"stack: tensor 1 has shape \(2, 4\), expected \(2, 3\)"):
        tl.stack([ones(2, 3), ones(2, 4)])


@pytest.mark.parametrize("widths", [[(1, 1)], [(1, 1), (0, -1)], [1, 2], [(1, 1, 1), (0, 0)],
                                    [(0.5, 0), (0, 0)], []])
def test_pad_errors(widths):
    with pytest.raises(ValueError, match="pad: expected a pair of widths >= 0 for each of 2 axes"):
        tl.pad(ones(2, 3), widths)


def test_integers_are_not_padded_with_a_fraction():
    assert tl.pad(Tensor([1, 2]), [(1, 0)], 3.0).numpy().tolist() == [3, 1, 2]
    for value in (0.5, np.nan, np.inf):
        with pytest.raises(ValueError, match=f"value: got {value}, which a tensor of int64 cannot"):
            tl.pad(Tensor([1, 2]), [(1, 0)], value)
