"""The GPU's elementwise kernels, run by the emulator, against the CPU kernels in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tensorlite.kernels import cpu
from tensorlite.kernels.cuda import elementwise
from tensorlite.kernels.cuda.launch import sums_dtype
from tests.tensorlite.campaign import examples

from .row_cases import (
    DTYPES,
    arrays,
    assert_near,
    cramped,
    misaligned,
    orders,
    vectors_of,
    wide,
)

ODD = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 6e-8, -6e-8]


@pytest.fixture(autouse=True, scope="module")
def needs_the_emulator(schedules):
    pass


@examples(15)
@given(**arrays, relu=st.booleans())
def test_affine(seed, shape, dtype, layout, blocks, relu, make_array):
    x = make_array(seed, shape, dtype, layout)
    scale, shift = vectors_of(make_array, seed + 1, shape, dtype, 2)
    with cramped(elementwise, blocks):
        y = elementwise.affine(x, scale, shift, relu)
    v, a, b = wide(x, scale, shift)
    assert y.dtype == x.dtype
    assert_near(y, cpu.affine(v, a, b, relu), abs(v * a) + abs(b))


@examples(10)
@given(**arrays)
def test_relu(seed, shape, dtype, layout, blocks, make_array):
    x, grad = (make_array(seed + i, shape, dtype, layout) for i in range(2))
    with cramped(elementwise, blocks):
        y = elementwise.relu_forward(x)
        dx = elementwise.relu_backward(grad, y)
    assert y.dtype == dx.dtype == x.dtype
    assert np.array_equal(y, cpu.relu_forward(x))
    assert np.array_equal(dx, cpu.relu_backward(grad, y))


@pytest.mark.parametrize("dtype", DTYPES)
def test_relu_of_odd_numbers(dtype):
    """NaN stays NaN; an infinite gradient is not multiplied by zero."""
    x = np.array(ODD, dtype)
    grad, value = (a.reshape(-1).copy() for a in np.meshgrid(x, x))
    with cramped(elementwise):
        y = elementwise.relu_forward(x)
        cut = elementwise.affine(x, np.ones(len(x)), np.zeros(len(x)), relu=True)
        dx = elementwise.relu_backward(grad, value)
    np.testing.assert_array_equal(y, cpu.relu_forward(x))
    np.testing.assert_array_equal(cut, y)
    np.testing.assert_array_equal(dx, cpu.relu_backward(grad, value))


def test_arrays_without_axes():
    x, total = np.array(-2.0), np.array(3.0)
    with cramped(elementwise):
        results = [elementwise.relu_forward(x), elementwise.relu_backward(x, total),
                   elementwise.cast(x, "float32")]
        elementwise.accumulate(total, x)
    assert all(r.shape == () for r in results) and total == 1
    assert [float(r) for r in results] == [0, -2, -2]


@examples(10)
@given(**arrays, whole=st.booleans())
def test_accumulate(seed, shape, dtype, layout, blocks, whole, make_array):
    total, piece = (make_array(seed + i, shape, dtype, layout) for i in range(2))
    expected = total + piece
    buffer = np.zeros((*shape[:-1], 2 * shape[-1]), dtype)
    into = np.array(total, order="C") if whole else buffer[..., ::2]
    into[...] = total
    with cramped(elementwise, blocks):
        elementwise.accumulate(into, piece)
    assert np.array_equal(into, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [31, 64])
def test_accumulate_in_vectors_and_one_by_one(dtype, size):
    total, piece = np.arange(2 * size, dtype=dtype).reshape(2, size)
    expected = total + piece
    with cramped(elementwise):
        elementwise.accumulate(total, piece)
    assert np.array_equal(total, expected)


def test_accumulate_takes_another_dtype():
    total = np.zeros(5, np.float32)
    elementwise.accumulate(total, np.ones(5, np.float16))
    assert np.array_equal(total, np.ones(5))


@examples(15)
@given(**arrays, schedule=orders)
def test_column_sums(seed, shape, dtype, layout, blocks, schedule, make_array):
    x = make_array(seed, (shape[0] * shape[1], shape[2]), dtype, layout)
    with cramped(elementwise, blocks, schedule):
        sums, again = elementwise.column_sums(x), elementwise.column_sums(x)
    assert sums.dtype == sums_dtype(dtype) and np.array_equal(sums, again)
    assert_near(sums, x.sum(0, np.float64), np.abs(x).sum(0, np.float64))


@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("target", DTYPES)
@pytest.mark.parametrize("shape", [(3, 8), (3, 5), (700, 4), (0, 4)])
def test_cast(source, target, shape):
    x = np.random.default_rng(0).normal(0, 10.0 ** np.arange(-9, 7, 16 / shape[1]), shape)
    with np.errstate(over="ignore", under="ignore"):
        x = x.astype(source)
        expected = x.astype(target)
    with cramped(elementwise, 2):
        y = elementwise.cast(x, target)
    assert y is not x and y.dtype == target and np.array_equal(y, expected)


@pytest.mark.parametrize("source, target", [*itertools.permutations(DTYPES, 2)])
def test_cast_of_odd_numbers(source, target):
    """Also what lies a hair beside the middle of two halves, where rounding twice would tell."""
    halves = np.arange(0x7C00, step=37, dtype=np.uint16).view(np.float16).astype(np.float64)
    middle = (halves[:-1] + halves[1:]) / 2
    near = [middle * (1 + sign * 2.0**-power) for sign in (-1, 0, 1) for power in (52, 40, 26, 24)]
    values = np.concatenate([ODD, *near, [65504, 65519.99999, 65520, 1e300, 2.0**-25, 3e-8, 1e-50]])
    with np.errstate(over="ignore", under="ignore"):
        x = np.concatenate([values, -values]).astype(source)
        expected = x.astype(target)
    with cramped(elementwise):
        y = elementwise.cast(x, target)
    np.testing.assert_array_equal(y, expected)


def test_cast_refuses_integers():
    with pytest.raises(TypeError, match="int32"):
        elementwise.cast(np.zeros(3, np.float32), np.int32)


skips = dict(
    seed=st.integers(0, 2**31),
    chunks=st.integers(1, 3),
    frames=st.integers(1, 4),
    lacks=st.sampled_from(["nothing", "y", "x"]),
    shape=st.sampled_from([(), (3,), (2, 3, 8), (2, 2, 5), (50, 3, 8)]),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(["plain", "transposed"]),
)


@examples(15)
@given(**skips, schedule=orders)
@example(seed=0, chunks=1, frames=3, lacks="x", shape=(3,), dtype="float32", layout="plain",
         schedule="reverse")  # blocks that write one place would be seen
def test_temporal_skip(seed, chunks, frames, lacks, shape, dtype, layout, schedule, make_array):
    y_shape = (chunks * (frames - (lacks == "y")), *shape)
    x_shape = (chunks * (frames - (lacks == "x")), *shape)
    y, grad = (make_array(seed + i, y_shape, dtype, layout) for i in range(2))
    x = make_array(seed + 2, x_shape, dtype, layout)
    with cramped(elementwise, schedule=schedule):
        out = elementwise.temporal_skip_forward(y, x, frames)
        gradients = elementwise.temporal_skip_backward(grad, y_shape, x_shape, frames)
    assert out.dtype == y.dtype
    # Each result is one sum or copy: the rounded sum of the float64 kernel.
    assert np.array_equal(out, cpu.temporal_skip_forward(*wide(y, x), frames).astype(dtype))
    expected = cpu.temporal_skip_backward(wide(grad)[0], y_shape, x_shape, frames)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert ours.dtype == y.dtype and np.array_equal(ours, theirs)
    assert not np.shares_memory(out, y) and not np.shares_memory(gradients[0], grad)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 8), (2, 3, 0)])
def test_empty(shape, dtype):
    x, vector = np.zeros(shape, dtype), np.zeros(shape[-1], sums_dtype(dtype))
    with cramped(elementwise):
        elementwise.accumulate(x, x)
        results = [elementwise.affine(x, vector, vector), elementwise.relu_forward(x),
                   elementwise.relu_backward(x, x), elementwise.temporal_skip_forward(x, x, 2),
                   *elementwise.temporal_skip_backward(x, shape, shape, 2)]
        sums = elementwise.column_sums(np.zeros((0, 3), dtype))
    assert all(r.shape == shape and r.dtype == x.dtype for r in results)
    assert sums.shape == (3,) and sums.dtype == sums_dtype(dtype) and not sums.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_that_vectors_do_not_fit(dtype, make_array):
    """The width follows from the addresses too: the emulator refuses misaligned vectors."""
    plain = make_array(0, (4, 2, 16), dtype, "plain")
    x, vectors = misaligned(plain), vectors_of(make_array, 1, plain.shape, dtype, 2)
    with cramped(elementwise):
        for call in (lambda a: elementwise.affine(a, *vectors), elementwise.relu_forward,
                     lambda a: elementwise.relu_backward(plain, a),
                     lambda a: elementwise.column_sums(a.reshape(8, 16)),
                     lambda a: elementwise.temporal_skip_forward(plain, a, 2),
                     lambda a: elementwise.temporal_skip_backward(a, a.shape, a.shape, 2)[1]):
            assert np.array_equal(call(x), call(plain))
        for target in DTYPES:
            with np.errstate(over="ignore"):
                assert np.array_equal(elementwise.cast(x, target), plain.astype(target))
        elementwise.accumulate(x, plain)
    assert np.array_equal(x, plain + plain)
