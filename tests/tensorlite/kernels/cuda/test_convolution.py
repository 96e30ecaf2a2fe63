"""The GPU's convolutions and matrix products, run by the emulator, against loops over output pixels
in float64 on operands rounded as the hardware rounds them, and their fused forms against the simple
kernels they stand for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlite.kernels.contract import Epilogue, Mask, NormGrad, Prologue
from tensorlite.kernels.cuda import convolution, normalisation, precision
from tensorlite.kernels.cuda.compiler import Kernel, usage
from tensorlite.kernels.cuda.launch import running_on, sums_dtype
from tests.cuda_on_cpu.emulator import SCHEDULES, Emulator
from tests.tensorlite.campaign import examples
from tests.tensorlite.kernels.test_convolution_kernels import (
    Case,
    cases,
    forward_reference,
    grad_input_reference,
    grad_weight_reference,
)

from .row_cases import assert_near, misaligned


class Method(NamedTuple):
    """The dtype of arrays, whether TF32 is allowed, and the architecture that is emulated."""

    dtype: str
    tf32: bool
    arch: int
    tiles: int  # that are chosen from

    def seen(self, a: np.ndarray) -> np.ndarray:
        """What the product sees of an array, in float64."""
        if self.tf32:
            # Rounded to 10 bits of fraction, ties away from zero: half a unit is added, the rest
            # cut off.
            bits = np.ascontiguousarray(a).view(np.uint32) + np.uint32(1 << 12)
            a = (bits & np.uint32(0xFFFFE000)).view(np.float32)
        return a.astype(np.float64)


METHODS = {
    "plain float": Method("float32", False, 90, 2),
    "plain double": Method("float64", False, 90, 1),
    "plain half": Method("float16", False, 75, 2),
    "TF32": Method("float32", True, 90, 3),
    "half": Method("float16", False, 90, 3),
}

methods = st.sampled_from(sorted(METHODS)).map(METHODS.get)
schedules_drawn = st.sampled_from(SCHEDULES)
# Blocks that occupy the GPU: of one, the largest tiles are chosen.
loads = st.sampled_from([1, 200])
seeds = st.integers(0, 2**31)


@pytest.fixture(autouse=True, scope="module")
def needs_the_emulator(schedules):
    pass


@contextlib.contextmanager
def emulated(method: Method, schedule: str = "shuffled", load: int = 200,
             run: int = 4096) -> Iterator[list[Kernel]]:
    """Kernels run in the emulator, by a method and with so many blocks to be made; those that are
    not in the family's list fail. The kernels that were launched."""
    emulator, launched = Emulator(schedule), []
    known = {*convolution.kernels(), *normalisation.kernels()}

    def runner(kernel: Kernel, *arguments: object) -> None:
        assert kernel in known
        launched.append(kernel)
        emulator(kernel, *arguments)

    before = precision.tf32()
    precision.set_tf32(method.tf32)
    try:
        with pytest.MonkeyPatch.context() as patch, running_on(runner):
            patch.setattr(convolution, "EMULATED", method.arch)
            patch.setattr(convolution, "BLOCKS", load)
            patch.setattr(convolution, "LEAST_RUN", min(run, convolution.LEAST_RUN))
            patch.setattr(convolution, "LONGEST_RUN", run)
            yield launched
    finally:
        precision.set_tf32(before)


def exact_factors(seed: int, channels: int, dtype: str) -> np.ndarray:
    """Factors by which a product is exact, so that a multiply-add rounds as a product and a sum."""
    chosen = np.random.default_rng(seed).choice([-2, -1, -0.5, 0.5, 1, 2], channels)
    return chosen.astype(sums_dtype(dtype))


def vector(seed: int, channels: int, dtype: str) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, channels).astype(sums_dtype(dtype))


def activated(x: np.ndarray, prologue: Prologue) -> np.ndarray:
    value = x * prologue.scale + prologue.shift
    return (np.maximum(value, 0) if prologue.relu else value).astype(x.dtype)


