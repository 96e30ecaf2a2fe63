"""Residual networks for images (He et al. 2016), channels last.

Stages carry the names of the recurrent-residual paper: the stem, then `block1` to `block4`
(conv2_x to conv5_x in He et al., layer1 to layer4 in torchvision). Two versions of the bottleneck
are about: `v1`, of the paper and its Caffe and Keras weights, has the stride of a stage in the
first 1x1 convolution; `v1.5`, torchvision's, has it in the 3x3.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from tensorlite import Activation, block_join, global_avg_pool, max_pool2d, nn
from tensorlite.nn import conv_norm
from tensorlite.tensor import Tensor

if TYPE_CHECKING:
    from .temporal import TemporalConv

STAGES = ("stem", "block1", "block2", "block3", "block4")
TRUNCATIONS = ("block3",)  # stages after which a network may end
VERSIONS = ("v1", "v1.5")
DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3),
          152: (3, 8, 36, 3)}


class Projection(nn.Module):
    """A 1x1 convolution and its batch norm, where a skip connection changes shape."""

    def __init__(self, cin: int, cout: int, stride: int, rng: np.random.Generator) -> None:
        self.conv = nn.Conv2d(cin, cout, 1, stride=stride, rng=rng)
        self.norm = nn.BatchNorm2d(cout)

    def forward(self, x: Tensor) -> Activation:
        """x (N, H, W, cin) → (N, H / stride, W / stride, cout)."""
        return conv_norm(x, self.conv, self.norm)


class ResidualBlock(nn.Module):
    """y = relu(F(x) + shortcut(x)); subclasses define F, the residual branch.

    `conv_norm` is a convolution, its batch norm and, if asked, a relu; `block_join` is the sum and
    its relu. What passes between them need not be a stored tensor (`tensorlite.ops.fused`).

    cin: channels of x; planes: of the branch's convolutions; y has `expansion` times as many.
    """

    expansion: ClassVar[int]
    shortcut: Projection | None
    temporal: TemporalConv  # of the blocks that `recurrent.py` gives one

    def __init__(self, cin: int, planes: int, stride: int, version: str,
                 rng: np.random.Generator) -> None:
        self.cin, self.cout, self.stride = cin, planes * self.expansion, stride
        self.build(cin, planes, stride, version, rng)
        projects = stride != 1 or cin != self.cout
        self.shortcut = Projection(cin, self.cout, stride, rng) if projects else None

    def build(self, cin: int, planes: int, stride: int, version: str,
              rng: np.random.Generator) -> None:
        """Make the layers of the residual branch."""
        raise NotImplementedError

    def residual(self, x: Tensor) -> Activation:
        """F(x)."""
        raise NotImplementedError

    def skip(self, x: Tensor) -> Activation:
        """The spatial skip connection: x itself, projected where the shape changes."""
        return x if self.shortcut is None else self.shortcut(x)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, H, W, cin) → (N, H / stride, W / stride, cout)."""
        return block_join(self.residual(x), self.skip(x))


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions: ResNet-18 and 34. The same in both versions."""

    expansion = 1

    def build(self, cin, planes, stride, version, rng):
        self.conv1 = nn.Conv2d(cin, planes, 3, stride=stride, padding=1, rng=rng)
        self.norm1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, rng=rng)
        self.norm2 = nn.BatchNorm2d(planes)

    def residual(self, x: Tensor) -> Activation:
        y = conv_norm(x, self.conv1, self.norm1, relu=True)
        return conv_norm(y, self.conv2, self.norm2)


class Bottleneck(ResidualBlock):
    """1x1 to fewer channels, 3x3, 1x1 back to four times as many: ResNet-50, 101 and 152."""

    expansion = 4

    def build(self, cin, planes, stride, version, rng):
        first, second = (stride, 1) if version == "v1" else (1, stride)
        self.conv1 = nn.Conv2d(cin, planes, 1, stride=first, rng=rng)
        self.norm1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=second, padding=1, rng=rng)
        self.norm2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, self.cout, 1, rng=rng)
        self.norm3 = nn.BatchNorm2d(self.cout)

    def residual(self, x: Tensor) -> Activation:
        y = conv_norm(x, self.conv1, self.norm1, relu=True)
        y = conv_norm(y, self.conv2, self.norm2, relu=True)
        return conv_norm(y, self.conv3, self.norm3)


class ResNet(nn.Module):
    """An image classifier: stem, four stages of residual blocks, average pooling, linear layer.

    depth: 18, 34, 50, 101 or 152. classes: how many. version: see the top of this file.
    width: channels of the stem, 64 in the paper; every stage scales with it.
    rng: a generator or seed for the starting weights.
    truncate: None, or one of `TRUNCATIONS`, the stage after which the network ends: those behind it
        do not exist, and its features are pooled and classified. `stages` are those that exist.
    channels: of an image, 3; of L stacked fields of optical flow, 2 L.
    ValueError for anything else.
    """

    def __init__(self, depth: int, classes: int, version: str = "v1", width: int = 64,
                 rng: np.random.Generator | int | None = None, truncate: str | None = None,
                 channels: int = 3) -> None:
        if depth not in DEPTHS:
            raise ValueError(f"depth: got {depth!r}, expected one of {', '.join(map(str, DEPTHS))}")
        if version not in VERSIONS:
            raise ValueError(f"version: got {version!r}, expected one of {', '.join(VERSIONS)}")
        for name, value in (("classes", classes), ("width", width), ("channels", channels)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {value!r}")
        if truncate not in (None, *TRUNCATIONS):
            raise ValueError(f"truncate: got {truncate!r}, expected None or one of "
                             f"{', '.join(TRUNCATIONS)}")
        rng = np.random.default_rng(rng)
        self.depth, self.classes, self.version, self.width = depth, classes, version, width
        self.truncate, self.channels = truncate, channels
        self.stages = STAGES if truncate is None else STAGES[: stage_number(truncate) + 1]
        block = BasicBlock if depth < 50 else Bottleneck
        self.conv1 = nn.Conv2d(channels, width, 7, stride=2, padding=3, rng=rng)
        self.norm1 = nn.BatchNorm2d(width)
        self.features = width  # channels so far, in the end those that are classified
        for number, stage in enumerate(self.stages[1:]):
            planes = width * 2**number
            blocks = nn.Sequential()
            for i in range(DEPTHS[depth][number]):
                stride = 2 if number > 0 and i == 0 else 1
                blocks.append(block(self.features, planes, stride, version, rng))
                self.features = planes * block.expansion
            setattr(self, stage, blocks)
        self.fc = nn.Linear(self.features, classes, rng=rng)

    def stem(self, x: Tensor) -> Tensor:
        """Images (N, H, W, C) → (N, H / 4, W / 4, width)."""
        return max_pool2d(conv_norm(x, self.conv1, self.norm1, relu=True), 3, stride=2, padding=1)

    def stage(self, name: str, x: Tensor) -> Tensor:
        """One of `stages` on its own, frame by frame."""
        return self.stem(x) if name == "stem" else getattr(self, name)(x)

    def encode(self, x: Tensor, stop: str) -> Tensor:
        """Images (N, H, W, C) → the feature maps after the stage `stop`."""
        for name in self._up_to(stop):
            x = self.stage(name, x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, H, W, C) → logits (N, classes)."""
        if x.ndim != 4 or x.shape[3] != self.channels:
            raise ValueError(f"x: expected images (N, H, W, {self.channels}), got shape {x.shape}")
        return self.fc(global_avg_pool(self.encode(x, self.stages[-1])))

    def freeze(self, stop: str) -> None:
        """Train nothing up to and including the stage `stop`, whose norms keep to their running
        statistics; except temporal convolutions, which no pre-trained file has."""
        frozen = {"conv1", "norm1", *self._up_to(stop)}
        for name, module in self.named_modules():
            path = name.split(".")
            if path[0] not in frozen or "temporal" in path:
                continue
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                module.requires_grad_(False)
            if isinstance(module, nn.BatchNorm2d):
                module.freeze()

    def _up_to(self, stop: str) -> tuple[str, ...]:
        """The stages up to and including `stop`; ValueError if it is none of this network's."""
        if stop not in self.stages:
            raise ValueError(f"stage: got {stop!r}, expected one of {', '.join(self.stages)}")
        return self.stages[: stage_number(stop) + 1]

    def residual_blocks(self) -> Iterator[tuple[str, ResidualBlock]]:
        """Every residual block from input to output, with its name (``"block4.2"``)."""
        for stage in self.stages[1:]:
            for i, block in enumerate(getattr(self, stage)):
                yield f"{stage}.{i}", block


