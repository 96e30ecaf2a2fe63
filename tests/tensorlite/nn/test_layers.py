"""Layers: each calls its op with its own options and parameters, starts as documented, and refuses
options that make no sense."""

from __future__ import annotations

import math

import numpy as np
import pytest

import tensorlite
from tensorlite import Tensor
from tensorlite.nn import GRU, BatchNorm2d, Conv2d, Dropout, Linear, ReLU, Sequential


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def test_conv2d_passes_its_options_on():
    layer = Conv2d(4, 6, (3, 1), stride=(2, 1), padding=(1, 0), dilation=(2, 1), groups=2,
                   bias=True, rng=0).to(dtype=np.float64)
    layer.bias.data = draw(6, seed=1)
    x = Tensor(draw(2, 9, 7, 4))
    expected = tensorlite.conv2d(x, layer.weight, layer.bias, stride=(2, 1), padding=(1, 0),
                                 dilation=(2, 1), groups=2)
    np.testing.assert_array_equal(layer(x).numpy(), expected.numpy())
    assert layer(x).shape == (2, 4, 7, 6)
    assert layer.weight.shape == (3, 1, 2, 6)
    assert repr(layer) == ("Conv2d(4, 6, kernel=(3, 1), stride=(2, 1), padding=(1, 0), "
                           "dilation=(2, 1), groups=2, bias=True)")


def test_conv2d_starts_as_kaiming_normal():
    weight = Conv2d(64, 64, 3, rng=0).weight.data
    assert weight.std() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.02)
    assert Conv2d(2, 2, 1).bias is None
    assert not Conv2d(2, 2, 1, bias=True).bias.data.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cin": 0}, "cin is an int >= 1, got 0"),
        ({"cout": 2.5}, "cout is an int >= 1, got 2.5"),
        ({"kernel": 0}, "kernel is an int or a pair of ints >= 1, got 0"),
        ({"stride": (1, 2, 3)}, r"stride is an int or a pair of ints >= 1, got \(1, 2, 3\)"),
        ({"padding": -1}, "padding is an int or a pair of ints >= 0, got -1"),
        ({"dilation": 1.0}, "dilation is an int or a pair of ints >= 1, got 1.0"),
        ({"groups": 3}, "groups must divide cin and cout, got 3 for 4 and 6"),
    ],
)
def test_conv2d_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Conv2d(**{"cin": 4, "cout": 6, "kernel": 3} | options)


def test_batch_norm_modes():
    norm = BatchNorm2d(3, momentum=0.25, eps=1e-3).to(dtype=np.float64)
    norm.gamma.data, norm.beta.data = draw(3, seed=1), draw(3, seed=2)
    x = 2 * draw(4, 5, 5, 3) + 1
    assert norm.mode == "train"
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    expected = (x - mean) / np.sqrt(var + 1e-3) * norm.gamma.data + norm.beta.data
    np.testing.assert_allclose(norm(Tensor(x)).numpy(), expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(norm.running_mean, 0.25 * mean, rtol=1e-12)
    np.testing.assert_allclose(norm.running_var, 0.75 + 0.25 * var * 100 / 99, rtol=1e-12)

    running = norm.running_mean.copy(), norm.running_var.copy()
    expected = (x - running[0]) / np.sqrt(running[1] + 1e-3) * norm.gamma.data + norm.beta.data
    for mode in ("frozen", "eval"):
        norm.freeze() if mode == "frozen" else norm.eval()
        assert norm.mode == mode
        np.testing.assert_allclose(norm(Tensor(x)).numpy(), expected, rtol=1e-10, atol=1e-12)
        np.testing.assert_array_equal((norm.running_mean, norm.running_var), running)
    assert norm.freeze(False).train().mode == "train"


def test_a_frozen_norm_still_trains_gamma_and_beta():
    norm = BatchNorm2d(2).freeze()
    assert [name for name, _ in norm.named_parameters()] == ["gamma", "beta"]
    norm(Tensor(draw(3, 2, 2, 2).astype(np.float32))).sum().backward()
    np.testing.assert_allclose(norm.beta.grad, 12)
    assert norm.gamma.grad is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"c": 0}, "c is an int >= 1"),
        ({"momentum": 1.5}, "momentum lies in"),
        ({"eps": 0}, "eps is positive"),
        ({"eps": float("nan")}, "eps is positive"),
    ],
)
def test_batch_norm_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        BatchNorm2d(**{"c": 3} | options)


