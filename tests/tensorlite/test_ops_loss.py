"""The cross-entropy: extreme logits, gradients that must add up to zero, errors."""

from __future__ import annotations

import re

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import Tensor


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logits_of_ten_thousand(dtype):
    logits = Tensor(np.array([[1e4, -1e4, 0], [-1e4, 1e4, 0], [1e4, 1e4, -1e4]], dtype),
                    requires_grad=True)
    losses = tl.cross_entropy(logits, [0, 0, 1], reduction="none")
    np.testing.assert_allclose(losses.numpy(), [0, 2e4, np.log(2)], rtol=1e-6)
    losses.sum().backward()
    np.testing.assert_allclose(logits.grad, [[0, 0, 0], [-1, 1, 0], [0.5, -0.5, 0]], atol=1e-6)
    for op in (tl.softmax, tl.log_softmax):
        assert np.isfinite(op(logits).numpy()).all()
    np.testing.assert_allclose(tl.softmax(logits).numpy().sum(1), 1, rtol=1e-6)


def test_a_shift_of_the_logits_changes_nothing():
    logits = np.random.default_rng(0).standard_normal((5, 4))
    one, two = (tl.cross_entropy(Tensor(x), [0, 1, 2, 3, 0]).item()
                for x in (logits, logits + 100))
    assert one == pytest.approx(two, rel=1e-12)


def test_gradient_of_a_row_adds_up_to_zero():
    logits = Tensor(np.random.default_rng(0).standard_normal((5, 4)), requires_grad=True)
    tl.cross_entropy(logits, np.array([3, 1, 2, 0, 3])).backward()
    np.testing.assert_allclose(logits.grad.sum(1), 0, atol=1e-16)
    assert (logits.grad < 0).sum() == 5


def test_labels_as_list_array_or_tensor():
    logits = Tensor(np.random.default_rng(0).standard_normal((3, 4)))
    losses = [tl.cross_entropy(logits, labels).item()
              for labels in ([1, 0, 3], np.array([1, 0, 3], np.uint8), Tensor([1, 0, 3]))]
    assert len(set(losses)) == 1


def refused(error: type[Exception], message: str, shape=(3, 4), labels=(0, 1, 2), **options):
    with pytest.raises(error, match=re.escape(message)):
        tl.cross_entropy(Tensor(np.ones(shape)), np.array(labels), **options)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64, bool])
def test_logits_of_integers_are_those_of_their_values(dtype):
    logits = np.array([[0, 100, 1], [1, 0, 0]]).astype(dtype)
    for op in (tl.softmax, tl.log_softmax, lambda x: tl.cross_entropy(x, [0, 2])):
        np.testing.assert_array_equal(op(Tensor(logits)).numpy(),
                                      op(Tensor(logits.astype(np.float64))).numpy())


def test_errors_name_argument_and_values():
    refused(ValueError, "cross_entropy: expected logits (N, classes) and labels (N,), got (3, 4) "
                        "and (2,)", labels=(0, 1))
    refused(ValueError, "got (4,) and (3,)", shape=(4,))
    refused(TypeError, "labels: expected integers, got float64", labels=(0.0, 1.0, 2.0))
    refused(ValueError, "labels: expected values in [0, 4), got 4", labels=(0, 4, 1))
    refused(ValueError, "labels: expected values in [0, 4), got -1", labels=(0, -1, 9))
    refused(ValueError, "reduction: got 'max', expected one of mean, sum, none", reduction="max")
    refused(ValueError, "cross_entropy: the mean over an empty batch is not defined", shape=(0, 4),
            labels=np.zeros(0, int))
    for op in (tl.softmax, tl.log_softmax):
        for shape in ((), (2, 0)):
            with pytest.raises(ValueError) as caught:
                op(Tensor(np.ones(shape)))
            assert str(caught.value) == (f"{op.__name__}: expected a class or more in the last "
                                         f"axis, got shape {shape}")
