"""Softmax and the cross-entropy of a classifier."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import kernels
from ..autograd import Function, Node
from ..device import Array, array_module
from ..precision import products_dtype
from ..tensor import Tensor
from .casting import cast

REDUCTIONS = ("mean", "sum", "none")


def _log_softmax(x: Array) -> Array:
    xp = array_module(x)
    shifted = x - x.max(axis=-1, keepdims=True)  # so that exp cannot overflow
    return shifted - xp.log(xp.exp(shifted).sum(axis=-1, keepdims=True))


class Softmax(Function):
    """p_i = e^{x_i} / Σ_j e^{x_j}; dx = p (grad - Σ_j grad_j p_j)."""

    @staticmethod
    def forward(ctx: Node, x: Array) -> Array:
        p = array_module(x).exp(_log_softmax(x))
        ctx.save(p)
        return p

    @staticmethod
    def backward(ctx: Node, grad: Array) -> Array:
        (p,) = ctx.saved
        return p * (grad - (grad * p).sum(axis=-1, keepdims=True))


class LogSoftmax(Function):
    """l_i = x_i - log Σ_j e^{x_j}; dx = grad - e^l Σ_j grad_j."""

    @staticmethod
    def forward(ctx: Node, x: Array) -> Array:
        logs = _log_softmax(x)
        ctx.save(logs)
        return logs

    @staticmethod
    def backward(ctx: Node, grad: Array) -> Array:
        (logs,) = ctx.saved
        return grad - array_module(grad).exp(logs) * grad.sum(axis=-1, keepdims=True)


class CrossEntropy(Function):
    """-log softmax(logits)[label] for each row; d/dlogits = softmax(logits) - onehot(label).

    On a GPU the loss of float16 logits is float32.
    """

    @staticmethod
    def forward(ctx: Node, logits: Array, *, labels: Array, reduction: str) -> Array:
        loss, norms = kernels.of(logits).softmax_cross_entropy_forward(logits, labels)
        ctx.save(logits, labels, norms)
        ctx.reduction = reduction
        return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss

    @staticmethod
    def backward(ctx: Node, grad: Array) -> Array:
        logits, labels, norms = ctx.saved
        share = 1 / len(labels) if ctx.reduction == "mean" else 1.0
        return kernels.of(grad).softmax_cross_entropy_backward(grad, logits, labels, norms, share)


def softmax(x: Tensor) -> Tensor:
    """Probabilities over the last axis."""
    _classes("softmax", x)
    return Softmax.apply(_in_full(x))


def log_softmax(x: Tensor) -> Tensor:
    """Log-probabilities over the last axis."""
    _classes("log_softmax", x)
    return LogSoftmax.apply(_in_full(x))


def _classes(name: str, x: Tensor) -> None:
    if not x.ndim or not x.shape[-1]:
        raise ValueError(f"{name}: expected a class or more in the last axis, got shape {x.shape}")


def _in_full(x: Tensor) -> Tensor:
    """x, in full precision where `autocast` took it away; of integers, which may be unsigned and
    have no differences, in float64."""
    if x.dtype.kind != "f":
        return Tensor(x.data, dtype=np.float64)
    return x if products_dtype() is None or x.dtype != np.float16 else cast(x, np.float32)


def cross_entropy(logits: Tensor, labels: Any, reduction: str = "mean") -> Tensor:
    """The cross-entropy of softmax(logits) with integer class labels; stable for large logits.

    logits (N, classes), labels (N,) of integers in [0, classes) → a scalar, the ``"mean"`` or
    ``"sum"`` over rows, or (N,) with reduction ``"none"``.
    """
    labels = labels.data if isinstance(labels, Tensor) else labels
    labels = array_module(logits.data).asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"cross_entropy: expected logits (N, classes) and labels (N,), got "
                         f"{logits.shape} and {labels.shape}")
    _classes("cross_entropy", logits)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels: expected integers, got {labels.dtype}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: got {reduction!r}, expected one of {', '.join(REDUCTIONS)}")
    if reduction == "mean" and not len(labels):
        raise ValueError("cross_entropy: the mean over an empty batch is not defined")
    # A look at the values would make the host wait for a GPU: it is taken on the CPU only.
    if isinstance(labels, np.ndarray) and len(labels):
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= logits.shape[1]:
            raise ValueError(f"labels: expected values in [0, {logits.shape[1]}), got "
                             f"{low if low < 0 else high}")
    if logits.dtype.kind != "f":
        logits = _in_full(logits)
    return CrossEntropy.apply(logits, labels=labels, reduction=reduction)
