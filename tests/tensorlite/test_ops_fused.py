"""Fused operations equal the simple ones that they stand for, forwards and backwards, on every
device."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorlite as tl
from recres.models import recurrent_resnet, resnet18, resnet50
from tensorlite import nn
from tensorlite.ops.fused import Deferred, value_of

TOLERANCE = 1e-9  # in float64, of each array's largest value

modes = st.sampled_from(["train", "frozen"])
here = "cpu"  # the device that the tests of this file are on


@pytest.fixture(autouse=True, scope="module")
def on_each_device(device):
    global here
    here = device


def tensor(array, **options):
    return tl.Tensor(array, device=here, **options)


def host(array):
    return tl.Tensor(array).numpy().copy()


class Names(tl.Observer):
    def __init__(self):
        self.forward_of = []

    def forward(self, node, output):
        self.forward_of.append(node.name)


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        error = np.abs(ours[name] - expected).max(initial=0)
        scale = np.abs(expected).max(initial=0)
        assert error <= TOLERANCE * max(scale, 1e-3), f"{name}: {error:.1e} beside {scale:.1e}"


def layer(rng, cin, cout, kernel, stride, mode, dtype=np.float64):
    conv = nn.Conv2d(cin, cout, kernel, stride=stride, padding=kernel // 2, rng=rng)
    norm = nn.BatchNorm2d(cout)
    norm.freeze(mode == "frozen")
    for module in (conv, norm):
        module.to(dtype=dtype)
    norm.gamma.data = rng.uniform(-1.5, 1.5, cout).astype(dtype)
    norm.beta.data = rng.uniform(-0.5, 0.5, cout).astype(dtype)
    norm.running_mean[...] = rng.uniform(-0.5, 0.5, cout)
    norm.running_var[...] = rng.uniform(0.5, 1.5, cout)
    return conv.to(here), norm.to(here)


def run(program, layers, inputs, fused):
    """Output, gradients and running statistics of program(*tensors)."""
    before = [norm.state_dict() for _, norm in layers]
    tensors = [tensor(x, requires_grad=True) for x in inputs]
    with contextlib.nullcontext() if fused else tl.unfused():
        y = value_of(program(*tensors))
        rng = np.random.default_rng(1)
        y.backward(tensor(rng.standard_normal(y.shape)))
    found = {"y": y.numpy()}
    for i, t in enumerate(tensors):
        found[f"x{i}"] = host(t.grad)
    for i, (conv, norm) in enumerate(layers):
        for name, p in (("weight", conv.weight), ("gamma", norm.gamma), ("beta", norm.beta)):
            if p.grad is not None:
                found[f"{i}.{name}"] = host(p.grad)
            p.zero_grad()
        found[f"{i}.mean"], found[f"{i}.var"] = host(norm.running_mean), host(norm.running_var)
        norm.load_state_dict(before[i])
    return found


def compare(program, layers, inputs):
    assert_same(run(program, layers, inputs, True), run(program, layers, inputs, False))


@given(seed=st.integers(0, 2**31), n=st.integers(1, 3), size=st.integers(4, 9),
       channels=st.tuples(*[st.integers(1, 6)] * 4),
       kernels=st.tuples(*[st.sampled_from([1, 3])] * 3),
       stride=st.integers(1, 2), modes=st.tuples(modes, modes, modes), relu=st.booleans())
def test_chain_of_conv_norms(seed, n, size, channels, kernels, stride, modes, relu):
    rng = np.random.default_rng(seed)
    layers = [layer(rng, channels[i], channels[i + 1], kernels[i], stride if i == 1 else 1,
                    modes[i]) for i in range(3)]

    def program(x):
        for i, (conv, norm) in enumerate(layers):
            x = nn.conv_norm(x, conv, norm, relu=relu or i < 2)
        return x

    compare(program, layers, [rng.standard_normal((n, size, size, channels[0]))])


@given(seed=st.integers(0, 2**31), chunks=st.integers(1, 3), frames=st.integers(1, 4),
       size=st.integers(2, 4), left_out=st.booleans(), skip_whole=st.booleans(),
       before_whole=st.booleans(), kinds=st.tuples(*[st.sampled_from("tnr")] * 3))
def test_block_join(seed, chunks, frames, size, left_out, skip_whole, before_whole, kinds):
    """Terms that are tensors (t), norms (n) or norms with a relu (r), of whole or live frames."""
    left_out = left_out and frames > 1
    rng = np.random.default_rng(seed)
    layers = [layer(rng, 2, 3, 1, 1, "train") for _ in range(3)]
    kept = frames - left_out
    counts = (kept, frames if skip_whole else kept, frames if before_whole else frames - 1)
    inputs = [rng.standard_normal((chunks * count, size, size, 2 if kind != "t" else 3))
              for count, kind in zip(counts, kinds, strict=True)]
    if frames == 1:
        inputs.pop()

    def program(*tensors):
        terms = [t if kind == "t" else nn.conv_norm(t, *own, relu=kind == "r")
                 for t, kind, own in zip(tensors, kinds, layers, strict=False)]
        return tl.block_join(*terms, frames=frames, first_left_out=left_out)

    compare(program, layers, inputs)


def test_block_join_names_the_term_that_does_not_fit():
    a, b = (tl.Tensor(np.zeros((n, 2, 2, 3))) for n in (4, 3))
    with pytest.raises(ValueError, match=r"skip: got shape \(3, 2, 2, 3\), expected \(4,"):
        tl.block_join(a, b)


@given(seed=st.integers(0, 2**31), size=st.integers(3, 9), relu=st.booleans(), mode=modes)
def test_max_pool_of_a_conv_norm(seed, size, relu, mode):
    rng = np.random.default_rng(seed)
    layers = [layer(rng, 2, 5, 3, 1, mode)]
    compare(lambda x: tl.max_pool2d(nn.conv_norm(x, *layers[0], relu=relu), 3, 2, 1), layers,
            [rng.standard_normal((2, size, size, 2))])


def test_one_activation_with_several_readers():
    """What each leaves behind adds up; a reader that leaves nothing makes them be computed."""
    rng = np.random.default_rng(0)
    layers = [layer(rng, 3, 4, 3, 1, "train") for _ in range(3)]
    layers[1:] = [layer(rng, 4, 4, 1, 1, "train") for _ in range(2)]

    def program(x, stored):
        a = nn.conv_norm(x, *layers[0], relu=True)
        b, c = (nn.conv_norm(a, *own) for own in layers[1:])
        y = tl.block_join(b, c)
        return y + value_of(a) if stored else y

    x = [rng.standard_normal((2, 5, 5, 3))]
    for stored in (False, True):
        compare(lambda x, stored=stored: program(x, stored), layers, x)


def test_a_hook_that_changes_the_gradient_is_heeded():
    rng = np.random.default_rng(0)
    layers = [layer(rng, 3, 4, 3, 1, "train"), layer(rng, 4, 4, 1, 1, "train")]
    x = rng.standard_normal((2, 5, 5, 3))

    def beta_gradient(hook):
        y = nn.conv_norm(tensor(x), *layers[0], relu=True)
        if hook:
            y.z.register_hook(lambda grad: 3 * grad)
        value_of(nn.conv_norm(y, *layers[1])).sum().backward()
        found = host(layers[0][1].beta.grad)
        for conv, norm in layers:
            conv.zero_grad(), norm.zero_grad()
        return found

    assert np.allclose(beta_gradient(True), 3 * beta_gradient(False), rtol=1e-9, atol=0)


def test_conv_norm_with_a_bias_or_groups_is_the_simple_ops():
    rng = np.random.default_rng(0)
    conv = nn.Conv2d(4, 6, 3, groups=2, bias=True, rng=0).to(here)
    norm = nn.BatchNorm2d(6).to(here)
    x = tensor(rng.standard_normal((2, 5, 5, 4)).astype(np.float32))
    y = nn.conv_norm(x, conv, norm, relu=True)
    assert np.array_equal(y.numpy(), tl.relu(norm(conv(x))).numpy())


MODELS = {
    "resnet18": lambda: resnet18(5, width=4, rng=0),
    "resnet50": lambda: resnet50(5, width=4, version="v1.5", rng=0),
    **{f"recurrent {skip} {readout}": lambda skip=skip, readout=readout: recurrent_resnet(
        18, classes=5, width=4, skip=skip, readout=readout, context=3, rng=0)
       for skip in ("identity", "conv", "conv_nonlinear") for readout in ("last", "mean")},
}


def images(model, rng):
    chunk = (model.context,) if hasattr(model, "context") else ()
    return rng.standard_normal((3, *chunk, 33, 33, 3))


@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_is_that_of_the_simple_ops(name):
    model = MODELS[name]().to(here, dtype=np.float64)
    rng = np.random.default_rng(0)
    x, labels = images(model, rng), np.arange(3)
    found = []
    state = model.state_dict()
    for fused in (True, False):
        model.load_state_dict(state)
        model.zero_grad()
        seen = Names()
        with contextlib.nullcontext() if fused else tl.unfused(), tl.observe(seen):
            loss = tl.cross_entropy(model(tensor(x)), labels)
        loss.backward()
        assert ("conv2d" in seen.forward_of, "conv_norm" in seen.forward_of) == (not fused, fused)
        found.append({"loss": loss.numpy(),
                      **{n: host(p.grad) for n, p in model.named_parameters()},
                      **{n: host(b) for n, b in model.named_buffers()}})
    assert_same(*found)


@pytest.mark.parametrize("name", MODELS)
def test_inference_folds_the_norms_and_keeps_nothing(name):
    model = MODELS[name]().to(dtype=np.float64).eval()
    rng = np.random.default_rng(0)
    for buffer_name, buffer in model.named_buffers():
        low = 0.5 if buffer_name.endswith("var") else -0.5
        buffer[...] = rng.uniform(low, low + 1, buffer.shape)
    model.to(here)
    x = tensor(images(model, rng))
    nodes = []

    class Kept(tl.Observer):
        def forward(self, node, output):
            nodes.append((node.name, node.recording))

    with tl.no_grad(), tl.observe(Kept()):
        folded = model(x).numpy()
    assert ("folded_conv_norm", False) in nodes
    assert not any(recording or name in ("conv2d", "batch_norm", "relu")
                   for name, recording in nodes)
    with tl.no_grad(), tl.unfused():
        simple = model(x).numpy()
    model.fold()
    with tl.no_grad():
        once, again = model(x).numpy(), model(x).numpy()
    assert_same({"logits": folded, "recorded": model(x).numpy(), "folded": once, "again": again},
                dict.fromkeys(("logits", "recorded", "folded", "again"), simple))


@pytest.mark.parametrize("renew", [
    lambda model, state: model.fold(),
    lambda model, state: model.eval(),
    lambda model, state: model.load_state_dict(state),
    lambda model, state: model.to(dtype=np.float32).to(dtype=np.float64),
], ids=["fold", "eval", "load", "to"])
def test_what_a_folded_model_keeps_is_renewed(renew):
    model = resnet18(3, width=32, rng=0).to(here, dtype=np.float64).fold()
    x = tensor(np.random.default_rng(0).standard_normal((2, 64, 64, 3)))
    with tl.no_grad():
        before = model(x).numpy()
        for p in model.parameters():
            p.data *= 1.5
        renew(model, model.state_dict())
        after = model(x).numpy()
        with tl.unfused():
            expected = model(x).numpy()
    assert np.abs(after - expected).max() <= 1e-9 * np.abs(expected).max()
    assert np.abs(after - before).max() > 1e-3 * np.abs(before).max()


def test_a_deferred_activation_is_not_stored():
    rng = np.random.default_rng(0)
    own = layer(rng, 3, 4, 3, 1, "train")
    y = nn.conv_norm(tensor(rng.standard_normal((2, 5, 5, 3))), *own, relu=True)
    assert isinstance(y, Deferred) and y.shape == (2, 5, 5, 4) and y.dtype == np.float64
    assert (y.z.numpy() < 0).any() and (y.tensor().numpy() >= 0).all()
