"""Winograd's filtering against direct sums, which have their own tests, on shapes that its tiles do
not fit."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlite.kernels import cpu
from tensorlite.kernels.contract import Epilogue, Mask, NormGrad, Prologue
from tensorlite.kernels.cpu import convolution, winograd


class Case(NamedTuple):
    seed: int
    images: int
    size: tuple[int, int]
    padding: tuple[int, int]
    channels: tuple[int, int]
    layout: str
    least: int  # tiles a band may have at least
    threads: int

    @property
    def geometry(self) -> dict:
        return dict(stride=(1, 1), padding=self.padding, dilation=(1, 1), groups=1)

    @property
    def x_shape(self):
        return (self.images, *self.size, self.channels[0])

    @property
    def w_shape(self):
        return (3, 3, *self.channels)

    @property
    def y_shape(self):
        size = (n + 2 * p - 2 for n, p in zip(self.size, self.padding, strict=True))
        return (self.images, *size, self.channels[1])


@st.composite
def cases(draw):
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    return Case(
        seed=draw(st.integers(0, 2**31)),
        images=draw(st.integers(1, 3)),
        size=tuple(draw(st.integers(max(1, 3 - 2 * p), 13)) for p in padding),
        padding=padding,
        channels=(draw(st.integers(1, 7)), draw(st.integers(1, 7))),
        layout=draw(st.sampled_from(["plain", "strided", "transposed", "reversed"])),
        least=draw(st.sampled_from([1, 5, 64])),
        threads=draw(st.integers(1, 3)),
    )


@contextlib.contextmanager
def filtering(chosen: bool, case: Case):
    """The convolutions of the block are Winograd's, in small bands, or never are."""
    before = cpu.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "wins", lambda *_: chosen)
        patch.setattr(winograd, "WORKSPACE", 1)
        patch.setattr(winograd, "MIN_TILES", case.least)
        patch.setattr(winograd, "GRAIN_FLOPS", 1)
        patch.setattr(winograd, "FILTERS", 5)
        cpu.set_num_threads(case.threads)
        try:
            yield
        finally:
            cpu.set_num_threads(before)


def vector(case: Case, offset: int, channels: int):
    return np.random.default_rng(case.seed + offset).uniform(-1, 1, channels)


def assert_near(actual, expected):
    scale = np.abs(expected).max(initial=1.0)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-11 * scale)


@given(case=cases(), relu=st.booleans(), bias=st.booleans(), residual=st.booleans())
def test_forward_equals_direct_sums(case, relu, bias, residual, make_array):
    x = make_array(case.seed, case.x_shape, "float64", case.layout)
    w = make_array(case.seed + 1, case.w_shape, "float64", case.layout)
    cin, cout = case.channels
    prologue = Prologue(vector(case, 2, cin), vector(case, 3, cin), relu)
    skip = make_array(case.seed + 4, case.y_shape, "float64", case.layout)
    epilogue = Epilogue(vector(case, 5, cout), vector(case, 6, cout), skip if residual else None,
                        relu)
    found = []
    for chosen in (False, True, True):
        with filtering(chosen, case):
            found.append((
                convolution.conv2d_forward(x, w, **case.geometry)[0],
                *convolution.conv2d_forward(
                    x, w, vector(case, 7, cout) if bias else None, **case.geometry,
                    prologue=prologue, statistics=True, epilogue=epilogue,
                ),
            ))
    direct, filtered, again = found
    assert filtered[0].flags.c_contiguous and filtered[1].flags.c_contiguous
    assert np.array_equal(filtered[0], again[0]) and np.array_equal(filtered[1], again[1])
    assert_near(filtered[0], direct[0])
    assert_near(filtered[1], direct[1])
    assert filtered[2].count == direct[2].count
    assert_near(filtered[2].mean, direct[2].mean)
    assert_near(filtered[2].m2, direct[2].m2)


