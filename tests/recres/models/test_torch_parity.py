"""Whole networks against PyTorch: outputs, running statistics and every parameter's gradient.

The reference is written in PyTorch's functions from the equations, on the same parameters, and
leaves out the same frames. In float64 both sides differ by rounding alone; the measure is the
largest error over the largest value of each tensor.
"""

from __future__ import annotations

import numpy as np
import pytest

import tensorlite as tl
from recres.models import average_pooling, recurrent_resnet, resnet18, resnet50

torch = pytest.importorskip("torch")
F = torch.nn.functional
torch.set_num_threads(1)  # or its threads and ours wait for each other's cores

TOLERANCE = 1e-8
# Of gradients that are zero but for rounding, such as those of weights before a batch norm along
# the direction of the weights.
FLOOR = 1e-10


class Reference:
    """A network's forward pass in PyTorch, on a copy of its state."""

    def __init__(self, model):
        self.model = model
        self.state = {}
        names = dict(model.named_parameters())
        for name, array in model.state_dict().items():
            tensor = torch.from_numpy(np.array(array))
            if tensor.ndim == 4:
                tensor = tensor.permute(3, 2, 0, 1).contiguous()
            self.state[name] = tensor.requires_grad_(name in names)

    def conv(self, name, x, stride=1, padding=0):
        return F.conv2d(x, self.state[f"{name}.weight"], None, stride, padding)

    def norm(self, name, x):
        s = self.state
        return F.batch_norm(x, s[f"{name}.running_mean"], s[f"{name}.running_var"],
                            s[f"{name}.gamma"], s[f"{name}.beta"], training=True)

    def residual(self, name, block, x):
        if self.model.depth < 50:
            strides, paddings = (block.stride, 1), (1, 1)
        else:
            strides = (block.stride, 1, 1) if self.model.version == "v1" else (1, block.stride, 1)
            paddings = (0, 1, 0)
        last = len(strides)
        for i, (stride, padding) in enumerate(zip(strides, paddings, strict=True), start=1):
            x = self.norm(f"{name}.norm{i}", self.conv(f"{name}.conv{i}", x, stride, padding))
            x = F.relu(x) if i < last else x
        return x

    def skip(self, name, block, x):
        if block.shortcut is None:
            return x
        return self.norm(f"{name}.shortcut.norm",
                         self.conv(f"{name}.shortcut.conv", x, block.stride))

    def temporal(self, name, block, x):
        x = self.norm(f"{name}.temporal.norm", self.conv(f"{name}.temporal.conv", x, block.stride))
        return F.relu(x) if self.model.skip == "conv_nonlinear" else x

    def recurrent_block(self, name, block, x, frames):
        """x (B frames, C, H, W); each frame written out by its own index."""
        last = self.model.readout == "last"
        ends = x.reshape(-1, frames, *x.shape[1:])
        kept = range(1, frames) if last else range(frames)
        now = torch.stack([ends[:, t] for t in kept], 1).flatten(0, 1)
        residual = self.residual(name, block, now).unflatten(0, (-1, len(kept)))
        if self.model.skip == "identity":
            passed = self.skip(name, block, x).unflatten(0, (-1, frames))
            spatial, before = [passed[:, t] for t in kept], passed
        else:
            spatial = self.skip(name, block, now).unflatten(0, (-1, len(kept))).unbind(1)
            previous = ends[:, :-1].flatten(0, 1)
            before = self.temporal(name, block, previous).unflatten(0, (-1, frames - 1))
        out = [F.relu(residual[:, i] + spatial[i] + (before[:, t - 1] if t else 0))
               for i, t in enumerate(kept)]
        return torch.stack(out, 1).flatten(0, 1), len(kept)

    def __call__(self, x):
        frames, batch = 1, x.shape[0]
        if x.ndim == 5:
            frames = x.shape[1]
            x = x.flatten(0, 1)
        x = x.permute(0, 3, 1, 2)
        x = F.max_pool2d(F.relu(self.norm("norm1", self.conv("conv1", x, 2, 3))), 3, 2, 1)
        for name, block in self.model.residual_blocks():
            if name in getattr(self.model, "recurrent", ()):
                x, frames = self.recurrent_block(name, block, x, frames)
            else:
                x = F.relu(self.residual(name, block, x) + self.skip(name, block, x))
        x = x.mean((2, 3)).reshape(batch, frames, -1).mean(1)
        return x @ self.state["fc.weight"] + self.state["fc.bias"]


