"""The softmax cross-entropy of a classifier on a GPU: one pass over the logits each way."""

from __future__ import annotations

from typing import Any

import numpy as np

from tensorlite.device import Array, array_module
from tensorlite.kernels.cuda.compiler import Kernel, kernel
from tensorlite.kernels.cuda.launch import NAMES, launch, sums_dtype, type_name

THREADS = 128
ROWS = THREADS // 32  # of a block: a warp each
LABELS = {"int32": "int", "int64": "int64_t"}


def _kernel(name: str, dtype: Any, labels: Any) -> Kernel:
    return kernel("loss.cu", name, THREADS, TYPE=type_name(dtype),
                  LABEL=LABELS[np.dtype(labels).name])


def kernels() -> list[Kernel]:
    """Every kernel that this module launches."""
    return [_kernel(name, dtype, labels) for dtype in NAMES for labels in LABELS
            for name in ("softmax_cross_entropy_forward", "softmax_cross_entropy_backward")]


def _labels(labels: Array) -> Array:
    """Contiguous labels of a dtype that the kernels read."""
    dtype = labels.dtype if labels.dtype.name in LABELS else np.dtype(np.int64)
    return array_module(labels).ascontiguousarray(labels, dtype)


def softmax_cross_entropy_forward(logits: Array, labels: Array) -> tuple[Array, Array]:
    """-log softmax(logits)[label] of each row, and what the backward needs: (losses (N,), norms).

    logits (N,classes), labels (N,) integers. Both results have the dtype of sums of the logits;
    norms (N,2) holds each row's maximum and the logarithm of the sum of e^(logit - maximum). The
    loss of a label outside 0..classes - 1 is NaN.
    """
    xp, (rows, classes) = array_module(logits), logits.shape
    logits, labels = xp.ascontiguousarray(logits), _labels(labels)
    losses = xp.empty(rows, sums_dtype(logits.dtype))
    norms = xp.empty((rows, 2), losses.dtype)
    launch(_kernel("softmax_cross_entropy_forward", logits.dtype, labels.dtype),
           (-(-rows // ROWS),), logits, labels, losses, norms, np.int32(rows), np.int32(classes))
    return losses, norms


def softmax_cross_entropy_backward(grad: Array, logits: Array, labels: Array, norms: Array,
                                   share: float = 1.0) -> Array:
    """Gradient of the cross-entropy: share * grad * (softmax(logits) - onehot(label)).

    grad is that of the losses, (N,), or one number () for all of them, as behind a sum; behind a
    mean share is 1 / N.
    """
    xp, (rows, classes) = array_module(logits), logits.shape
    logits, labels = xp.ascontiguousarray(logits), _labels(labels)
    each = grad.ndim > 0
    grad, dx = xp.ascontiguousarray(grad, norms.dtype), xp.empty(logits.shape, logits.dtype)
    launch(_kernel("softmax_cross_entropy_backward", logits.dtype, labels.dtype),
           (-(-rows // ROWS),), grad, np.int32(each), norms.dtype.type(share), logits, labels,
           norms, dx, np.int32(rows), np.int32(classes))
    return dx