@given(case=cases(), relu=st.booleans(), through_norm=st.booleans())
def test_backward_equals_direct_sums(case, relu, through_norm, make_array):
    x = make_array(case.seed, case.x_shape, "float64", case.layout)
    w = make_array(case.seed + 1, case.w_shape, "float64", case.layout)
    grad = make_array(case.seed + 2, case.y_shape, "float64", case.layout)
    above = make_array(case.seed + 3, case.y_shape, "float64", case.layout)
    cin, cout = case.channels
    fused = dict(
        prologue=Prologue(vector(case, 4, cin), vector(case, 5, cin), relu),
        norm_grad=NormGrad(above, *(vector(case, 6 + i, cout) for i in range(3)))
        if through_norm else NormGrad(None, vector(case, 6, cout), None, None),
        mask=Mask(x, Prologue(vector(case, 4, cin), vector(case, 5, cin), relu),
                  vector(case, 9, cin)),
    )
    for options in ({}, fused):
        with filtering(False, case):
            dx, sums, dw = convolution.conv2d_backward(x, grad, w, **case.geometry, **options)
        with filtering(True, case):
            found, their_sums, their_dw = convolution.conv2d_backward(
                x, grad, w, **case.geometry, **options
            )
            again = convolution.conv2d_backward(x, grad, w, **case.geometry, **options)
            alone = convolution.conv2d_backward(
                x, grad, w, **case.geometry, **options, needs=(True, False)
            )
            other = convolution.conv2d_backward(
                x, grad, w, **case.geometry, **options, needs=(False, True)
            )
        assert_near(found, dx)
        assert_near(their_dw, dw)
        assert np.array_equal(found, again[0]) and np.array_equal(their_dw, again[2])
        assert alone[2] is None and other[0] is None
        assert_near(alone[0], dx)
        assert_near(other[2], dw)
        assert (sums is None) == (their_sums is None)
        if sums is not None:
            assert_near(their_sums.grad, sums.grad)
            assert_near(their_sums.grad_centred, sums.grad_centred)


@given(case=cases())
def test_rounding_is_that_of_the_sums_that_the_transforms_form(case, make_array):
    """In float32, errors stay within 4 units of rounding of the sum of the absolute values of all
    terms, which is what transforming absolute values by absolute matrices computes."""
    x = make_array(case.seed, case.x_shape, "float32", "plain")
    w = make_array(case.seed + 1, case.w_shape, "float32", "plain")
    grad = make_array(case.seed + 2, case.y_shape, "float32", "plain")

    def both(x, w, grad):
        y, _ = convolution.conv2d_forward(x, w, **case.geometry)
        dx, _, dw = convolution.conv2d_backward(x, grad, w, **case.geometry)
        return y, dx, dw

    wide = [a.astype(np.float64) for a in (x, w, grad)]
    transforms = winograd._transforms
    with filtering(True, case):
        found, exact = both(x, w, grad), both(*wide)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                winograd, "_transforms",
                lambda dtype: winograd._Transforms(*(abs(m) for m in transforms(dtype))),
            )
            magnitude = both(*(abs(a) for a in wide))
    for ours, reference, terms in zip(found, exact, magnitude, strict=True):
        assert ours.dtype == np.float32
        assert (abs(ours - reference) <= 4 * np.finfo(np.float32).eps * terms).all()


@pytest.mark.parametrize("size, channels, outputs", [(28, 64, 64), (14, 128, 96)])
def test_float32_is_as_accurate_as_stated(size, channels, outputs):
    rng = np.random.default_rng(0)
    x, grad = (rng.standard_normal((4, size, size, c)) for c in (channels, outputs))
    w = rng.standard_normal((3, 3, channels, outputs))
    case = Case(0, 4, (size, size), (1, 1), (channels, outputs), "plain", 64, 2)
    single = [a.astype(np.float32) for a in (x, grad, w)]
    with filtering(False, case):
        y, _ = convolution.conv2d_forward(x, w, **case.geometry)
        dx, _, dw = convolution.conv2d_backward(x, grad, w, **case.geometry)
    with filtering(True, case):
        found = (
            convolution.conv2d_forward(single[0], single[2], **case.geometry)[0],
            *convolution.conv2d_backward(*single, **case.geometry)[::2],
        )
    for ours, reference in zip(found, (y, dx, dw), strict=True):
        assert abs(ours - reference).max() < 1.5e-5 * abs(reference).max()


def test_it_is_chosen_where_it_wins():
    assert winograd.wins(8, (56, 56), 64, 64)
    assert winograd.wins(8, (14, 14), 256, 256)
    assert winograd.wins(1, (28, 28), 128, 128)
    assert not winograd.wins(8, (7, 7), 512, 512)  # transforming the filters costs too much
    assert not winograd.wins(64, (64, 64), 16, 16)  # transforming the pixels does
    assert not winograd.wins(0, (8, 8), 64, 64)


def test_only_what_it_can_do_is_filtered(monkeypatch):
    """Strides, dilations, groups, other kernels and wide paddings never come here."""
    monkeypatch.setattr(winograd, "wins", lambda *_: True)
    monkeypatch.setattr(winograd, "forward", lambda *_: pytest.fail("filtered"))
    x = np.ones((1, 9, 9, 4))
    usual = dict(stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1)
    for kernel, change in (
        (3, dict(stride=(2, 1))), (3, dict(dilation=(1, 2))), (3, dict(padding=(3, 0))), (5, {}),
    ):
        convolution.conv2d_forward(x, np.ones((kernel, kernel, 4, 4)), **(usual | change))
    convolution.conv2d_forward(x, np.ones((3, 3, 2, 4)), **(usual | dict(groups=2)))
