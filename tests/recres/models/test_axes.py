"""What else the networks can be: truncated, without a skip, with a purely temporal one, for other
inputs than images; with the wrong gradient of the recurrent weight; and frozen but for it."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

import tensorlite as tl
import tensorlite.io as tio
from recres.models import STAGES, average_pooling, recurrent_resnet, resnet18, resnet34, resnet50
from recres.models.recurrent import SKIPS
from recres.models.weights import load_pretrained
from tensorlite import nn, optim
from tensorlite.recording import Observer, observe

BLOCKS_OF_18 = [f"block{stage}.{i}" for stage in range(1, 5) for i in range(2)]


def chunks(batch: int, context: int, side: int = 64, channels: int = 3, dtype=np.float64):
    rng = np.random.default_rng(0)
    return tl.Tensor(rng.standard_normal((batch, context, side, side, channels)).astype(dtype))


def lively(model, dtype=np.float64):
    """`model` with norms that do something, as after training."""
    rng = np.random.default_rng(9)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean[:] = 0.1 * rng.standard_normal(module.c)
            module.running_var[:] = rng.uniform(0.5, 1.5, module.c)
            module.gamma.data = rng.uniform(0.5, 1.5, module.c).astype(np.float32)
            module.beta.data = (0.3 * rng.standard_normal(module.c)).astype(np.float32)
    return model.to(dtype=dtype)


def either(fused: bool):
    return contextlib.nullcontext() if fused else tl.unfused()


def head(model, features: tl.Tensor) -> np.ndarray:
    """Pooled over height and width, then the linear layer, in NumPy."""
    return features.numpy().mean((1, 2)) @ model.fc.weight.data + model.fc.bias.data


# Truncation and positions


@pytest.mark.parametrize("make", [resnet18, resnet34, resnet50])
def test_a_truncated_network_is_the_full_ones_beginning(make):
    full, cut = make(3, width=4, rng=1), make(3, width=4, rng=1, truncate="block3")
    assert full.stages == STAGES and cut.stages == STAGES[:4]
    state, whole = cut.state_dict(), full.state_dict()
    assert state.keys() == {name for name in whole if not name.startswith("block4")}
    for name in state:
        if not name.startswith("fc"):
            np.testing.assert_array_equal(state[name], whole[name])
    assert state["fc.weight"].shape == (16 * (4 if make is resnet50 else 1), 3)


@pytest.mark.parametrize("context", [1, 3])
def test_a_truncated_networks_logits_are_the_heads_of_block3(context):
    x = chunks(2, context)
    frames = [x[:, t] for t in range(context)]
    for make in (average_pooling, recurrent_resnet):
        options = {} if make is average_pooling else {"skip": "none", "readout": "mean"}
        model = lively(make(18, classes=3, width=4, context=context, truncate="block3", rng=1,
                            **options)).eval()
        expected = np.mean([head(model, model.encode(frame, "block3")) for frame in frames], axis=0)
        np.testing.assert_allclose(model(x).data, expected, rtol=1e-10)
    image = lively(resnet18(3, width=4, truncate="block3", rng=1)).eval()
    expected = head(image, image.encode(frames[0], "block3"))
    np.testing.assert_allclose(image(frames[0]).data, expected, rtol=1e-10)


@pytest.mark.parametrize(("truncate", "position", "names"), [
    (None, None, ["block4.2"]),
    ("block3", None, ["block3.5"]),
    ("block3", "block3", ["block3.5"]),
    ("block3", "mid_block3", ["block3.0"]),
    ("block3", "block2", ["block2.3"]),
    ("block3", "block1", ["block1.0"]),
])
def test_positions_speak_of_the_last_stage(truncate, position, names):
    for skip in ("identity", "pure_temporal"):
        model = recurrent_resnet(50, classes=2, skip=skip, position=position, truncate=truncate,
                                 width=4)
        assert list(model.recurrent) == names
        before = STAGES[STAGES.index(names[0].partition(".")[0]) - 1]
        assert model.last_framewise_stage() == before


@pytest.mark.parametrize(("truncate", "position", "those"), [
    (None, "block3", "block1, block2, mid_block4, block4"),
    (None, "mid_block3", "block1, block2, mid_block4, block4"),
    ("block3", "block4", "block1, block2, mid_block3, block3"),
    ("block3", "mid_block4", "block1, block2, mid_block3, block3"),
])
def test_positions_of_stages_that_are_not_the_last_are_refused(truncate, position, those):
    with pytest.raises(ValueError, match=f"^position: got '{position}', expected one of {those}$"):
        recurrent_resnet(18, classes=2, position=position, truncate=truncate, width=4)


@pytest.mark.parametrize("options", [{"truncate": "block2"}, {"truncate": "none"}, {"channels": 0},
                                     {"recurrent_gradient": "wrong"},
                                     {"skip": "none", "context": 0},
                                     {"skip": "pure_temporal", "context": 0}])
def test_options_that_do_not_exist_are_named(options):
    name, value = list(options.items())[-1]
    with pytest.raises(ValueError, match=f"^{name}: .*{value}"):
        recurrent_resnet(18, classes=2, width=4, **options)


def test_stages_that_were_cut_off_are_refused():
    model = recurrent_resnet(18, classes=2, skip="none", truncate="block3", width=4)
    message = "got 'block4', expected one of stem, block1, block2, block3$"
    with pytest.raises(ValueError, match=message):
        model.encode(chunks(1, 1)[0], "block4")
    with pytest.raises(ValueError, match=message):
        model.freeze("block4")
    with pytest.raises(ValueError, match=message):
        model(chunks(1, 2), after="block4")


def test_names_are_those_of_checkpoints_from_before():
    def norm(name):
        return [f"{name}.{leaf}" for leaf in ("gamma", "beta", "running_mean", "running_var")]

    expected = {"conv1.weight", *norm("norm1"), "fc.weight", "fc.bias"}
    for block in BLOCKS_OF_18:
        for i in (1, 2):
            expected |= {f"{block}.conv{i}.weight", *norm(f"{block}.norm{i}")}
        if block in ("block2.0", "block3.0", "block4.0"):
            expected |= {f"{block}.shortcut.conv.weight", *norm(f"{block}.shortcut.norm")}
    for skip in SKIPS:
        model = recurrent_resnet(18, classes=2, skip=skip, context=3, width=4)
        own = {name for block in ("block4.0", "block4.1") if skip.startswith("conv")
               for name in (f"{block}.temporal.conv.weight", *norm(f"{block}.temporal.norm"))}
        assert model.state_dict().keys() == expected | own
    assert average_pooling(18, classes=2, width=4).state_dict().keys() == expected


# Skip types: the equations


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("readout", ["last", "mean"])
@pytest.mark.parametrize(("position", "truncate", "context"), [
    ("block4", None, 2), ("mid_block4", None, 5), ("block2", None, 3), ("mid_block3", "block3", 3)])
def test_the_equation_of_the_purely_temporal_skip(position, truncate, context, readout, fused):
    """y_t = relu(F(x_t) + shortcut(x_t) + y_{t-1}), y_0 = 0, in one block, frame after frame."""
    model = lively(recurrent_resnet(18, classes=3, skip="pure_temporal", position=position,
                                    truncate=truncate, context=context, readout=readout, width=4,
                                    rng=8)).eval()
    assert len(model.recurrent) == 1
    x, y_before, logits = chunks(2, context), None, []
    with tl.unfused():
        for t in range(context):
            y = model.stem(x[:, t])
            for name, block in model.residual_blocks():
                if name in model.recurrent:
                    total = block.residual(y).numpy() + block.skip(y).numpy()
                    total = total if y_before is None else total + y_before
                    y_before = np.maximum(total, 0)
                    y = tl.Tensor(y_before)
                else:
                    y = block(y)
            logits.append(head(model, y))
    expected = logits[-1] if readout == "last" else np.mean(logits, axis=0)
    assert np.abs(logits[-1] - logits[0]).max() > 1e-3
    with either(fused):
        np.testing.assert_allclose(model(x).data, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("readout", ["last", "mean"])
def test_the_network_without_a_skip(readout, fused):
    model = lively(recurrent_resnet(18, classes=3, skip="none", readout=readout, context=4, width=4,
                                    rng=8)).eval()
    assert model.recurrent == () and model.last_framewise_stage() == "block4"
    x = chunks(2, 4)
    logits = [head(model, model.encode(x[:, t], "block4")) for t in range(4)]
    expected = logits[-1] if readout == "last" else np.mean(logits, axis=0)
    with either(fused):
        np.testing.assert_allclose(model(x).data, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("readout", ["last", "mean"])
@pytest.mark.parametrize("skip", ["pure_temporal", "none"])
def test_gradients_are_central_differences(skip, readout, fused):
    model = recurrent_resnet(18, classes=2, skip=skip, position="mid_block4", context=3,
                             readout=readout, width=2, rng=4).to(dtype=np.float64)
    x, labels, step = chunks(4, 3), np.array([0, 1, 1, 0]), 1e-6
    x.requires_grad = True
    rng = np.random.default_rng(0)

    def loss() -> tl.Tensor:
        with either(fused):
            return tl.cross_entropy(model(x), labels)

    loss().backward()
    names = dict(model.named_parameters())
    tensors = [names[name] for name in ("block3.1.conv2.weight", "block4.0.conv1.weight",
                                        "block4.0.shortcut.conv.weight", "block4.0.norm2.beta",
                                        "block4.1.conv2.weight")]
    for tensor in [*tensors, x]:
        flat, gradient = tensor.data.reshape(-1), tensor.grad.reshape(-1)
        indices = rng.choice(flat.size, 3, replace=False)
        if tensor is x:  # one value of every frame of a chunk
            indices = [t * flat.size // 12 + 5000 for t in range(3)]
        for i in indices:
            value, losses = flat[i], []
            for flat[i] in (value + step, value - step):
                losses.append(loss().item())
            flat[i] = value
            numeric = (losses[0] - losses[1]) / (2 * step)
            assert gradient[i] == pytest.approx(numeric, rel=1e-5, abs=1e-8)


class FramesNormalised(Observer):
    """How many images each batch norm of four axes has been given, in order."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def forward(self, node, output) -> None:
        if node.name == "conv_norm" and len(output.shape) == 4:
            self.counts.append(output.shape[0])


