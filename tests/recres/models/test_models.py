"""The networks: where temporal skips sit, which frames are worked on, what is trained."""

from __future__ import annotations

import numpy as np
import pytest

import tensorlite as tl
from recres.models import average_pooling, recurrent_resnet, resnet18, resnet50
from tensorlite import optim
from tensorlite.recording import Observer, observe


def chunks(batch: int, context: int, side: int = 32, dtype=np.float32) -> tl.Tensor:
    rng = np.random.default_rng(0)
    return tl.Tensor(rng.standard_normal((batch, context, side, side, 3)).astype(dtype))


@pytest.mark.parametrize(("position", "context", "names"), [
    ("block1", 2, ["block1.0"]),
    ("block2", 2, ["block2.3"]),
    ("mid_block4", 2, ["block4.0"]),
    ("block4", 1, []),
    ("block4", 2, ["block4.2"]),
    ("block4", 5, ["block3.5", "block4.0", "block4.1", "block4.2"]),
])
def test_skips_sit_where_the_paper_has_them(position, context, names):
    model = recurrent_resnet(50, classes=2, position=position, context=context, width=4)
    assert list(model.recurrent) == names


@pytest.mark.parametrize(("position", "context", "most"), [("block1", 3, 2), ("block4", 18, 17),
                                                           ("mid_block4", 0, 15)])
def test_a_context_that_does_not_fit_is_refused(position, context, most):
    with pytest.raises(ValueError, match=f"context: got {context}, expected 1 to {most} frames"):
        recurrent_resnet(50, classes=2, position=position, context=context, width=4)


@pytest.mark.parametrize("options", [{"skip": "jump"}, {"position": "block3"}, {"readout": "first"},
                                     {"version": "v2"}, {"classes": 0}, {"width": 0},
                                     {"depth": 20}])
def test_options_that_do_not_exist_are_named(options):
    (name, value), = options.items()
    with pytest.raises(ValueError, match=f"^{name}: .*{value}"):
        recurrent_resnet(**{"depth": 18, "classes": 2, "width": 4, **options})


def test_wrong_inputs_are_refused():
    model = recurrent_resnet(18, classes=2, width=4, context=2)
    with pytest.raises(ValueError, match=r"expected chunks \(B, 2, H, W, 3\), got shape \(1, 3"):
        model(chunks(1, 3))
    with pytest.raises(ValueError, match="a temporal skip comes before"):
        model(tl.Tensor(np.zeros((1, 2, 1, 1, 32), np.float32)), after="block4")
    with pytest.raises(ValueError, match=r"expected images \(N, H, W, 3\)"):
        resnet18(2, width=4)(chunks(1, 2))


def test_names_of_parameters():
    names = dict(recurrent_resnet(50, classes=2, skip="conv", width=4).named_parameters())
    assert {"conv1.weight", "norm1.gamma", "block4.2.conv1.weight", "block4.0.shortcut.conv.weight",
            "block4.2.temporal.conv.weight", "block4.2.temporal.norm.beta", "fc.bias"} <= set(names)
    identity = recurrent_resnet(50, classes=2, skip="identity", width=4)
    plain = resnet50(2, width=4)
    assert [n for n, _ in identity.named_parameters()] == [n for n, _ in plain.named_parameters()]


