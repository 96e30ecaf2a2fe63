"""Single ops against PyTorch in float64: forward and every gradient, to 1e-10."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorlite as tl
from tensorlite import Tensor

from .op_cases import both, conv2d_options, normal, pool_options

torch = pytest.importorskip("torch")
F = torch.nn.functional


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def agree(ours: Callable[..., Tensor], theirs: Callable[..., Any],
          arrays: Sequence[np.ndarray]) -> None:
    """Both functions give the same at `arrays`, and the same gradients for a random cotangent:
    largest error over largest value of each array below 1e-10."""
    mine = [Tensor(a.copy(), requires_grad=True) for a in arrays]
    other = [torch.tensor(a, requires_grad=True) for a in arrays]
    y, expected = ours(*mine), theirs(*other)
    assert y.shape == tuple(expected.shape)
    cotangent = draw(*y.shape, seed=99)
    y.backward(cotangent)
    expected.backward(torch.tensor(cotangent))
    pairs = [(y.numpy(), expected.detach())]
    pairs += [(m.grad, o.grad) for m, o in zip(mine, other, strict=True)]
    for value, reference in pairs:
        reference = reference.numpy()
        scale = np.abs(reference).max(initial=1e-3)
        np.testing.assert_allclose(value, reference, rtol=0, atol=1e-10 * scale)


def nchw(x: Any) -> Any:
    return x.permute(0, 3, 1, 2)


def nhwc(x: Any) -> Any:
    return x.permute(0, 2, 3, 1)


def conv2d(x: Any, weight: Any, bias: Any = None, **options: Any) -> Any:
    # (PyTorch's slow_conv2d refuses the gradient of a weight that is not contiguous.)
    return nhwc(F.conv2d(nchw(x), weight.permute(3, 2, 0, 1).contiguous(), bias, **options))


@given(data=st.data(), bias=st.booleans())
def test_conv2d_with_all_options(data: st.DataObject, bias: bool):
    drawn = conv2d_options(data.draw)
    options, shapes = drawn["options"], [drawn["x"], drawn["weight"]]
    shapes += [drawn["weight"][3:]] * bias
    arrays = [normal(data.draw, *s) for s in shapes]
    agree(lambda *t: tl.conv2d(*t, **options), lambda *t: conv2d(*t, **options), arrays)


@pytest.mark.parametrize(("x", "weight", "options"), [
    ((2, 33, 29, 3), (7, 7, 3, 16), {"stride": 2, "padding": 3}),
    ((2, 14, 14, 32), (3, 3, 32, 24), {"padding": 1}),
    ((2, 15, 15, 32), (1, 1, 32, 48), {"stride": 2}),
    ((2, 12, 10, 12), (3, 3, 3, 8), {"groups": 4, "dilation": 2, "padding": 2}),
])
def test_conv2d_at_the_sizes_of_layers(x, weight, options):
    agree(lambda *t: tl.conv2d(*t, **options), lambda *t: conv2d(*t, **options),
          [draw(*x), draw(*weight, seed=1), draw(weight[3], seed=2)])


@pytest.mark.parametrize("mode", ["train", "frozen", "eval"])
@pytest.mark.parametrize("shape", [(6, 5), (4, 7, 6, 3)])
@pytest.mark.parametrize(("momentum", "eps"), [(0.1, 1e-5), (0.3, 1e-3)])
def test_batch_norm_and_its_running_statistics(mode: str, shape, momentum: float, eps: float):
    channels = shape[-1]
    running = [draw(channels, seed=4), np.exp(draw(channels, seed=5))]
    mine = [r.copy() for r in running]
    other = [torch.tensor(r) for r in running]

    def theirs(x: Any, gamma: Any, beta: Any) -> Any:
        y = F.batch_norm(x.movedim(-1, 1), *other, gamma, beta, mode == "train", momentum, eps)
        return y.movedim(1, -1)

    agree(lambda x, gamma, beta: tl.batch_norm(x, gamma, beta, *mine, mode, momentum, eps), theirs,
          [3 * draw(*shape) + 2, draw(channels, seed=1), draw(channels, seed=2)])
    for m, o in zip(mine, other, strict=True):
        np.testing.assert_allclose(m, o.numpy(), rtol=1e-12)


@given(data=st.data(), name=st.sampled_from(["max", "avg"]), ties=st.booleans())
def test_pooling(data: st.DataObject, name: str, ties: bool):
    shape, options = pool_options(data.draw)
    x = normal(data.draw, *shape)
    if ties:  # PyTorch gives the gradient to the first of equal maxima
        x = np.round(x)
    pool, reference = getattr(tl, f"{name}_pool2d"), getattr(F, f"{name}_pool2d")
    kernel, stride, padding = (options[k] for k in ("kernel", "stride", "padding"))
    if len(x) == 0:
        x = normal(data.draw, 1, *shape[1:])  # PyTorch refuses an empty batch here
    agree(lambda x: pool(x, **options),
          lambda x: nhwc(reference(nchw(x), kernel, stride, both(padding))), [x])


def test_global_avg_pool():
    agree(tl.global_avg_pool, lambda x: F.adaptive_avg_pool2d(nchw(x), 1).flatten(1),
          [draw(3, 5, 4, 6)])


@pytest.mark.parametrize("lengths", [[5, 5, 5], [5, 3, 1], [1, 4, 5], None])
@pytest.mark.parametrize("initial", [False, True])
def test_gru_with_ragged_lengths(lengths, initial: bool):
    batch, steps, features, hidden = 3, 5, 4, 6
    shapes = [(batch, steps, features), (features, 3 * hidden), (hidden, 3 * hidden),
              (3 * hidden,), (3 * hidden,)] + [(batch, hidden)] * initial
    arrays = [draw(*s, seed=i) for i, s in enumerate(shapes)]

    def theirs(x: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any, h0: Any = None) -> Any:
        module = torch.nn.GRU(features, hidden, batch_first=True, dtype=torch.float64)
        weights = {"weight_ih_l0": w_ih.T, "weight_hh_l0": w_hh.T, "bias_ih_l0": b_ih,
                   "bias_hh_l0": b_hh}
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            x, torch.tensor(lengths or [steps] * batch), batch_first=True, enforce_sorted=False)
        state = () if h0 is None else (h0[None],)
        out, _ = torch.func.functional_call(module, weights, (packed, *state))
        padded, _ = torch.nn.utils.rnn.pad_packed_sequence(out, batch_first=True,
                                                           total_length=steps)
        return padded

    agree(lambda x, *rest: tl.gru(x, lengths, *rest), theirs, arrays)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_cross_entropy(reduction: str, scale: float):
    labels = np.random.default_rng(3).integers(7, size=9)
    agree(lambda x: tl.cross_entropy(x, labels, reduction),
          lambda x: F.cross_entropy(x, torch.tensor(labels), reduction=reduction),
          [scale * draw(9, 7)])


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax(name: str):
    agree(getattr(tl, name), lambda x: getattr(F, name)(x, dim=-1), [draw(3, 4, 5)])


def test_linear():
    agree(tl.linear, lambda x, w, b: F.linear(x, w.T, b),
          [draw(2, 3, 4), draw(4, 5, seed=1), draw(5, seed=2)])


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "relu", "exp"])
def test_elementwise(name: str):
    agree(getattr(tl, name), getattr(torch, name), [3 * draw(40)])