@examples(25)
@given(case=cases(), method=methods, bias=st.booleans(), prologue=st.booleans(),
       relu=st.booleans(), schedule=schedules_drawn, load=loads)
def test_forward(case, method, bias, prologue, relu, schedule, load, make_array):
    x = make_array(case.seed, case.x_shape, method.dtype, case.layout)
    w = make_array(case.seed + 1, case.w_shape, method.dtype, case.layout)
    b = vector(case.seed + 2, case.y_shape[3], method.dtype) if bias else None
    first = Prologue(exact_factors(case.seed + 3, x.shape[3], method.dtype),
                     vector(case.seed + 4, x.shape[3], method.dtype), relu)
    read = activated(x, first) if prologue else x
    with emulated(method, schedule, load):
        y, moments = convolution.conv2d_forward(
            x, w, b, **case.geometry, prologue=first if prologue else None)
    assert moments is None and y.dtype == x.dtype and y.flags.c_contiguous
    shift = 0 if b is None else b.astype(np.float64)
    left, right = method.seen(read), method.seen(w)
    magnitude = forward_reference(case, abs(left), abs(right)) + np.abs(shift)
    assert_near(y, forward_reference(case, left, right) + shift, magnitude)


@examples(25)
@given(case=cases(), method=methods, prologue=st.booleans(), relu=st.booleans(),
       needs=st.sampled_from([(True, True), (True, False), (False, True)]),
       run=st.sampled_from([32, 64, 4096]), schedule=schedules_drawn, load=loads)
def test_backward(case, method, prologue, relu, needs, run, schedule, load, make_array):
    x = make_array(case.seed, case.x_shape, method.dtype, case.layout)
    w = make_array(case.seed + 1, case.w_shape, method.dtype, case.layout)
    grad = make_array(case.seed + 2, case.y_shape, method.dtype, case.layout)
    first = Prologue(exact_factors(case.seed + 3, x.shape[3], method.dtype),
                     vector(case.seed + 4, x.shape[3], method.dtype), relu)
    with emulated(method, schedule, load, run):
        dx, sums, dw = convolution.conv2d_backward(
            x, grad, w, **case.geometry, needs=needs, prologue=first if prologue else None)
    assert sums is None and ((dx is not None), (dw is not None)) == needs
    above, right = method.seen(grad), method.seen(w)
    if needs[0]:
        assert dx.dtype == grad.dtype
        assert_near(dx, grad_input_reference(case, above, right),
                    grad_input_reference(case, abs(above), abs(right)))
    if needs[1]:
        read = method.seen(activated(x, first) if prologue else x)
        assert dw.dtype == sums_dtype(method.dtype) and dw.flags.c_contiguous
        assert_near(dw, grad_weight_reference(case, read, above),
                    grad_weight_reference(case, abs(read), abs(above)))


# Images, size, channels: rows and columns that fill no tile, one tile, or several.
LARGE = [((2, 9, 15, 24), 136), ((1, 8, 16, 16), 64), ((3, 12, 12, 40), 40)]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("prologue", [False, True], ids=["stored", "deferred"])
def test_every_tile(method, prologue):
    """Tiles beside and below each other, of every size."""
    used = {"correlate": set(), "correlate_weights": set()}
    for load in (1, 200):
        for shape, outputs in LARGE:
            case = Case(0, shape[0], shape[1:3], (3, 1), (1, 2), (1, 0), (1, 1), 1,
                        (shape[3], outputs), method.dtype, "plain", 1, 1)
            rng = np.random.default_rng(outputs)
            x, w, grad = (rng.standard_normal(s).astype(method.dtype)
                          for s in (case.x_shape, case.w_shape, case.y_shape))
            first = None
            if prologue:
                first = Prologue(exact_factors(1, shape[3], method.dtype),
                                 vector(2, shape[3], method.dtype), True)
            with emulated(method, load=load, run=128) as launched:
                y, _ = convolution.conv2d_forward(x, w, prologue=first, **case.geometry)
                dx, _, dw = convolution.conv2d_backward(x, grad, w, prologue=first, **case.geometry)
            for kernel in launched:
                macros = dict(kernel.macros)
                if kernel.name in used and macros["PROLOGUE"] == prologue:
                    used[kernel.name].add(macros["TILE_M"] * kernel.threads)
            x = activated(x, first) if first else x
            x, w, grad = (method.seen(a) for a in (x, w, grad))
            for result, reference, left, right in (
                (y, forward_reference, x, w),
                (dx, grad_input_reference, grad, w),
                (dw, grad_weight_reference, x, grad),
            ):
                assert_near(result, reference(case, left, right),
                            reference(case, abs(left), abs(right)))
    assert [len(tiles) for tiles in used.values()] == [method.tiles] * 2


