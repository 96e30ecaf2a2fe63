"""The layers of the networks: each holds its parameters and calls one op of the engine.

A layer's `rng` draws its starting weights; without one they are drawn from fresh entropy, so a
reproducible network passes one generator down. float32; `module.to(dtype=…)` for another.
"""

from __future__ import annotations

import math
from typing import Self, TypeAlias

import numpy as np

from tensorlite import ops
from tensorlite.nn import init
from tensorlite.nn.module import Module, Parameter
from tensorlite.ops import batch_norm, conv2d, dropout, linear, relu
from tensorlite.ops.fused import Activation, value_of
from tensorlite.tensor import Tensor

Pair: TypeAlias = int | tuple[int, int]


def pair(owner: str, argument: str, value: Pair, least: int) -> tuple[int, int]:
    """(value, value) of an int, or the pair itself; ValueError if neither, or below `least`."""
    both = value if isinstance(value, tuple) else (value, value)
    if len(both) != 2 or not all(isinstance(v, int | np.integer) and v >= least for v in both):
        raise ValueError(
            f"{owner}: {argument} is an int or a pair of ints >= {least}, got {value!r}"
        )
    return int(both[0]), int(both[1])


def count(owner: str, argument: str, value: int) -> int:
    """A number of channels or units; ValueError unless it is an int >= 1."""
    if not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{owner}: {argument} is an int >= 1, got {value!r}")
    return int(value)


class Conv2d(Module):
    """Convolution of (N, H, W, cin) to (N, H', W', cout); weight (kh, kw, cin/groups, cout).

    `kernel`, `stride`, `padding`, `dilation` are ints or (vertical, horizontal) pairs. The weight
    starts as `init.kaiming_normal`, the bias (off by default: a batch norm follows) as zeros.
    Wrong options, or groups that do not divide both channel counts, are a ValueError.
    """

    def __init__(
        self,
        cin: int,
        cout: int,
        kernel: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = False,
        rng: np.random.Generator | int | None = None,
    ) -> None:
        self.cin, self.cout = count("Conv2d", "cin", cin), count("Conv2d", "cout", cout)
        self.groups = count("Conv2d", "groups", groups)
        if cin % groups or cout % groups:
            raise ValueError(
                f"Conv2d: groups must divide cin and cout, got {groups} for {cin} and {cout}"
            )
        self.kernel = pair("Conv2d", "kernel", kernel, least=1)
        self.stride = pair("Conv2d", "stride", stride, least=1)
        self.padding = pair("Conv2d", "padding", padding, least=0)
        self.dilation = pair("Conv2d", "dilation", dilation, least=1)
        shape = (*self.kernel, cin // groups, cout)
        self.weight = Parameter(init.kaiming_normal(shape, np.random.default_rng(rng)))
        self.bias = Parameter(np.zeros(cout, np.float32)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x (N, H, W, cin) -> (N, H', W', cout)."""
        return conv2d(
            x,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )

    def describe(self) -> str:
        defaults = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
        options = [
            f"{name}={getattr(self, name)}"
            for name, default in defaults.items()
            if getattr(self, name) != default
        ]
        if self.bias is not None:
            options.append("bias=True")
        return ", ".join([f"{self.cin}, {self.cout}", f"kernel={self.kernel}", *options])


class BatchNorm2d(Module):
    """Batch normalisation over all but the last axis, with running statistics.

    Ioffe and Szegedy (2015), in PyTorch's conventions: running = (1 - momentum) running + momentum
    batch, with the unbiased variance. `mode` says which statistics are used: "train" (the batch's,
    updating the running ones), "frozen" (the running ones, as part of training, after `freeze`) or
    "eval" (the running ones). A frozen norm keeps gamma and beta as parameters; whether they are
    trained is their `requires_grad`'s affair.
    """

    def __init__(self, c: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        self.c = count("BatchNorm2d", "c", c)
        if not 0 <= momentum <= 1:
            raise ValueError(f"BatchNorm2d: momentum lies in [0, 1], got {momentum!r}")
        if not 0 < eps < math.inf:
            raise ValueError(f"BatchNorm2d: eps is positive and finite, got {eps!r}")
        self.momentum, self.eps = float(momentum), float(eps)
        self.frozen = False
        self.gamma = Parameter(np.ones(c, np.float32))
        self.beta = Parameter(np.zeros(c, np.float32))
        self.running_mean: np.ndarray
        self.running_var: np.ndarray
        self.register_buffer("running_mean", np.zeros(c, np.float32))
        self.register_buffer("running_var", np.ones(c, np.float32))

    @property
    def mode(self) -> str:
        """Which statistics `training` and `frozen` call for."""
        if not self.training:
            return "eval"
        return "frozen" if self.frozen else "train"

    def freeze(self, frozen: bool = True) -> Self:
        """Keep to the running statistics even in training; returns the module."""
        self.frozen = bool(frozen)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """x (…, c), normalised."""
        return batch_norm(
            x,
            self.gamma,
            self.beta,
            self.running_mean,
            self.running_var,
            mode=self.mode,
            momentum=self.momentum,
            eps=self.eps,
        )

    def describe(self) -> str:
        return f"{self.c}, momentum={self.momentum:g}, eps={self.eps:g}" + (
            ", frozen" if self.frozen else ""
        )


def conv_norm(x: Activation, conv: Conv2d, norm: BatchNorm2d, relu: bool = False) -> Activation:
    """norm(conv(x)), then relu if asked, in one pass where that is possible.

    The result is read by another conv_norm, `max_pool2d` and `block_join`; see `ops.conv_norm`.
    """
    if conv.bias is not None or conv.groups != 1:
        y = norm(conv(value_of(x)))
        return ops.relu(y) if relu else y
    return ops.conv_norm(
        x,
        conv.weight,
        norm.gamma,
        norm.beta,
        norm.running_mean,
        norm.running_var,
        relu=relu,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        mode=norm.mode,
        momentum=norm.momentum,
        eps=norm.eps,
        kept=conv.kept,
    )


class Linear(Module):
    """x @ weight + bias with weight (cin, cout); both start uniform in ±1/sqrt(cin)."""

    def __init__(
        self,
        cin: int,
        cout: int,
        bias: bool = True,
        rng: np.random.Generator | int | None = None,
    ) -> None:
        self.cin, self.cout = count("Linear", "cin", cin), count("Linear", "cout", cout)
        draws, bound = np.random.default_rng(rng), 1 / math.sqrt(cin)
        self.weight = Parameter(init.uniform((cin, cout), draws, -bound, bound))
        self.bias = Parameter(init.uniform((cout,), draws, -bound, bound)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x (…, cin) -> (…, cout)."""
        return linear(x, self.weight, self.bias)

    def describe(self) -> str:
        return f"{self.cin}, {self.cout}" + ("" if self.bias is not None else ", bias=False")


class Dropout(Module):
    """In training, zeroes values with probability p and scales the others by 1/(1 - p).

    Masks are drawn from `rng` (a generator or a seed), an attribute that a trainer may replace
    before each step to make the draws a function of the step. p outside [0, 1) is a ValueError.
    """

    def __init__(self, p: float = 0.5, rng: np.random.Generator | int | None = None) -> None:
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: p lies in [0, 1), got {p!r}")
        self.p = float(p)
        self.rng = np.random.default_rng(rng)

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape; x itself when not training."""
        return dropout(x, self.p, self.training, self.rng)

    def describe(self) -> str:
        return f"p={self.p:g}"


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape."""
        return relu(x)
