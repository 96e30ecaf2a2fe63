"""CPU convolution against loops over output pixels in float64, and its fused forms against the
simple kernels they stand for."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlite.kernels import cpu
from tensorlite.kernels.contract import Epilogue, Mask, NormGrad, Prologue
from tensorlite.kernels.cpu import convolution, memory, pointwise


class Case(NamedTuple):
    seed: int
    images: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    channels: tuple[int, int]  # in and out, of one group
    dtype: str
    layout: str
    workspace: int
    threads: int

    @property
    def geometry(self) -> dict:
        return dict(
            stride=self.stride, padding=self.padding, dilation=self.dilation, groups=self.groups
        )

    @property
    def x_shape(self):
        return (self.images, *self.size, self.groups * self.channels[0])

    @property
    def w_shape(self):
        return (*self.kernel, self.channels[0], self.groups * self.channels[1])

    @property
    def y_shape(self):
        size = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(
                self.size, self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )
        return (self.images, *size, self.groups * self.channels[1])


@pytest.fixture(scope="session")
def machine(machine):
    """Small bands also for what only convolutions have, products shared by channels, and results
    that are full of NaN until they are written."""
    empty = memory.empty

    def unwritten(shape, dtype):
        array = empty(shape, dtype)
        array[...] = np.nan
        return array

    @contextlib.contextmanager
    def patched(workspace, threads):
        with pytest.MonkeyPatch.context() as patch, machine(workspace, threads):
            patch.setattr(memory, "empty", unwritten)
            patch.setattr(pointwise, "WORKSPACE", workspace)
            patch.setattr(pointwise, "MIN_PIXELS", 1)
            patch.setattr(pointwise, "GRAIN_FLOPS", 1)
            patch.setattr(convolution, "FEW_PIXELS", 15)
            patch.setattr(convolution, "MIN_OUTPUTS", 2)
            patch.setattr(convolution, "GRAIN_VALUES", 1)
            yield

    return patched


def pair(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def cases(draw):
    kernel, dilation, padding = draw(pair(1, 4)), draw(pair(1, 2)), draw(pair(0, 3))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding,
                                                                strict=True)]
    size = tuple(draw(st.integers(low, low + 6)) for low in least)
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    # 33 channels take the path of wide products, the others that of thin ones.
    channels = st.sampled_from([1, 2, 5, 33]) if groups == 1 else st.integers(1, 3)
    return Case(
        seed=draw(st.integers(0, 2**31)),
        images=draw(st.integers(1, 3)),
        size=size,
        kernel=kernel,
        stride=draw(pair(1, 3)),
        padding=padding,
        dilation=dilation,
        groups=groups,
        channels=(draw(channels), draw(channels)),
        dtype=draw(st.sampled_from(["float32", "float64"])),
        layout=draw(st.sampled_from(["plain", "strided", "transposed", "reversed"])),
        workspace=draw(st.sampled_from([1, 4096, 1 << 21])),
        threads=draw(st.integers(1, 3)),
    )


def windows(case: Case):
    """For each group and output pixel: what it reads of the padded input, and where it lies."""
    cin, cout = case.channels
    (sh, sw), (dh, dw), (kh, kw) = case.stride, case.dilation, case.kernel
    for g in range(case.groups):
        for i in range(case.y_shape[1]):
            for j in range(case.y_shape[2]):
                rows = slice(i * sh, i * sh + dh * (kh - 1) + 1, dh)
                columns = slice(j * sw, j * sw + dw * (kw - 1) + 1, dw)
                inputs = (slice(None), rows, columns, slice(g * cin, (g + 1) * cin))
                outputs = (slice(None), i, j, slice(g * cout, (g + 1) * cout))
                yield inputs, outputs, slice(g * cout, (g + 1) * cout)


def padded(case: Case, x):
    (ph, pw) = case.padding
    return np.pad(np.asarray(x, np.float64), ((0, 0), (ph, ph), (pw, pw), (0, 0)))


def forward_reference(case: Case, x, w):
    w, inside = np.asarray(w, np.float64), padded(case, x)
    y = np.zeros(case.y_shape)
    for inputs, outputs, group in windows(case):
        y[outputs] = np.tensordot(inside[inputs], w[..., group], 3)
    return y


def grad_input_reference(case: Case, grad, w):
    w, grad = np.asarray(w, np.float64), np.asarray(grad, np.float64)
    dx = padded(case, np.zeros(case.x_shape))
    for inputs, outputs, group in windows(case):
        dx[inputs] += np.tensordot(grad[outputs], w[..., group], (1, 3))
    (ph, pw), (h, w_) = case.padding, case.size
    return dx[:, ph : ph + h, pw : pw + w_]


def grad_weight_reference(case: Case, x, grad):
    grad, inside = np.asarray(grad, np.float64), padded(case, x)
    dw = np.zeros(case.w_shape)
    for inputs, outputs, group in windows(case):
        dw[..., group] += np.tensordot(inside[inputs], grad[outputs], (0, 0))
    return dw


def vector(case: Case, offset: int, channels: int):
    return np.random.default_rng(case.seed + offset).uniform(-1, 1, channels).astype(case.dtype)


@given(case=cases(), bias=st.booleans())
def test_forward(case, bias, make_array, machine, assert_close):
    x = make_array(case.seed, case.x_shape, case.dtype, case.layout)
    w = make_array(case.seed + 1, case.w_shape, case.dtype, case.layout)
    b = vector(case, 2, case.y_shape[3]) if bias else None
    with machine(case.workspace, case.threads):
        y, moments = convolution.conv2d_forward(x, w, b, **case.geometry)
        again, _ = convolution.conv2d_forward(x, w, b, **case.geometry)
    assert moments is None and y.dtype == x.dtype and y.flags.c_contiguous
    assert np.array_equal(y, again)
    bias_term = 0 if b is None else b
    magnitude = forward_reference(case, abs(x), abs(w)) + np.abs(bias_term)
    assert_close(y, forward_reference(case, x, w) + bias_term, magnitude)


@given(case=cases())
def test_grad_input(case, make_array, machine, assert_close):
    grad = make_array(case.seed, case.y_shape, case.dtype, case.layout)
    w = make_array(case.seed + 1, case.w_shape, case.dtype, case.layout)
    with machine(case.workspace, case.threads):
        dx, sums = convolution.conv2d_grad_input(grad, w, case.x_shape, **case.geometry)
        again, _ = convolution.conv2d_grad_input(grad, w, case.x_shape, **case.geometry)
    assert sums is None and dx.dtype == grad.dtype and dx.flags.c_contiguous
    assert np.array_equal(dx, again)
    magnitude = grad_input_reference(case, abs(grad), abs(w))
    assert_close(dx, grad_input_reference(case, grad, w), magnitude)


@given(case=cases())
def test_grad_weight(case, make_array, machine, assert_close):
    x = make_array(case.seed, case.x_shape, case.dtype, case.layout)
    grad = make_array(case.seed + 1, case.y_shape, case.dtype, case.layout)
    with machine(case.workspace, case.threads):
        dw = convolution.conv2d_grad_weight(x, grad, case.kernel, **case.geometry)
        again = convolution.conv2d_grad_weight(x, grad, case.kernel, **case.geometry)
    assert dw.dtype == x.dtype and dw.flags.c_contiguous
    assert np.array_equal(dw, again)
    magnitude = grad_weight_reference(case, abs(x), abs(grad))
    assert_close(dw, grad_weight_reference(case, x, grad), magnitude)


@given(case=cases(), relu=st.booleans(), bias=st.booleans())
def test_prologue_and_statistics_equal_their_own_kernels(
    case, relu, bias, make_array, machine, assert_close
):
    x = make_array(case.seed, case.x_shape, case.dtype, case.layout)
    w = make_array(case.seed + 1, case.w_shape, case.dtype, "plain")
    b = vector(case, 2, case.y_shape[3]) if bias else None
    prologue = Prologue(vector(case, 3, x.shape[3]), vector(case, 4, x.shape[3]), relu)
    with machine(case.workspace, case.threads):
        y, moments = convolution.conv2d_forward(
            x, w, b, **case.geometry, prologue=prologue, statistics=True
        )
        plain, _ = convolution.conv2d_forward(cpu.affine(x, *prologue), w, b, **case.geometry)
        expected = cpu.moments(y)
    activation = np.abs(x) * np.abs(prologue.scale) + np.abs(prologue.shift)
    magnitude = forward_reference(case, activation, abs(w)) + (0 if b is None else abs(b))
    assert_close(y, plain.astype(np.float64), magnitude)
    rows, squares = y[..., 0].size, np.square(y, dtype=np.float64).sum((0, 1, 2))
    for found in (moments, expected):
        assert found.count == rows
        assert_close(found.mean, y.mean((0, 1, 2), np.float64), abs(y).max())
        assert_close(found.m2, y.var((0, 1, 2), np.float64) * rows, squares)


@given(case=cases(), relu=st.booleans(), residual=st.booleans(), scaled=st.booleans())
def test_the_epilogue_comes_after_bias_and_statistics(
    case, relu, residual, scaled, make_array, machine, assert_close
):
    x = make_array(case.seed, case.x_shape, case.dtype, case.layout)
    w = make_array(case.seed + 1, case.w_shape, case.dtype, "plain")
    skip = make_array(case.seed + 2, case.y_shape, case.dtype, case.layout)
    b, scale, shift = (vector(case, 3 + i, case.y_shape[3]) for i in range(3))
    epilogue = Epilogue(scale if scaled else None, shift, skip if residual else None, relu)
    with machine(case.workspace, case.threads):
        y, moments = convolution.conv2d_forward(
            x, w, b, **case.geometry, statistics=True, epilogue=epilogue
        )
        plain, expected = convolution.conv2d_forward(x, w, b, **case.geometry, statistics=True)
    for found, wanted in zip(moments, expected, strict=True):
        assert np.array_equal(found, wanted)
    result = plain.astype(np.float64) * (scale if scaled else 1) + shift
    result = result + (skip if residual else 0)
    magnitude = abs(plain) + abs(shift) + abs(skip)
    assert_close(y, np.maximum(result, 0) if relu else result, magnitude)


def point(case: Case) -> Case:
    """The same with a kernel of one pixel, which has its own way."""
    return case._replace(kernel=(1, 1), padding=(0, 0), groups=1)


@given(
    case=cases() | cases().map(point),
    relu=st.booleans(),
    through_norm=st.sampled_from(["no", "scale", "all"]),
)
def test_backward_equals_both_gradients(case, relu, through_norm, make_array, machine,
                                        assert_close):
    x = make_array(case.seed, case.x_shape, case.dtype, case.layout)
    w = make_array(case.seed + 1, case.w_shape, case.dtype, "plain")
    grad = make_array(case.seed + 2, case.y_shape, case.dtype, case.layout)
    above = make_array(case.seed + 3, case.y_shape, case.dtype, case.layout)
    out, cin = case.y_shape[3], case.x_shape[3]
    norm = NormGrad(above, *(vector(case, 4 + i, out) for i in range(3)))
    if through_norm == "scale":
        norm = NormGrad(None, norm.scale, None, None)
    prologue = Prologue(vector(case, 7, cin), vector(case, 8, cin), relu)
    options = dict(norm_grad=None if through_norm == "no" else norm)
    mask = Mask(x, prologue, vector(case, 9, cin))
    with machine(case.workspace, case.threads):
        dx, sums, dw = convolution.conv2d_backward(
            x, grad, w, **case.geometry, **options, prologue=prologue, mask=mask
        )
        one = convolution.conv2d_backward(
            x, grad, w, **case.geometry, **options, mask=mask, needs=(True, False)
        )
        other = convolution.conv2d_backward(
            x, grad, w, **case.geometry, **options, prologue=prologue, needs=(False, True)
        )
    scale = np.ones(out) if through_norm == "no" else norm.scale.astype(np.float64)
    below, size = grad * scale, abs(grad * scale)
    if through_norm == "all":
        below = below + norm.slope * above.astype(np.float64) + norm.offset
        size = size + abs(norm.slope * above) + abs(norm.offset)
    activation = x.astype(np.float64) * prologue.scale + prologue.shift
    # What the relu cuts is decided in the kernels' own precision.
    open_ = x * prologue.scale + prologue.shift > 0 if relu else np.ones(x.shape, bool)
    expected = grad_input_reference(case, below, w) * open_
    magnitude = grad_input_reference(case, size, abs(w))
    assert_close(dx, expected, magnitude)
    assert_close(sums.grad, expected.sum((0, 1, 2)), magnitude.sum((0, 1, 2)))
    centred = x - mask.mean.astype(np.float64)
    assert_close(sums.grad_centred, (expected * centred).sum((0, 1, 2)),
                 (magnitude * abs(centred)).sum((0, 1, 2)))
    spread = abs(x) * abs(prologue.scale) + abs(prologue.shift)
    assert_close(dw, grad_weight_reference(case, activation * open_, below),
                 grad_weight_reference(case, spread, size))
    assert np.array_equal(one[0], dx) and one[2] is None
    assert np.array_equal(other[2], dw) and other[0] is None and other[1] is None


@given(case=cases(), relu=st.booleans(), through_norm=st.booleans())
def test_norm_grad_and_mask_equal_their_own_kernels(
    case, relu, through_norm, make_array, machine, assert_close
):
    grad = make_array(case.seed, case.y_shape, case.dtype, case.layout)
    w = make_array(case.seed + 1, case.w_shape, case.dtype, "plain")
    z_above = make_array(case.seed + 2, case.y_shape, case.dtype, case.layout)
    z = make_array(case.seed + 3, case.x_shape, case.dtype, case.layout)
    out, cin = case.y_shape[3], case.x_shape[3]
    norm = NormGrad(z_above, *(vector(case, 4 + i, out) for i in range(3)))
    activation = Prologue(vector(case, 7, cin), vector(case, 8, cin), relu)
    mean = vector(case, 9, cin)
    with machine(case.workspace, case.threads):
        dx, sums = convolution.conv2d_grad_input(
            grad, w, case.x_shape, **case.geometry,
            norm_grad=norm if through_norm else None, mask=Mask(z, activation, mean),
        )
        below = cpu.norm_backward(grad, *norm) if through_norm else grad
        plain, _ = convolution.conv2d_grad_input(below, w, case.x_shape, **case.geometry)
        if relu:
            plain = cpu.relu_backward(plain, cpu.affine(z, *activation))
        expected = cpu.norm_backward_sums(plain, z, mean)
    parts = [abs(grad)]
    if through_norm:
        parts = [abs(norm.scale * grad), abs(norm.slope * z_above), abs(norm.offset)]
    magnitude = grad_input_reference(case, sum(parts), abs(w))
    assert_close(dx, plain.astype(np.float64), magnitude)
    assert_close(sums.grad, expected.grad.astype(np.float64), magnitude.sum((0, 1, 2)))
    centred = (magnitude * abs(z - mean)).sum((0, 1, 2))
    assert_close(sums.grad_centred, expected.grad_centred.astype(np.float64), centred)


@given(case=cases(), relu=st.booleans())
def test_grad_weight_through_prologue_and_norm(case, relu, make_array, machine, assert_close):
    x = make_array(case.seed, case.x_shape, case.dtype, case.layout)
    grad = make_array(case.seed + 1, case.y_shape, case.dtype, case.layout)
    z = make_array(case.seed + 2, case.y_shape, case.dtype, case.layout)
    prologue = Prologue(vector(case, 3, x.shape[3]), vector(case, 4, x.shape[3]), relu)
    norm = NormGrad(z, *(vector(case, 5 + i, z.shape[3]) for i in range(3)))
    with machine(case.workspace, case.threads):
        dw = convolution.conv2d_grad_weight(
            x, grad, case.kernel, **case.geometry, prologue=prologue, norm_grad=norm
        )
        plain = convolution.conv2d_grad_weight(
            cpu.affine(x, *prologue), cpu.norm_backward(grad, *norm), case.kernel, **case.geometry
        )
    activation = np.abs(x) * np.abs(prologue.scale) + np.abs(prologue.shift)
    parts = [abs(norm.scale * grad), abs(norm.slope * z), abs(norm.offset)]
    magnitude = grad_weight_reference(case, activation, sum(parts))
    assert_close(dw, plain.astype(np.float64), magnitude)


def test_the_mask_closes_where_the_activation_is_exactly_zero():
    z = np.array([-1.0, 0.0, 2.0], np.float32).reshape(1, 1, 3, 1)
    activation = Prologue(np.ones(1, np.float32), np.zeros(1, np.float32), True)
    dx, sums = convolution.conv2d_grad_input(
        np.ones((1, 1, 3, 1), np.float32), np.ones((1, 1, 1, 1), np.float32), z.shape,
        stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1,
        mask=Mask(z, activation, np.full(1, 0.5, np.float32)),
    )
    assert dx.ravel().tolist() == [0, 0, 1]
    assert sums.grad.tolist() == [1] and sums.grad_centred.tolist() == [1.5]


@pytest.mark.parametrize("kernel, padding", [((1, 1), (0, 0)), ((3, 3), (1, 1))])
def test_an_empty_batch(kernel, padding):
    x = np.zeros((0, 5, 6, 3), np.float32)
    w = np.ones((*kernel, 3, 4), np.float32)
    geometry = dict(stride=(1, 1), padding=padding, dilation=(1, 1), groups=1)
    bias = np.ones(4, np.float32)
    y, moments = convolution.conv2d_forward(x, w, bias, **geometry, statistics=True)
    assert y.shape == (0, 5, 6, 4) and moments.count == 0
    assert convolution.conv2d_grad_input(y, w, x.shape, **geometry)[0].shape == x.shape
    assert not convolution.conv2d_grad_weight(x, y, kernel, **geometry).any()


@pytest.mark.parametrize("size, cin, cout, kernel, stride", [
    ((56, 56), 64, 64, 3, 1), ((14, 14), 16, 128, 3, 2), ((64, 64), 3, 16, 7, 2),
    ((8, 8), 32, 32, 3, 1), ((7, 7), 128, 40, 1, 1),
])
def test_the_shapes_of_real_networks_at_every_thread_count(
    size, cin, cout, kernel, stride, assert_close
):
    """The default bands, against float64 arithmetic of the same kernels proven above."""
    rng = np.random.default_rng(0)
    geometry = dict(stride=(stride,) * 2, padding=(kernel // 2,) * 2, dilation=(1, 1), groups=1)
    x = rng.standard_normal((5, *size, cin))
    w = rng.standard_normal((kernel, kernel, cin, cout))
    y, moments = convolution.conv2d_forward(x, w, **geometry, statistics=True)
    grad = rng.standard_normal(y.shape)
    dx, _ = convolution.conv2d_grad_input(grad, w, x.shape, **geometry)
    dw = convolution.conv2d_grad_weight(x, grad, (kernel, kernel), **geometry)
    before = cpu.get_num_threads()
    single = [a.astype(np.float32) for a in (x, w, grad)]
    try:
        for threads in (1, 2, 3):  # a result's terms, in the mean below one, are its magnitude
            cpu.set_num_threads(threads)
            y32, moments32 = convolution.conv2d_forward(*single[:2], **geometry, statistics=True)
            assert_close(y32, y, w[..., 0].size)
            assert_close(moments32.m2, moments.m2, moments.m2 + moments.mean**2 * moments.count)
            dx32, _ = convolution.conv2d_grad_input(single[2], single[1], x.shape, **geometry)
            assert_close(dx32, dx, w[..., 0, :].size)
            dw32 = convolution.conv2d_grad_weight(
                single[0], single[2], (kernel, kernel), **geometry
            )
            assert_close(dw32, dw, grad[..., 0].size)
    finally:
        cpu.set_num_threads(before)


@given(case=cases())
def test_against_pytorch(case, make_array):
    torch = pytest.importorskip("torch")
    arrays = [
        make_array(case.seed + i, shape, "float64", "plain")
        for i, shape in enumerate((case.x_shape, case.w_shape, case.y_shape))
    ]
    x, w, grad = arrays
    tx = torch.tensor(x.transpose(0, 3, 1, 2).copy(), requires_grad=True)
    tw = torch.tensor(w.transpose(3, 2, 0, 1).copy(), requires_grad=True)
    ty = torch.nn.functional.conv2d(
        tx, tw, None, case.stride, case.padding, case.dilation, case.groups
    )
    ty.backward(torch.tensor(grad.transpose(0, 3, 1, 2).copy()))
    y, _ = convolution.conv2d_forward(x, w, **case.geometry)
    dx, _ = convolution.conv2d_grad_input(grad, w, x.shape, **case.geometry)
    dw = convolution.conv2d_grad_weight(x, grad, case.kernel, **case.geometry)
    for ours, theirs, axes in (
        (y, ty.detach(), (0, 2, 3, 1)), (dx, tx.grad, (0, 2, 3, 1)), (dw, tw.grad, (2, 3, 1, 0))
    ):
        np.testing.assert_allclose(ours, theirs.numpy().transpose(axes), rtol=1e-11, atol=1e-11)