def relative_error(ours, theirs):
    scale = np.abs(theirs).max()
    error = np.abs(ours - theirs).max()
    return 0.0 if error <= FLOOR else error / scale


def check(model, shape, seed=0):
    rng = np.random.default_rng(seed)
    model.to(dtype=np.float64)
    for name, parameter in model.named_parameters():
        # Away from ones and zeros, where many mistakes do not show.
        if name.endswith(("gamma", "beta")):
            parameter.data = parameter.data + rng.uniform(-0.3, 0.3, parameter.shape)
    x = rng.standard_normal(shape)
    labels = rng.integers(0, model.classes, shape[0])
    reference = Reference(model)

    images = tl.Tensor(x, requires_grad=True)
    logits = model(images)
    tl.cross_entropy(logits, labels).backward()
    torch_images = torch.from_numpy(x).requires_grad_()
    torch_logits = reference(torch_images)
    F.cross_entropy(torch_logits, torch.from_numpy(labels)).backward()

    errors = {"logits": relative_error(logits.numpy(), torch_logits.detach().numpy()),
              "images": relative_error(images.grad, torch_images.grad.numpy())}
    for name, parameter in model.named_parameters():
        expected = reference.state[name].grad.numpy()
        if expected.ndim == 4:
            expected = expected.transpose(2, 3, 1, 0)
        errors[name] = relative_error(parameter.grad, expected)
    for name, buffer in model.named_buffers():
        errors[name] = relative_error(buffer, reference.state[name].numpy())
    worst = max(errors, key=errors.get)
    assert errors[worst] <= TOLERANCE, f"{worst}: {errors[worst]:.2e}"


@pytest.mark.parametrize("version", ["v1", "v1.5"])
def test_resnet50(version):
    check(resnet50(7, version=version, rng=1), (4, 64, 64, 3))


def test_resnet18_odd_size():
    check(resnet18(5, width=16, rng=2), (4, 71, 67, 3))


@pytest.mark.parametrize(
    ("skip", "position", "context", "readout", "version"),
    [
        ("identity", "block4", 2, "last", "v1"),
        ("identity", "mid_block4", 2, "last", "v1.5"),
        ("conv", "block4", 3, "last", "v1"),
        ("conv_nonlinear", "block2", 2, "mean", "v1"),
    ],
)
def test_recurrent_resnet50(skip, position, context, readout, version):
    model = recurrent_resnet(50, classes=7, skip=skip, position=position, context=context,
                             readout=readout, version=version, rng=3)
    check(model, (4, context, 64, 64, 3))


@pytest.mark.parametrize("skip", ["identity", "conv", "conv_nonlinear"])
@pytest.mark.parametrize("readout", ["last", "mean"])
@pytest.mark.parametrize(
    ("position", "context"),
    [("block4", 1), ("block1", 2), ("mid_block4", 2), ("mid_block4", 5), ("block4", 5)],
)
def test_every_skip_of_a_small_network(skip, readout, position, context):
    model = recurrent_resnet(18, classes=3, skip=skip, position=position, context=context,
                             readout=readout, width=4, rng=4)
    check(model, (4, context, 64, 64, 3))


def test_average_pooling():
    check(average_pooling(18, classes=3, context=3, width=8, rng=5), (4, 3, 64, 64, 3))
