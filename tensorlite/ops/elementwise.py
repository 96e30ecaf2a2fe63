"""Arithmetic with broadcasting, and functions applied to each element."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import kernels
from ..autograd import Function, Node
from ..device import Array, array_module
from ..tensor import Tensor
from .arguments import one_dtype


def unbroadcast(grad: Array, shape: tuple[int, ...]) -> Array:
    """Sum `grad` over the axes along which an input of `shape` was repeated to make the output."""
    if grad.shape == shape:
        return grad
    added = grad.ndim - len(shape)
    repeated = [added + i for i, n in enumerate(shape) if n == 1 and grad.shape[added + i] != 1]
    return grad.sum(axis=(*range(added), *repeated), keepdims=True).reshape(shape)


def _operands(name: str, a: Any, b: Any) -> tuple[Tensor, Tensor]:
    """Both operands as tensors: a Python number takes the dtype of the other one, if it can."""
    if not isinstance(a, Tensor):
        a = _constant(a, b) if isinstance(b, Tensor) else Tensor(a)
    if not isinstance(b, Tensor):
        b = _constant(b, a)
    try:
        np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        raise ValueError(f"{name}: shapes {a.shape} and {b.shape} do not broadcast") from None
    return a, b


def _constant(value: Any, like: Tensor) -> Tensor:
    if isinstance(value, bool | int | float):
        dtype = like.dtype
        if isinstance(value, float) and dtype.kind != "f":  # a fraction must not become an integer
            dtype = np.dtype(np.float32)
        elif not isinstance(value, bool) and dtype.kind == "b":  # nor a number a truth value
            dtype = np.dtype(np.int64)
        return Tensor(array_module(like.data).asarray(value, dtype=dtype))
    return Tensor(value)


class Add(Function):
    """a + b; d/da = 1, d/db = 1."""

    @staticmethod
    def forward(ctx: Node, a: Array, b: Array) -> Array:
        ctx.shapes = a.shape, b.shape
        return a + b

    @staticmethod
    def backward(ctx: Node, grad: Array) -> tuple[Array, ...]:
        return tuple(unbroadcast(grad, shape) for shape in ctx.shapes)


class Subtract(Function):
    """a - b; d/da = 1, d/db = -1."""

    @staticmethod
    def forward(ctx: Node, a: Array, b: Array) -> Array:
        ctx.shapes = a.shape, b.shape
        return a - b

    @staticmethod
    def backward(ctx: Node, grad: Array) -> tuple[Array, ...]:
        return unbroadcast(grad, ctx.shapes[0]), unbroadcast(-grad, ctx.shapes[1])


class Multiply(Function):
    """a * b; d/da = b, d/db = a."""

    @staticmethod
    def forward(ctx: Node, a: Array, b: Array) -> Array:
        ctx.save(a, b)
        return a * b

    @staticmethod
    def backward(ctx: Node, grad: Array) -> tuple[Array | None, ...]:
        a, b = ctx.saved
        return (unbroadcast(grad * b, a.shape) if ctx.needs[0] else None,
                unbroadcast(grad * a, b.shape) if ctx.needs[1] else None)


class Divide(Function):
    """a / b; d/da = 1 / b, d/db = -a / b²."""

    @staticmethod
    def forward(ctx: Node, a: Array, b: Array) -> Array:
        ctx.save(a, b)
        return a / b

    @staticmethod
    def backward(ctx: Node, grad: Array) -> tuple[Array | None, ...]:
        a, b = ctx.saved
        return (unbroadcast(grad / b, a.shape) if ctx.needs[0] else None,
                # (b² overflows, or becomes zero, long before a / b² does.)
                unbroadcast(-grad * (a / b) / b, b.shape) if ctx.needs[1] else None)


class Power(Function):
    """a ** b; d/da = b a^(b-1), d/db = a^b log a (0 where a is 0 and b is not negative)."""

    @staticmethod
    def forward(ctx: Node, a: Array, b: Array) -> Array:
        y = a**b
        ctx.save(a, b, y)
        return y

    @staticmethod
    def backward(ctx: Node, grad: Array) -> tuple[Array | None, ...]:
        a, b, y = ctx.saved
        xp = array_module(a)
        da = db = None
        if ctx.needs[0]:
            # b = 0 is a constant, whatever a is; 0 * 0^(-1) would be nan.
            slope = xp.where(b == 0, xp.zeros_like(y), b * a ** xp.where(b == 0, b, b - 1))
            da = unbroadcast(grad * slope, a.shape)
        if ctx.needs[1]:
            log_a = xp.log(xp.where((a == 0) & (b >= 0), xp.ones_like(a), a))
            db = unbroadcast(grad * y * log_a, b.shape)
        return da, db


class Negative(Function):
    """-x; d/dx = -1."""

    @staticmethod
    def forward(ctx: Node, x: Array) -> Array:
        return -x

    @staticmethod
    def backward(ctx: Node, grad: Array) -> Array:
        return -grad


class Exp(Function):
    """y = e^x; dy/dx = y."""

    @staticmethod
    def forward(ctx: Node, x: Array) -> Array:
        y = array_module(x).exp(x)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx: Node, grad: Array) -> Array:
        (y,) = ctx.saved
        return grad * y


class Log(Function):
    """log x; d/dx = 1 / x."""

    @staticmethod
    def forward(ctx: Node, x: Array) -> Array:
        ctx.save(x)
        return array_module(x).log(x)

    @staticmethod
    def backward(ctx: Node, grad: Array) -> Array:
        (x,) = ctx.saved
        return grad / x


class Tanh(Function):
    """y = tanh x; dy/dx = 1 - y²."""

    @staticmethod
    def forward(ctx: Node, x: Array) -> Array:
        y = array_module(x).tanh(x)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx: Node, grad: Array) -> Array:
        (y,) = ctx.saved
        return grad * (1 - y * y)


class Sigmoid(Function):
    """y = 1 / (1 + e^-x); dy/dx = y (1 - y)."""

    @staticmethod
    def forward(ctx: Node, x: Array) -> Array:
        # e^-|x| cannot overflow, and e^x / (1 + e^x) is as exact near 0 as elsewhere.
        xp = array_module(x)
        small = xp.exp(xp.minimum(x, -1.0 * x))
        y = xp.where(x >= 0, xp.ones_like(small), small) / (1 + small)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx: Node, grad: Array) -> Array:
        (y,) = ctx.saved
        return grad * (y * (1 - y))


class ReLU(Function):
    """y = max(x, 0); dy/dx = 1 where x > 0, else 0."""

    @staticmethod
    def forward(ctx: Node, x: Array) -> Array:
        y = kernels.of(x).relu_forward(x)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx: Node, grad: Array) -> Array:
        (y,) = ctx.saved
        return kernels.of(grad).relu_backward(grad, y)


class Dropout(Function):
    """y = x m / (1 - p), each m being 1 with probability 1 - p, else 0; dy/dx = m / (1 - p).

    Srivastava et al. 2014, scaled in training so that inference needs nothing.
    """

    @staticmethod
    def forward(ctx: Node, x: Array, *, p: float, rng: np.random.Generator) -> Array:
        keep = rng.random(x.shape, dtype=np.float32) >= p
        mask = array_module(x).asarray(keep * (1 / (1 - p)), dtype=x.dtype)
        ctx.save(mask)
        return x * mask

    @staticmethod
    def backward(ctx: Node, grad: Array) -> Array:
        (mask,) = ctx.saved
        return grad * mask


def add(a: Any, b: Any) -> Tensor:
    """a + b, broadcast."""
    return Add.apply(*_operands("add", a, b))


def subtract(a: Any, b: Any) -> Tensor:
    """a - b, broadcast."""
    return Subtract.apply(*_operands("subtract", a, b))


def multiply(a: Any, b: Any) -> Tensor:
    """a * b, broadcast."""
    return Multiply.apply(*_operands("multiply", a, b))


def divide(a: Any, b: Any) -> Tensor:
    """a / b, broadcast."""
    return Divide.apply(*_operands("divide", a, b))


def power(a: Any, b: Any) -> Tensor:
    """a ** b, broadcast."""
    return Power.apply(*_operands("power", a, b))


def negative(x: Tensor) -> Tensor:
    """-x."""
    return Negative.apply(x)


def exp(x: Tensor) -> Tensor:
    """e^x."""
    return Exp.apply(x)


def log(x: Tensor) -> Tensor:
    """The natural logarithm."""
    return Log.apply(x)


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent."""
    return Tanh.apply(x)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x), without overflow for large negative x."""
    return Sigmoid.apply(x)


def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return ReLU.apply(x)


def dropout(x: Tensor, p: float, training: bool = True,
            rng: np.random.Generator | None = None) -> Tensor:
    """Zero each element with probability `p` and scale the others by 1 / (1 - p).

    Returns `x` itself when not `training` or p = 0. The same `rng` state gives the same mask on
    every device. Raises ValueError unless 0 <= p < 1 and, when training, a generator is given.
    """
    one_dtype(x)
    if not 0 <= p < 1:
        raise ValueError(f"p: expected a probability in [0, 1), got {p}")
    if not training or p == 0:
        return x
    if not isinstance(rng, np.random.Generator):
        raise ValueError(f"rng: dropout in training needs a numpy.random.Generator, got {rng!r}")
    return Dropout.apply(x, p=p, rng=rng)
