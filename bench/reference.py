"""The networks in PyTorch, written from the equations, as plain modules.

Modules are named as in `recres.models`, so that a state is copied by name, and their tensors are in
PyTorch's layout (N, C, H, W). They do what PyTorch's users do to be quick: ReLUs and additions in
place where nothing else needs the value.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import relu

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3),
          152: (3, 8, 36, 3)}


def conv(cin: int, cout: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, kernel, stride, padding=kernel // 2, bias=False)


class Projection(nn.Module):
    """A 1x1 convolution and its batch norm."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv, self.norm = conv(cin, cout, 1, stride), nn.BatchNorm2d(cout)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Block(nn.Module):
    """y = relu(F(x) + shortcut(x)), with F given by the (kernel, stride) of its convolutions."""

    shortcut: Projection | None

    def __init__(self, cin: int, planes: int, cout: int, layers: tuple[tuple[int, int], ...],
                 projects: bool, stride: int) -> None:
        super().__init__()
        self.layers = len(layers)
        widths = [cin, *[planes] * (self.layers - 1), cout]
        for i, (kernel, step) in enumerate(layers):
            setattr(self, f"conv{i + 1}", conv(widths[i], widths[i + 1], kernel, step))
            setattr(self, f"norm{i + 1}", nn.BatchNorm2d(widths[i + 1]))
        self.shortcut = Projection(cin, cout, stride) if projects else None

    def residual(self, x: Tensor) -> Tensor:
        for i in range(1, self.layers + 1):
            x = getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(x))
            if i < self.layers:
                x = relu(x, inplace=True)
        return x

    def skip(self, x: Tensor) -> Tensor:
        return x if self.shortcut is None else self.shortcut(x)

    def forward(self, x: Tensor) -> Tensor:
        y = self.residual(x)
        y += self.skip(x)
        return relu(y, inplace=True)


class ResNet(nn.Module):
    """ResNet v1.5 (the stride of a stage in the 3x3): images (N, 3, H, W) → logits."""

    block1: nn.Sequential
    block2: nn.Sequential
    block3: nn.Sequential
    block4: nn.Sequential

    def __init__(self, depth: int, classes: int, width: int = 64) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(3, width, 7, 2), nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, 2, 1)
        cin = width
        for stage, count in enumerate(DEPTHS[depth]):
            planes = width * 2**stage
            cout = planes if depth < 50 else 4 * planes
            blocks = []
            for i in range(count):
                stride = 2 if stage and i == 0 else 1
                layers = ((3, stride), (3, 1)) if depth < 50 else ((1, 1), (3, stride), (1, 1))
                projects = stride > 1 or cin != cout
                blocks.append(Block(cin, planes, cout, layers, projects, stride))
                cin = cout
            setattr(self, f"block{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(cin, classes)

    def stem(self, x: Tensor) -> Tensor:
        return self.pool(relu(self.norm1(self.conv1(x)), inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        x = self.block4(self.block3(self.block2(self.block1(self.stem(x)))))
        return self.fc(x.mean((2, 3)))


class RecurrentResNet(ResNet):
    """y_t = relu(F(x_t) + x_t + x_{t-1}) in the last T - 1 blocks, read from the last frame:
    chunks (B, T, 3, H, W) → logits. The first frame of a chunk goes no further than the block
    in which it is added to the second."""

    def __init__(self, depth: int, classes: int, context: int, width: int = 64) -> None:
        super().__init__(depth, classes, width)
        self.context = context

    def forward(self, x: Tensor) -> Tensor:
        frames = self.context
        x = self.stem(x.flatten(0, 1))
        blocks: list[Any] = [*self.block1, *self.block2, *self.block3, *self.block4]
        recurrent = len(blocks) - (self.context - 1)
        for block in blocks[:recurrent]:
            x = block(x)
        for block in blocks[recurrent:]:
            now = x.unflatten(0, (-1, frames))[:, 1:].flatten(0, 1)
            passed = block.skip(x).unflatten(0, (-1, frames))
            y = block.residual(now)
            y += passed[:, 1:].flatten(0, 1)
            y += passed[:, :-1].flatten(0, 1)
            x, frames = relu(y, inplace=True), frames - 1
        return self.fc(x.mean((2, 3)))