def test_work_on_frames_that_cannot_reach_the_output_is_not_done():
    x = chunks(2, 3, side=32, dtype=np.float32)
    with observe(FramesNormalised()) as seen:
        recurrent_resnet(18, classes=2, skip="none", context=3, width=4)(x)
    assert seen.counts == [2] * (1 + 8 * 2 + 3)
    with observe(FramesNormalised()) as seen:
        recurrent_resnet(18, classes=2, skip="pure_temporal", position="mid_block4", context=3,
                         width=4)(x)
    # Stem, 7 blocks of 2 norms and 3 projections of all 3 frames; the last block of the last one.
    assert seen.counts == [6] * (1 + 7 * 2 + 3) + [2] * 2


@pytest.mark.parametrize("truncate", [None, "block3"])
@pytest.mark.parametrize("readout", ["last", "mean"])
@pytest.mark.parametrize("skip", SKIPS)
def test_going_on_from_features_equals_starting_from_images(skip, readout, truncate):
    model = recurrent_resnet(18, classes=3, skip=skip, readout=readout, context=3, width=4, rng=5,
                             position="block2", truncate=truncate).eval()
    x = chunks(2, 3, side=32, dtype=np.float32)
    last = model.last_framewise_stage()
    for stage in model.stages[: model.stages.index(last) + 1]:
        features = model.encode(x.reshape(-1, *x.shape[2:]), stage)
        features = features.reshape(2, 3, *features.shape[1:])
        # Convolutions of another number of images need not round alike.
        np.testing.assert_allclose(model(features, after=stage).data, model(x).data, rtol=1e-5,
                                   atol=1e-6)
    if last != model.stages[-1]:
        behind = model.stages[model.stages.index(last) + 1]
        with pytest.raises(ValueError, match=f"after: got '{behind}', but a temporal skip"):
            model(features, after=behind)


