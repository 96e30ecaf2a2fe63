"""The GPU's pooling, run by the emulator, against the CPU kernels in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlite.kernels import cpu
from tensorlite.kernels.contract import Mask, Prologue
from tensorlite.kernels.cuda import pooling
from tensorlite.kernels.cuda.launch import running_on, sums_dtype
from tests.cuda_on_cpu.emulator import Emulator
from tests.tensorlite.campaign import examples

DTYPES = ["float16", "float32", "float64"]
LAYOUTS = ["plain", "strided", "transposed", "reversed"]


@st.composite
def pools(draw):
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    return dict(
        seed=draw(st.integers(0, 2**31)),
        shape=(draw(st.integers(1, 3)), draw(st.integers(kernel[0], 9)),
               draw(st.integers(kernel[1], 9)), draw(st.sampled_from([1, 3, 8, 24]))),
        dtype=draw(st.sampled_from(DTYPES)),
        layout=draw(st.sampled_from(LAYOUTS)),
        window=(kernel, draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
                tuple(draw(st.integers(0, k // 2)) for k in kernel)),
        blocks=draw(st.sampled_from([1, 2, 2048])),
        schedule=draw(st.sampled_from(["forward", "reverse", "shuffled"])),
    )


@pytest.fixture(autouse=True, scope="module")
def needs_the_emulator(schedules):
    pass


class few_blocks:
    """The emulator, and at most so many blocks over pixels, so that each takes several turns."""

    def __init__(self, pool):
        self.patch, self.blocks = pytest.MonkeyPatch(), pool["blocks"]
        self.running = running_on(Emulator(pool["schedule"]))

    def __enter__(self):
        self.patch.setattr(pooling, "BLOCKS", self.blocks)
        self.patch.setattr(pooling, "PARTS", self.blocks)
        self.running.__enter__()

    def __exit__(self, *error):
        self.running.__exit__(*error)
        self.patch.undo()


def wide(*arrays):
    return tuple(a.astype(np.float64) for a in arrays)


def agree(actual, reference, magnitude):
    """64 units of rounding of sums, and one of the result's own dtype."""
    assert actual.shape == reference.shape
    unit = np.finfo(sums_dtype(actual.dtype)).eps
    own = np.finfo(actual.dtype).eps if actual.dtype == np.float16 else 0
    np.testing.assert_allclose(actual.astype(np.float64), reference, rtol=own,
                               atol=64 * unit * np.max(magnitude, initial=0.0) + own * 1e-4)


def out_shape(pool):
    (kh, kw), (sh, sw), (ph, pw) = pool["window"]
    n, height, width, channels = pool["shape"]
    return n, (height + 2 * ph - kh) // sh + 1, (width + 2 * pw - kw) // sw + 1, channels


@examples(12)
@given(pool=pools(), ties=st.booleans(), extremes=st.booleans())
def test_max_pool(pool, ties, extremes, make_array):
    x = make_array(pool["seed"], pool["shape"], pool["dtype"], pool["layout"])
    if ties:
        x = np.sign(x)
    if extremes:
        rng = np.random.default_rng(pool["seed"])
        x = np.where(rng.random(x.shape) < 0.3, rng.choice([-np.inf, np.inf, np.nan], x.shape), x)
        x = x.astype(pool["dtype"])
    window = pool["window"]
    grad = make_array(pool["seed"] + 1, out_shape(pool), pool["dtype"], pool["layout"])
    with few_blocks(pool):
        y = pooling.max_pool2d_forward(x, *window)
        dx, sums = pooling.max_pool2d_backward(grad, x, y, *window)
    assert y.dtype == dx.dtype == x.dtype and sums is None
    reference = cpu.max_pool2d_forward(*wide(x), *window)
    np.testing.assert_array_equal(y, reference)
    agree(dx, cpu.max_pool2d_backward(*wide(grad, x, y), *window)[0], abs(grad).max())