def test_linear():
    layer = Linear(50, 40, rng=0)
    assert layer.weight.shape == (50, 40) and layer.bias.shape == (40,)
    for p in layer.parameters():
        bound = np.abs(p.data).max() * math.sqrt(50)
        assert 0.8 < bound <= 1 + 1e-6
    x = draw(2, 3, 50)
    expected = x @ layer.weight.data.astype(float) + layer.bias.data
    layer.to(dtype=np.float64)
    np.testing.assert_allclose(layer(Tensor(x)).numpy(), expected, rtol=1e-10, atol=1e-12)
    plain = Linear(2, 2, bias=False)
    assert plain.bias is None and len(list(plain.parameters())) == 1
    with pytest.raises(ValueError, match="Linear: cout is an int >= 1, got '3'"):
        Linear(2, "3")


def test_dropout_draws_from_its_generator_only_in_training():
    layer, x = Dropout(0.25, rng=5), np.ones((100, 100), np.float32)
    first = layer(Tensor(x)).numpy()
    assert set(np.unique(first)) == {np.float32(0), np.float32(1 / 0.75)}
    assert (first == 0).mean() == pytest.approx(0.25, abs=0.02)
    assert not np.array_equal(layer(Tensor(x)).numpy(), first)
    layer.rng = np.random.default_rng(5)
    np.testing.assert_array_equal(layer(Tensor(x)).numpy(), first)
    np.testing.assert_array_equal(layer.eval()(Tensor(x)).numpy(), x)
    for p in (-0.1, 1, float("nan")):
        with pytest.raises(ValueError, match=r"Dropout: p lies in \[0, 1\)"):
            Dropout(p)


def test_gru():
    layer = GRU(3, 4, rng=0).to(dtype=np.float64)
    x, lengths, h0 = Tensor(draw(2, 5, 3)), np.array([5, 2]), Tensor(draw(2, 4, seed=1))
    weights = (layer.w_ih, layer.w_hh, layer.b_ih, layer.b_hh)
    assert [p.shape for p in weights] == [(3, 12), (4, 12), (12,), (12,)]
    expected = tensorlite.gru(x, lengths, *weights, h0)
    np.testing.assert_array_equal(layer(x, lengths, h0).numpy(), expected.numpy())
    full = tensorlite.gru(x, np.array([5, 5]), *weights)
    np.testing.assert_array_equal(layer(x).numpy(), full.numpy())


def test_gru_has_torchs_gates_in_order():
    torch = pytest.importorskip("torch")
    layer = GRU(3, 4, rng=0).to(dtype=np.float64)
    reference = torch.nn.GRU(3, 4, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        reference.weight_ih_l0.copy_(torch.tensor(layer.w_ih.data.T))
        reference.weight_hh_l0.copy_(torch.tensor(layer.w_hh.data.T))
        reference.bias_ih_l0.copy_(torch.tensor(layer.b_ih.data))
        reference.bias_hh_l0.copy_(torch.tensor(layer.b_hh.data))
        expected = reference(torch.tensor(draw(2, 5, 3)))[0].numpy()
    np.testing.assert_allclose(layer(Tensor(draw(2, 5, 3))).numpy(), expected, atol=1e-10)


def test_a_seed_gives_the_network_and_no_seed_another():
    def network(rng):
        return Sequential(Conv2d(2, 3, 1, rng=rng), Linear(3, 3, rng=rng), GRU(3, 2, rng=rng))

    one, same, other = (network(np.random.default_rng(s)).state_dict() for s in (1, 1, 2))
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not any(np.array_equal(one[name], other[name]) for name in one)
    assert not np.array_equal(Linear(3, 3).weight.data, Linear(3, 3).weight.data)


def test_every_trainable_parameter_of_a_small_network_gets_a_gradient():
    network = Sequential(Conv2d(2, 4, 3, padding=1, bias=True, rng=0), BatchNorm2d(4), ReLU(),
                         Dropout(0.1, rng=0), Linear(4, 3, rng=1))
    x = Tensor(draw(2, 5, 5, 2).astype(np.float32))
    loss = (network(x) * Tensor(draw(2, 5, 5, 3, seed=1).astype(np.float32))).sum()
    loss.backward()
    for name, p in network.named_parameters():
        assert p.grad is not None and p.grad.shape == p.shape, name
        if name != "0.bias":  # the norm takes the mean away
            assert np.abs(p.grad).max() > 0, name