# The gradient of the recurrent weight


def temporal_weights(model) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if n.endswith("temporal.conv.weight")}


def gradients(model, x, labels, fused):
    """Of the weights of all temporal convolutions, and of x; and the logits."""
    x.zero_grad()
    with either(fused):
        logits = model(x)
        tl.cross_entropy(logits, labels).backward()
    return {n: p.grad for n, p in temporal_weights(model).items()}, x.grad, logits.data


class TemporalErrors(Observer):
    """The inputs of all temporal convolutions, as they are applied, and the gradients at their
    outputs, on a model whose gradient is right."""

    def __init__(self, model) -> None:
        self.names = {id(p): name for name, p in temporal_weights(model).items()}
        self.inputs: dict[str, np.ndarray] = {}
        self.errors: dict[str, np.ndarray] = {}

    def forward(self, node, output) -> None:
        if node.name == "conv2d" and (name := self.names.get(id(node.inputs[1]))):
            self.inputs[name] = node.inputs[0].data
            output.register_hook(lambda grad: self.errors.__setitem__(name, grad.copy()))


def paired(x: np.ndarray, errors: np.ndarray, stride: int) -> np.ndarray:
    """Σ xᵀ e over images and places: what a 1x1 convolution's weight gets for inputs x."""
    return np.einsum("nhwi,nhwo->io", x[:, ::stride, ::stride], errors)[None, None]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("skip", "position", "context", "readout", "norm"), [
    ("conv", "block4", 2, "last", True),
    ("conv", "mid_block4", 2, "mean", True),  # stride 2
    ("conv_nonlinear", "mid_block4", 2, "last", True),
    ("conv", "block4", 3, "last", False),
    ("conv_nonlinear", "block4", 3, "mean", True),
    ("conv", "block4", 5, "last", True),  # block3.0 to block4.1, two of them with stride 2
    ("conv", "block4", 5, "mean", True),
])
def test_the_same_frame_gradient(skip, position, context, readout, norm, fused):
    """Σ_t x_tᵀ e_t, where x_t is the frame after the one that the weights were applied to."""
    options = {"classes": 3, "skip": skip, "position": position, "context": context, "width": 4,
               "readout": readout, "temporal_norm": norm, "rng": 6}
    right, wrong = (lively(recurrent_resnet(18, recurrent_gradient=how, **options))
                    for how in ("correct", "same-frame"))
    x, labels = chunks(4, context), np.array([0, 1, 2, 0])
    x.requires_grad = True

    entering: dict[str, np.ndarray] = {}  # all frames that come into each block, chunk by chunk
    for name, block in right.residual_blocks():
        if name in right.recurrent:
            def along(x, frames, *, name=name, original=block.temporal.along):
                weight = f"{name}.temporal.conv.weight"
                entering[weight] = x.numpy().reshape(4, frames, *x.shape[1:])
                return original(x, frames)
            block.temporal.along = along
    with observe(TemporalErrors(right)) as seen:
        correct, dx, logits = gradients(right, x, labels, fused=False)
    same, dx_too, logits_too = gradients(wrong, x, labels, fused)
    assert len(same) == context - 1
    for name, dw in same.items():
        block = dict(right.residual_blocks())[name.removesuffix(".temporal.conv.weight")]
        before, now = (frames.reshape(-1, *frames.shape[2:])
                       for frames in (entering[name][:, :-1], entering[name][:, 1:]))
        np.testing.assert_array_equal(seen.inputs[name], before)
        scale = np.abs(correct[name]).max()
        for got, frames in ((correct[name], before), (dw, now)):
            np.testing.assert_allclose(got, paired(frames, seen.errors[name], block.stride),
                                       rtol=0, atol=1e-10 * scale)
        assert np.abs(dw - correct[name]).max() > 0.01 * scale
    np.testing.assert_allclose(logits_too, logits, rtol=1e-10)
    np.testing.assert_allclose(dx_too, dx, rtol=0, atol=1e-10 * np.abs(dx).max())