@examples(12)
@given(pool=pools(), ties=st.booleans(), relu=st.booleans(), positive=st.booleans())
def test_max_pool_of_an_activation(pool, ties, relu, positive, make_array):
    z = make_array(pool["seed"], pool["shape"], pool["dtype"], pool["layout"])
    if ties:
        z = np.sign(z)
    window, channels, dtype = pool["window"], z.shape[3], sums_dtype(z.dtype)
    rng = np.random.default_rng(pool["seed"])
    scale = rng.choice([0.5, 1.0, 2.0] if positive else [-1.0, 0.0, 0.5], channels)
    vectors = tuple(v.astype(dtype) for v in (scale, *rng.standard_normal((2, channels))))
    activation = Prologue(*vectors[:2], relu)
    grad = make_array(pool["seed"] + 1, out_shape(pool), pool["dtype"], pool["layout"])
    with few_blocks(pool):
        y = pooling.max_pool2d_forward(z, *window, activation)
        mask = Mask(z, activation, vectors[2])
        dx, sums = pooling.max_pool2d_backward(grad, z, y, *window, mask)
    assert y.dtype == dx.dtype == z.dtype and sums.grad.dtype == sums.grad_centred.dtype == dtype
    z64, grad64, y64, *vectors64 = wide(z, grad, y, *vectors)
    activation64 = Prologue(*vectors64[:2], relu)
    agree(y, cpu.max_pool2d_forward(z64, *window, activation64), abs(z64).max() * 2 + 3)
    back, expected = cpu.max_pool2d_backward(grad64, z64, y64, *window,
                                             Mask(z64, activation64, vectors64[2]))
    agree(dx, back, abs(grad64).max())
    terms = abs(grad64).sum()
    agree(sums.grad, expected.grad, terms)
    agree(sums.grad_centred, expected.grad_centred, terms * (abs(z64).max() + 3))


def test_the_same_from_run_to_run_and_in_each_order(make_array, schedules):
    z = make_array(0, (5, 9, 9, 16), "float32", "plain")
    vectors = [make_array(i, (16,), "float32", "plain") for i in range(3)]
    activation, window = Prologue(*vectors[:2], True), ((3, 3), (2, 2), (1, 1))
    grad, results = make_array(9, (5, 5, 5, 16), "float32", "plain"), []
    for schedule in schedules:
        with running_on(Emulator(schedule)):
            y = pooling.max_pool2d_forward(z, *window, activation)
            dx, sums = pooling.max_pool2d_backward(grad, z, y, *window,
                                                   Mask(z, activation, vectors[2]))
        results.append([a.tobytes() for a in (y, dx, *sums)])
    assert results[0] == results[1] == results[2]


def test_nan_wins_padding_never_does_and_infinity_stays_at_the_maximum(emulator):
    x = np.full((1, 3, 3, 1), -np.inf, np.float32)
    x[0, 2, 1:] = np.nan
    window = ((2, 2), (2, 2), (1, 1))
    y = pooling.max_pool2d_forward(x, *window)
    np.testing.assert_array_equal(y[0, :, :, 0], [[-np.inf, -np.inf], [-np.inf, np.nan]])
    grad = np.array([1, 2, 4, 8], np.float32).reshape(y.shape)
    dx, _ = pooling.max_pool2d_backward(grad, x, y, *window)
    assert dx[0, :, :, 0].tolist() == [[1, 2, 0], [4, 0, 0], [0, 8, 0]]
    x = np.arange(9.0, dtype=np.float32).reshape(1, 3, 3, 1)
    y = pooling.max_pool2d_forward(x, (3, 3), (1, 1), (0, 0))
    dx, _ = pooling.max_pool2d_backward(np.full_like(y, np.inf), x, y, (3, 3), (1, 1), (0, 0))
    assert dx.ravel().tolist() == [0] * 8 + [np.inf]


