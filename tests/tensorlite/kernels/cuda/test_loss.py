"""The GPU's cross-entropy, run by the emulator, against float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlite.kernels.cuda import loss
from tensorlite.kernels.cuda.launch import running_on, sums_dtype
from tests.cuda_on_cpu.emulator import SCHEDULES, Emulator
from tests.tensorlite.campaign import examples


@pytest.fixture(autouse=True, scope="module")
def needs_the_emulator(schedules):
    pass


def reference(logits, labels, grad):
    """The losses, and the gradient of their product with grad, in float64."""
    x = logits.astype(np.float64)
    x = x - x.max(axis=1, keepdims=True)
    logs = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    rows = np.arange(len(x))
    dx = np.exp(logs)
    dx[rows, labels] -= 1
    return -logs[rows, labels], dx * np.asarray(grad, np.float64).reshape(-1, 1)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("labels_dtype", ["int32", "int64", "uint8"])
@examples(5)
@given(seed=st.integers(0, 2**31), rows=st.integers(0, 9),
       classes=st.sampled_from([1, 2, 31, 32, 33, 101]), schedule=st.sampled_from(SCHEDULES),
       shift=st.sampled_from([0, 1e4]),
       layout=st.sampled_from(["plain", "transposed"]), each=st.booleans())
def test_against_float64(seed, rows, dtype, classes, schedule, labels_dtype, shift, layout, each,
                         make_array):
    logits = (make_array(seed, (rows, classes), dtype, layout) * np.dtype(dtype).type(4)
              + np.dtype(dtype).type(shift))
    labels = np.random.default_rng(seed).integers(0, classes, rows).astype(labels_dtype)
    sums = sums_dtype(dtype)
    grad = make_array(seed + 1, (rows,) if each else (), "float64", "plain").astype(sums)
    with running_on(Emulator(schedule)):
        losses, norms = loss.softmax_cross_entropy_forward(logits, labels)
        dx = loss.softmax_cross_entropy_backward(grad, logits, labels, norms)
    assert losses.dtype == norms.dtype == sums and dx.dtype == logits.dtype
    expected, back = reference(logits, labels, grad)
    unit = 64 * np.finfo(sums).eps
    np.testing.assert_allclose(losses, expected, rtol=unit, atol=unit)
    own = np.finfo(np.float16).eps if dtype == "float16" else 0
    atol = unit * abs(grad).max(initial=0) + own * 1e-3
    np.testing.assert_allclose(dx.astype(np.float64), back, rtol=own, atol=atol)


def test_a_share_of_one_gradient_for_all(emulator, make_array):
    logits, labels = make_array(0, (5, 7), "float32", "plain"), np.arange(5)
    _, norms = loss.softmax_cross_entropy_forward(logits, labels)
    dx = loss.softmax_cross_entropy_backward(np.array(3, np.float32), logits, labels, norms, 1 / 5)
    _, back = reference(logits, labels, np.full(5, 3 / 5))
    np.testing.assert_allclose(dx, back, atol=1e-6)


def test_what_is_not_a_number_or_no_class(emulator):
    logits = np.array([[0, 1, 2], [np.nan, 1, 2], [0, 1, 2], [0, np.inf, 2], [5, -np.inf, 5]],
                      np.float32)
    labels = np.array([3, 1, -1, 2, 0])
    losses, norms = loss.softmax_cross_entropy_forward(logits, labels)
    assert np.isnan(losses[:4]).all() and losses[4] == pytest.approx(np.log(2))
    dx = loss.softmax_cross_entropy_backward(np.ones(5, np.float32), logits, labels, norms)
    assert np.isnan(dx[1]).all()
    np.testing.assert_allclose(dx[4], [-0.5, 0, 0.5], atol=1e-6)