@examples(10)
@given(case=cases(), method=methods, bias=st.booleans(), residual=st.booleans(),
       scaled=st.booleans(), relu=st.booleans(), statistics=st.booleans(), load=loads)
def test_bias_then_moments_then_epilogue(case, method, bias, residual, scaled, relu, statistics,
                                         load, make_array):
    dtype, channels = method.dtype, case.y_shape[3]
    x = make_array(case.seed, case.x_shape, dtype, case.layout)
    w = make_array(case.seed + 1, case.w_shape, dtype, "plain")
    skip = make_array(case.seed + 2, case.y_shape, dtype, case.layout)
    b, scale, shift = (vector(case.seed + 3 + i, channels, dtype) for i in range(3))
    given = {**case.geometry, "bias": b if bias else None}
    epilogue = Epilogue(scale if scaled else None, shift, skip if residual else None, relu)
    with emulated(method, load=load):
        plain, moments = convolution.conv2d_forward(x, w, **given, statistics=True)
        y, again = convolution.conv2d_forward(x, w, **given, statistics=statistics,
                                              epilogue=epilogue)
    stored, count = plain.astype(np.float64), plain[..., 0].size
    assert type(moments.count) is int and moments.count == count
    assert moments.mean.dtype == moments.m2.dtype == sums_dtype(dtype)
    assert_near(moments.mean, stored.mean((0, 1, 2)), abs(stored).mean((0, 1, 2)))
    assert_near(moments.m2, stored.var((0, 1, 2)) * count, np.square(stored).sum((0, 1, 2)))
    if statistics:
        assert all(np.array_equal(p, q) for p, q in zip(moments, again, strict=True))
    else:
        assert again is None
    left, right = method.seen(x), method.seen(w)
    result = forward_reference(case, left, right) + (b if bias else 0)
    magnitude = forward_reference(case, abs(left), abs(right)) + 1
    if statistics:  # then the epilogue sees what was rounded for the moments
        result = stored
    result = result * (scale if scaled else 1) + shift + (skip.astype(float) if residual else 0)
    assert_near(y, np.maximum(result, 0) if relu else result, magnitude + abs(shift) + abs(skip))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_moments_do_not_cancel(method):
    """Mean a million (1000 in half), deviation 1: sums of squares in float32 would lose every
    digit, and a tile's mean, rounded, is far from it."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 11, 13, 8)).astype(method.dtype)
    w = np.eye(8, dtype=method.dtype)[None, None]
    bias = np.full(8, 1e3 if method.dtype == "float16" else 1e6, sums_dtype(method.dtype))
    with emulated(method):
        y, moments = convolution.conv2d_forward(x, w, bias, statistics=True)
    stored = y.astype(np.float64)
    np.testing.assert_allclose(moments.mean, stored.mean((0, 1, 2)), rtol=2**-24)
    np.testing.assert_allclose(moments.m2, stored.var((0, 1, 2)) * 3 * 11 * 13, rtol=3e-6)


@examples(15)
@given(case=cases(), method=methods, relu=st.booleans(), schedule=schedules_drawn, load=loads)
def test_mask(case, method, relu, schedule, load, make_array):
    w = make_array(case.seed + 1, case.w_shape, method.dtype, "plain")
    grad = make_array(case.seed + 2, case.y_shape, method.dtype, case.layout)
    z = make_array(case.seed + 3, case.x_shape, method.dtype, case.layout)
    channels = case.x_shape[3]
    activation = Prologue(exact_factors(case.seed + 4, channels, method.dtype),
                          vector(case.seed + 5, channels, method.dtype), relu)
    mask = Mask(z, activation, vector(case.seed + 6, channels, method.dtype))
    with emulated(method, schedule, load):
        plain, _ = convolution.conv2d_grad_input(grad, w, case.x_shape, **case.geometry)
        dx, sums = convolution.conv2d_grad_input(grad, w, case.x_shape, **case.geometry, mask=mask)
    cut = (activated(z.astype(sums_dtype(z.dtype)), activation) <= 0) & relu
    np.testing.assert_array_equal(dx, np.where(cut, 0, plain))
    stored = dx.astype(np.float64)
    products = stored * (z.astype(np.float64) - mask.mean)
    assert sums.grad.dtype == sums.grad_centred.dtype == sums_dtype(method.dtype)
    assert_near(sums.grad, stored.sum((0, 1, 2)), abs(stored).sum((0, 1, 2)))
    # Each product is that of a difference, which rounds as its larger part does.
    magnitude = abs(stored) * (abs(z.astype(np.float64)) + abs(mask.mean))
    assert_near(sums.grad_centred, products.sum((0, 1, 2)), magnitude.sum((0, 1, 2)))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("running", [False, True])
def test_norm_grad(method, running):
    """Both gradients see what passes through the norm."""
    case = Case(0, 2, (6, 5), (3, 3), (2, 1), (1, 1), (1, 1), 1, (8, 5), method.dtype, "plain", 1,
                1)
    rng = np.random.default_rng(0)
    x, w, grad, z = (rng.standard_normal(s).astype(method.dtype)
                     for s in (case.x_shape, case.w_shape, case.y_shape, case.y_shape))
    scale, slope, offset = (vector(i, 5, method.dtype) for i in range(3))
    through = NormGrad(z, scale, slope, offset)
    if running:
        through, slope = NormGrad(None, scale, None, None), 0 * slope
        offset = slope
    with emulated(method):
        found = convolution.conv2d_backward(x, grad, w, **case.geometry, norm_grad=through)
        formed = normalisation.norm_backward(grad, z, scale, slope, offset)
        expected = convolution.conv2d_backward(x, formed, w, **case.geometry)
        dx, _ = convolution.conv2d_grad_input(grad, w, x.shape, **case.geometry, norm_grad=through)
        dw = convolution.conv2d_grad_weight(x, grad, (3, 3), **case.geometry, norm_grad=through)
    assert found[1] is None
    for result in (found[::2], (dx, dw)):
        for a, b in zip(result, expected[::2], strict=True):
            np.testing.assert_array_equal(a, b)


@examples(15)
@given(seed=seeds, rows=st.integers(1, 70), inner=st.integers(1, 40), columns=st.integers(1, 70),
       method=methods, turned=st.tuples(st.booleans(), st.booleans()),
       out=st.sampled_from([None, "plain", "strided"]))
def test_matmul2d(seed, rows, inner, columns, method, turned, out):
    rng = np.random.default_rng(seed)

    def draw(shape, turn):
        a = rng.standard_normal(shape[::-1] if turn else shape).astype(method.dtype)
        return a.T if turn else a

    a, b = draw((rows, inner), turned[0]), draw((inner, columns), turned[1])
    into = None if out is None else np.full((rows, columns), np.nan, method.dtype)
    if out == "strided":
        into = np.full((2 * rows, columns), np.nan, method.dtype)[::2]
    with emulated(method):
        y = convolution.matmul2d(a, b, into)
    assert y.dtype == a.dtype and (into is None or y is into)
    left, right = method.seen(a), method.seen(b)
    assert_near(y, left @ right, abs(left) @ abs(right))


def test_matmul2d_of_nothing():
    with emulated(METHODS["plain float"]):
        for rows, inner, columns in ((0, 3, 2), (2, 0, 3), (2, 3, 0)):
            a, b = np.ones((rows, inner), np.float32), np.ones((inner, columns), np.float32)
            np.testing.assert_array_equal(convolution.matmul2d(a, b), a @ b)


@pytest.mark.parametrize("shape", [(0, 5, 5, 3), (2, 2, 5, 3)])
def test_an_output_without_pixels(shape):
    x, w = np.ones(shape, np.float32), np.ones((3, 3, 3, 4), np.float32)
    size = (shape[0], shape[1] - 2, 3, 4)
    geometry = dict(stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1)
    vectors = np.ones(3, np.float32)
    mask = Mask(x, Prologue(vectors, vectors, True), vectors)
    with emulated(METHODS["plain float"]):
        y, moments = convolution.conv2d_forward(x, w, **geometry, statistics=True)
        dx, sums, dw = convolution.conv2d_backward(x, y, w, **geometry, mask=mask)
    assert y.shape == size and moments.count == 0
    assert dx.shape == x.shape and not dx.any()
    assert not dw.any() and not any(s.any() for s in sums)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_arrays_where_vectors_cannot_be_read(method):
    rng = np.random.default_rng(0)
    x, w, skip = (rng.standard_normal(s).astype(method.dtype)
                  for s in ((1, 4, 4, 8), (1, 1, 8, 8), (1, 4, 4, 8)))
    vectors = [vector(i, 8, method.dtype) for i in range(5)]

    def run(place):
        scale, shift, bias, more, mean = map(place, vectors)
        first = Prologue(scale, shift, True)
        with emulated(method):
            y, _ = convolution.conv2d_forward(
                place(x), place(w), bias, prologue=first,
                epilogue=Epilogue(more, mean, place(skip), False))
            backward = convolution.conv2d_backward(
                place(x), place(skip), place(w), stride=(1, 1), padding=(0, 0), dilation=(1, 1),
                groups=1, prologue=first, mask=Mask(place(x), first, mean))
        return [y, backward[0], *backward[1], backward[2]]

    for a, b in zip(run(misaligned), run(np.copy), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_what_is_not_finite_stays_where_it_is_seen(method):
    """Zeros of padding, and products beyond the edge of a tile, must not meet infinities."""
    x = np.zeros((1, 6, 6, 3), method.dtype)
    x[0, 2, 2] = np.inf
    w = np.ones((3, 3, 3, 5), method.dtype)
    prologue = Prologue(*(np.ones(3, sums_dtype(method.dtype)),) * 2, True)
    with emulated(method):
        y, _ = convolution.conv2d_forward(x, w, padding=(1, 1), prologue=prologue)
    seen = np.zeros((6, 6), bool)
    seen[1:4, 1:4] = True
    np.testing.assert_array_equal(np.isinf(y[0]), np.broadcast_to(seen[..., None], y.shape[1:]))
    assert not np.isnan(y).any()


def test_too_many_pixels_are_refused():
    x = np.broadcast_to(np.float32(0), (2**20, 2**6, 2**5, 4))
    with pytest.raises(ValueError, match="2147483648 output pixels"):
        convolution._forward(x, np.ones((1, 1, 4, 4), np.float32), x,
                             convolution.Window((1, 1), (1, 1), (0, 0), (1, 1)), 1)


def test_other_dtypes_are_refused():
    with pytest.raises(TypeError, match="float16, float32, float64, got int32"):
        convolution.matmul2d(np.ones((2, 2), np.int32), np.ones((2, 2), np.int32))


@pytest.mark.parametrize("arch", [80, 90])
def test_hot_kernels_do_not_spill(arch):
    hot = [kernel for kernel in convolution.kernels() if kernel.hot]
    assert hot and {kernel.name for kernel in hot} == {"correlate", "correlate_weights"}
    assert not [(str(k), u) for k in hot if (u := usage(k, arch)).spills]