class FramesNormalised(Observer):
    """How many images each batch norm of four axes has been given, in order."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def forward(self, node, output) -> None:
        if node.name == "conv_norm" and len(output.shape) == 4:
            self.counts.append(output.shape[0])


@pytest.mark.parametrize("skip", ["identity", "conv"])
def test_work_on_frames_that_cannot_reach_the_output_is_not_done(skip):
    batch, context = 3, 3
    model = recurrent_resnet(18, classes=2, skip=skip, context=context, width=4)
    with observe(FramesNormalised()) as seen:
        model(chunks(batch, context))
    # stem and 6 blocks of 2 norms, 2 of them projecting: all 3 frames
    before = [batch * 3] * (1 + 6 * 2 + 2)
    if skip == "identity":  # block4.0: the projection of all 3 frames, F of the last 2; block4.1: 1
        expected = [*before, batch * 3, batch * 2, batch * 2, batch, batch]
    else:  # S of frames 1, 2; F and projection of 2, 3; then S of 2, F of 3
        expected = [*before, *[batch * 2] * 4, *[batch] * 3]
    assert seen.counts == expected


def test_running_statistics_are_those_of_the_live_frames():
    model = recurrent_resnet(18, classes=2, context=2, width=4, rng=1)
    norm = model.block4[1].norm1
    seen = []

    class Look(Observer):
        def forward(self, node, output):
            if node.name == "conv_norm" and node.inputs[2] is norm.gamma:
                seen.append(output.data)

    with observe(Look()):
        model(chunks(4, 2))
    (x,) = seen
    assert x.shape[0] == 4  # of 8 frames
    np.testing.assert_allclose(norm.running_mean, 0.1 * x.mean((0, 1, 2)), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(norm.running_var, 0.9 + 0.1 * x.var((0, 1, 2), ddof=1), rtol=1e-4)


@pytest.mark.parametrize("make", [
    lambda: recurrent_resnet(18, classes=3, skip="conv_nonlinear", context=3, width=4, rng=2),
    lambda: recurrent_resnet(50, classes=3, skip="conv", readout="mean", context=3, width=4, rng=2),
    lambda: average_pooling(18, classes=3, context=3, width=4, rng=2),
])
def test_every_parameter_moves_in_one_step(make):
    model = make()
    before = model.state_dict()
    optimizer = optim.Adam(model.named_parameters(), lr=1e-2)
    tl.cross_entropy(model(chunks(4, 3, side=64)), np.array([0, 1, 2, 0])).backward()
    optimizer.step()
    still = [name for name, p in model.named_parameters() if np.array_equal(before[name], p.data)]
    assert still == []


def test_what_is_frozen_stays():
    model = recurrent_resnet(18, classes=3, context=2, width=4, rng=3)
    model.freeze("block2")
    before = model.state_dict()
    optimizer = optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    tl.cross_entropy(model.train()(chunks(4, 2)), np.array([0, 1, 2, 0])).backward()
    optimizer.step()
    after = model.state_dict()
    moved = {name for name in after if not np.array_equal(before[name], after[name])}
    frozen = ("conv1", "norm1", "block1", "block2")
    assert moved == {name for name in after if not name.startswith(frozen)}


@pytest.mark.parametrize("context", [1, 2, 3, 5])
def test_gradient_of_the_recurrent_weight(context):
    """Central differences of the whole network's loss, in float64: the weight is paired with the
    frame before, not with the same one."""
    model = recurrent_resnet(18, classes=2, skip="conv", context=context, width=2, rng=4)
    model.to(dtype=np.float64)
    # Four images of 2x2 pixels in the last stage, and a step as small as rounding lets it be: norms
    # of fewer values bend sharply, and a wider step crosses some relu's kink.
    step = 1e-6
    x, labels = chunks(4, context, side=64, dtype=np.float64), np.array([0, 1, 1, 0])
    rng = np.random.default_rng(0)

    def loss() -> tl.Tensor:
        return tl.cross_entropy(model(x), labels)

    loss().backward()
    temporal = [p for name, p in model.named_parameters() if name.endswith("temporal.conv.weight")]
    assert len(temporal) == context - 1
    for weight in temporal:
        flat = weight.data.reshape(-1)
        for i in rng.choice(flat.size, 4, replace=False):
            value, losses = flat[i], []
            for flat[i] in (value + step, value - step):
                losses.append(loss().item())
            flat[i] = value
            numeric = (losses[0] - losses[1]) / (2 * step)
            assert weight.grad.reshape(-1)[i] == pytest.approx(numeric, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("model", [
    recurrent_resnet(18, classes=3, context=2, width=4, rng=5),
    recurrent_resnet(18, classes=3, context=3, readout="mean", skip="conv", width=4, rng=5),
    average_pooling(18, classes=3, context=2, width=4, rng=5),
], ids=["last", "mean", "average pooling"])
def test_going_on_from_features_equals_starting_from_images(model):
    model.eval()
    x = chunks(2, model.context)
    stage = model.last_framewise_stage()
    features = model.encode(x.reshape(-1, *x.shape[2:]), stage)
    features = features.reshape(2, model.context, *features.shape[1:])
    np.testing.assert_array_equal(model(features, after=stage).data, model(x).data)


def test_average_pooling_does_not_see_the_order_of_frames():
    model = average_pooling(18, classes=3, context=4, width=4, rng=6).eval()
    x = chunks(2, 4)
    np.testing.assert_allclose(model(x[:, ::-1]).data, model(x).data, rtol=1e-5, atol=1e-6)


def test_a_recurrent_network_sees_it():
    model = recurrent_resnet(18, classes=3, context=2, width=4, rng=6).eval()
    x = chunks(2, 2)
    assert np.abs(model(x[:, ::-1]).data - model(x).data).max() > 1e-3


@pytest.mark.parametrize("skip", ["identity", "conv", "conv_nonlinear"])
@pytest.mark.parametrize("position", ["mid_block4", "block4"])
def test_the_equation_of_the_temporal_skip(skip, position):
    """y_t = relu(F(x_t) + x_t + S(x_{t-1})), written out for a chunk of two frames."""
    model = recurrent_resnet(18, classes=3, skip=skip, position=position, width=4, rng=8).eval()
    x = chunks(2, 2, side=64)
    first, second = (model.encode(x[:, t], "block3") for t in range(2))
    for name, block in model.residual_blocks():
        if not name.startswith("block4"):
            continue
        with tl.unfused():
            if name in model.recurrent:
                passed_on = block.skip(first) if skip == "identity" else block.temporal(first)
                second = tl.relu(block.residual(second) + block.skip(second) + passed_on)
                first = None  # it has done its work
            else:
                first, second = None if first is None else block(first), block(second)
    expected = model.fc(tl.global_avg_pool(second))
    np.testing.assert_allclose(model(x).data, expected.data, rtol=1e-4, atol=1e-5)