def test_values_of_a_step_are_the_same_with_either_gradient():
    """Bit for bit, and all gradients but one: what differs between runs is the gradient alone."""
    results = []
    for how in ("correct", "same-frame"):
        model = recurrent_resnet(18, classes=3, skip="conv", context=3, width=8, rng=1,
                                 recurrent_gradient=how)
        x = chunks(4, 3, dtype=np.float32)
        with tl.unfused():
            logits = model(x)
            tl.cross_entropy(logits, np.array([0, 1, 2, 0])).backward()
        state = {n: p.grad for n, p in model.named_parameters() if "temporal.conv" not in n}
        results.append({"logits": logits.data, **state, **dict(model.named_buffers())})
    for name, value in results[0].items():
        np.testing.assert_array_equal(results[1][name], value, err_msg=name)


# Freezing


@pytest.mark.parametrize("how", ["correct", "same-frame"])
@pytest.mark.parametrize("truncate", [None, "block3"])
def test_freezing_spares_temporal_convolutions(truncate, how):
    model = recurrent_resnet(18, classes=3, skip="conv", position="block2", context=3, width=4,
                             rng=3, truncate=truncate, recurrent_gradient=how)
    last = model.stages[-1]
    model.freeze(last)
    before = model.state_dict()
    optimizer = optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    x = chunks(4, 3, dtype=np.float32)
    tl.cross_entropy(model.train()(x), np.array([0, 1, 2, 0])).backward()
    optimizer.step()
    after = model.state_dict()
    moved = {name for name in after if not np.array_equal(before[name], after[name])}
    assert moved == {name for name in after if "temporal" in name or name.startswith("fc")}
    assert len(moved) == 2 * 5 + 2