@examples(10)
@given(pool=pools())
def test_avg_pool(pool, make_array):
    x = make_array(pool["seed"], pool["shape"], pool["dtype"], pool["layout"])
    grad = make_array(pool["seed"] + 1, out_shape(pool), pool["dtype"], pool["layout"])
    window = pool["window"]
    with few_blocks(pool):
        y = pooling.avg_pool2d_forward(x, *window)
        dx = pooling.avg_pool2d_backward(grad, x.shape, *window)
    assert y.dtype == dx.dtype == x.dtype
    agree(y, cpu.avg_pool2d_forward(*wide(x), *window), abs(x).max())
    agree(dx, cpu.avg_pool2d_backward(*wide(grad), x.shape, *window), abs(grad).max())


@examples(10)
@given(pool=pools(), channels=st.sampled_from([1, 5, 40, 264]))
def test_global_avg_pool(pool, channels, make_array):
    shape = (*pool["shape"][:3], channels)
    x = make_array(pool["seed"], shape, pool["dtype"], pool["layout"])
    grad = make_array(pool["seed"] + 1, (shape[0], channels), pool["dtype"], pool["layout"])
    with few_blocks(pool):
        y = pooling.global_avg_pool_forward(x)
        dx = pooling.global_avg_pool_backward(grad, x.shape)
    assert y.dtype == dx.dtype == x.dtype
    agree(y, cpu.global_avg_pool_forward(*wide(x)), abs(x).max())
    agree(dx, cpu.global_avg_pool_backward(*wide(grad), x.shape), abs(grad).max())


def test_more_channels_than_a_block_has_lanes(emulator, make_array):
    x = make_array(0, (1, 2, 3, 259), "float32", "plain")
    window = ((2, 2), (1, 1), (1, 0))
    y = pooling.max_pool2d_forward(x, *window)
    np.testing.assert_array_equal(y, cpu.max_pool2d_forward(x, *window))
    vectors = [make_array(i, (259,), "float32", "plain") for i in range(3)]
    activation = Prologue(*vectors[:2], False)
    ours = pooling.max_pool2d_backward(y, x, y, *window, Mask(x, activation, vectors[2]))
    twins = cpu.max_pool2d_backward(y, x, y, *window, Mask(x, activation, vectors[2]))
    for a, b in zip((ours[0], *ours[1]), (twins[0], *twins[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_view_that_is_not_aligned(emulator, make_array):
    x = make_array(0, (9, 3, 3, 4), "float32", "plain").reshape(-1)[1:-35].reshape(8, 3, 3, 4)
    window = ((3, 3), (2, 2), (1, 1))
    np.testing.assert_array_equal(pooling.max_pool2d_forward(x, *window),
                                  cpu.max_pool2d_forward(x, *window))


@pytest.mark.parametrize("shape", [(0, 4, 4, 2), (1, 4, 4, 0)])
def test_nothing_to_do(emulator, shape):
    z, vector = np.zeros(shape), np.ones(shape[3])
    window = ((2, 2), (2, 2), (0, 0))
    y = pooling.max_pool2d_forward(z, *window)
    assert y.shape == pooling.avg_pool2d_forward(z, *window).shape == (shape[0], 2, 2, shape[3])
    mask = Mask(z, Prologue(vector, vector, True), vector)
    dx, sums = pooling.max_pool2d_backward(y, z, y, *window, mask)
    assert dx.shape == z.shape and not sums.grad.any() and not sums.grad_centred.any()
    assert sums.grad.shape == vector.shape
    assert pooling.avg_pool2d_backward(y, z.shape, *window).shape == z.shape
    assert pooling.global_avg_pool_forward(z).shape == (shape[0], shape[3])
    assert pooling.global_avg_pool_backward(np.zeros((shape[0], shape[3])), shape).shape == shape


def test_what_the_kernels_cannot_count(emulator):
    x = np.zeros((1, 300, 300, 1), np.float32)
    with pytest.raises(ValueError, match="window"):
        pooling.max_pool2d_backward(x[:, :1, :1], x, x[:, :1, :1], (300, 300), (1, 1), (0, 0))