class VideoResNet(ResNet):
    """A residual network that is given chunks of frames: base of the models for video.

    Its `forward` takes chunks of images (B, T, H, W, C), or, with `after` the name of a stage,
    feature maps (B, T, H', W', C') that `encode` made of them up to that stage.
    """

    context: int

    def last_framewise_stage(self) -> str:
        """The last stage that, like all before it, looks at each frame alone."""
        return self.stages[-1]

    def remaining(self, x: Tensor, after: str | None) -> tuple[str, ...]:
        """The stages that chunks x have yet to pass; ValueError if x or `after` does not fit."""
        done = () if after is None else self._up_to(after)
        if done and stage_number(done[-1]) > stage_number(self.last_framewise_stage()):
            raise ValueError(f"after: got {after!r}, but a temporal skip comes before its end")
        if (x.ndim != 5 or x.shape[1] != self.context
                or (not done and x.shape[4] != self.channels)):
            raise ValueError(f"x: expected chunks (B, {self.context}, H, W, "
                             f"{'C' if done else self.channels}), got shape {x.shape}")
        return self.stages[len(done) :]


def parts_up_to(stop: str) -> set[str]:
    """The parts of a network from its input to the stage `stop`, as names of parameters begin."""
    return {"conv1", "norm1", *STAGES[1 : stage_number(stop) + 1]}


def stage_number(name: str) -> int:
    """The place of a stage in `STAGES`; ValueError if it is none."""
    if name not in STAGES:
        raise ValueError(f"stage: got {name!r}, expected one of {', '.join(STAGES)}")
    return STAGES.index(name)


def resnet18(classes: int, **options) -> ResNet:
    """ResNet-18; `options` as of `ResNet`."""
    return ResNet(18, classes, **options)


def resnet34(classes: int, **options) -> ResNet:
    """ResNet-34; `options` as of `ResNet`."""
    return ResNet(34, classes, **options)


def resnet50(classes: int, **options) -> ResNet:
    """ResNet-50; `options` as of `ResNet`."""
    return ResNet(50, classes, **options)


def resnet101(classes: int, **options) -> ResNet:
    """ResNet-101; `options` as of `ResNet`."""
    return ResNet(101, classes, **options)


def resnet152(classes: int, **options) -> ResNet:
    """ResNet-152; `options` as of `ResNet`."""
    return ResNet(152, classes, **options)