# Other inputs than images


def test_images_of_other_channels():
    model = recurrent_resnet(18, classes=3, width=4, channels=10)
    assert model.conv1.weight.shape == (7, 7, 10, 4)
    assert model(chunks(2, 2, channels=10, dtype=np.float32)).shape == (2, 3)
    with pytest.raises(ValueError, match=r"expected chunks \(B, 2, H, W, 10\), got shape \(2, 2"):
        model(chunks(2, 2, dtype=np.float32))
    assert average_pooling(18, classes=3, width=4, channels=10).channels == 10
    with pytest.raises(ValueError, match=r"expected images \(N, H, W, 2\)"):
        resnet18(3, width=4, channels=2)(chunks(1, 2)[0])


def saved(path, model):
    rng = np.random.default_rng(5)
    state = {name: rng.uniform(0.5, 1.5, array.shape).astype("f4")
             for name, array in model.state_dict().items()}
    tio.save_safetensors(path, state, {"version": model.version, "input_convention": "torch"})
    return state


@pytest.mark.parametrize("channels", [1, 4, 20])
def test_cross_modality_initialisation(tmp_path, channels):
    state = saved(tmp_path / "a.safetensors", resnet18(3, width=4))
    model = recurrent_resnet(18, classes=3, width=4, channels=channels)
    said: list[str] = []
    report = load_pretrained(model, tmp_path / "a.safetensors", said.append)
    loaded = model.state_dict()
    red, green, blue = (state["conv1.weight"][:, :, c].astype("f8") for c in range(3))
    for c in range(channels):
        np.testing.assert_allclose(loaded["conv1.weight"][:, :, c], (red + green + blue) / 3,
                                   rtol=1e-6)
    assert "conv1.weight" in report.loaded and report.averaged_for == channels
    for name in state.keys() - {"conv1.weight"}:
        np.testing.assert_array_equal(loaded[name], state[name])
    (line,) = [line for line in said[0].splitlines() if "cross-modality" in line]
    assert f"each of its {channels}" in line


def test_a_network_of_the_same_inputs_is_loaded_as_it_is(tmp_path):
    for channels in (3, 10):
        state = saved(tmp_path / "a.safetensors", resnet18(3, width=4, channels=channels))
        model = resnet18(3, width=4, channels=channels)
        report = load_pretrained(model, tmp_path / "a.safetensors", lambda _: None)
        np.testing.assert_array_equal(model.state_dict()["conv1.weight"], state["conv1.weight"])
        assert report.averaged_for is None and "cross-modality" not in str(report)
    with pytest.raises(ValueError, match=r"conv1.weight of shape \(7, 7, 10, 4\)"):
        load_pretrained(resnet18(3, width=4, channels=4), tmp_path / "a.safetensors")


@pytest.mark.parametrize(("theirs", "ours"), [(None, "block3"), ("block3", None)])
def test_weights_between_a_full_and_a_truncated_network(tmp_path, theirs, ours):
    state = saved(tmp_path / "a.safetensors", resnet18(5, width=4, truncate=theirs))
    model = recurrent_resnet(18, classes=5, width=4, truncate=ours)
    before = model.state_dict()
    report = load_pretrained(model, tmp_path / "a.safetensors", lambda _: None)
    common = {name for name in before if not name.startswith(("block4", "fc"))}
    assert set(report.loaded) == common
    assert set(report.unused) == state.keys() - common
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, state[name] if name in common else before[name])
