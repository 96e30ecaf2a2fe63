"""Residual networks for images (He et al. 2016), channels last.

Stages carry the names of the recurrent-residual paper: the stem, then `block1` to `block4`
(conv2_x to conv5_x in He et al., layer1 to layer4 in torchvision). Two versions of the bottleneck
are about: `v1`, of the paper and its Caffe and Keras weights, has the stride of a stage in the
first 1x1 convolution; `v1.5`, torchvision's, has it in the 3x3.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from tensorlite import Activation, block_join, global_avg_pool, max_pool2d, nn
from tensorlite.nn import conv_norm
from tensorlite.tensor import Tensor

STAGES = ("stem", "block1", "block2", "block3", "block4")
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
    temporal: nn.Module  # of the blocks that `recurrent.py` gives one

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
    rng: a generator or seed for the starting weights. ValueError for anything else.
    """

    def __init__(self, depth: int, classes: int, version: str = "v1", width: int = 64,
                 rng: np.random.Generator | int | None = None) -> None:
        if depth not in DEPTHS:
            raise ValueError(f"depth: got {depth!r}, expected one of {', '.join(map(str, DEPTHS))}")
        if version not in VERSIONS:
            raise ValueError(f"version: got {version!r}, expected one of {', '.join(VERSIONS)}")
        if not isinstance(classes, int) or classes < 1:
            raise ValueError(f"classes: expected an integer >= 1, got {classes!r}")
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"width: expected an integer >= 1, got {width!r}")
        rng = np.random.default_rng(rng)
        self.depth, self.classes, self.version, self.width = depth, classes, version, width
        block = BasicBlock if depth < 50 else Bottleneck
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, rng=rng)
        self.norm1 = nn.BatchNorm2d(width)
        channels = width
        for stage, count in enumerate(DEPTHS[depth], start=1):
            planes = width * 2 ** (stage - 1)
            blocks = nn.Sequential()
            for i in range(count):
                stride = 2 if stage > 1 and i == 0 else 1
                blocks.append(block(channels, planes, stride, version, rng))
                channels = planes * block.expansion
            setattr(self, f"block{stage}", blocks)
        self.features = channels
        self.fc = nn.Linear(channels, classes, rng=rng)

    def stem(self, x: Tensor) -> Tensor:
        """Images (N, H, W, 3) → (N, H / 4, W / 4, width)."""
        return max_pool2d(conv_norm(x, self.conv1, self.norm1, relu=True), 3, stride=2, padding=1)

    def stage(self, name: str, x: Tensor) -> Tensor:
        """One of `STAGES` on its own, frame by frame."""
        return self.stem(x) if name == "stem" else getattr(self, name)(x)

    def encode(self, x: Tensor, stop: str) -> Tensor:
        """Images (N, H, W, 3) → the feature maps after the stage `stop`."""
        for name in STAGES[: stage_number(stop) + 1]:
            x = self.stage(name, x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, H, W, 3) → logits (N, classes)."""
        if x.ndim != 4 or x.shape[3] != 3:
            raise ValueError(f"x: expected images (N, H, W, 3), got shape {x.shape}")
        return self.fc(global_avg_pool(self.encode(x, "block4")))

    def freeze(self, stop: str) -> None:
        """Train nothing up to and including the stage `stop`; its norms keep to their running
        statistics."""
        parts: list[nn.Module] = [self.conv1, self.norm1]
        parts += [getattr(self, name) for name in STAGES[1 : stage_number(stop) + 1]]
        for part in parts:
            part.requires_grad_(False)
            for module in part.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.freeze()

    def residual_blocks(self) -> Iterator[tuple[str, ResidualBlock]]:
        """Every residual block from input to output, with its name (``"block4.2"``)."""
        for stage in STAGES[1:]:
            for i, block in enumerate(getattr(self, stage)):
                yield f"{stage}.{i}", block


class VideoResNet(ResNet):
    """A residual network that is given chunks of frames: base of the models for video.

    Its `forward` takes chunks of images (B, T, H, W, 3), or, with `after` the name of a stage,
    feature maps (B, T, H', W', C) that `encode` made of them up to that stage.
    """

    context: int

    def last_framewise_stage(self) -> str:
        """The last stage that, like all before it, looks at each frame alone."""
        return STAGES[-1]

    def chunks(self, x: Tensor, after: str | None) -> tuple[Tensor, int]:
        """Check chunks x (B, T, H, W, C) and fold them to (B T, H, W, C); also the stage to go on
        with, as a place in `STAGES`."""
        if x.ndim != 5 or x.shape[1] != self.context or (after is None and x.shape[4] != 3):
            channels = "3" if after is None else "C"
            raise ValueError(f"x: expected chunks (B, {self.context}, H, W, {channels}), "
                             f"got shape {x.shape}")
        first = 0 if after is None else stage_number(after) + 1
        if first > stage_number(self.last_framewise_stage()) + 1:
            raise ValueError(f"after: got {after!r}, but a temporal skip comes before its end")
        return x.reshape(-1, *x.shape[2:]), first


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
