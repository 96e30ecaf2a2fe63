"""Softmax cross-entropy of a classifier on the CPU, and its gradient."""

from __future__ import annotations

import numpy as np


def softmax_cross_entropy_forward(
    logits: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """-log softmax(logits)[label] of each row, and what its gradient needs: (N,) and (N, 2).

    logits (N, classes), labels (N,) integers. The latter are a row's maximum and the logarithm of
    its sum of exponentials beside it, so that neither overflows.
    """
    largest = logits.max(axis=1, keepdims=True)
    shifted = logits - largest
    sums = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    losses = sums[:, 0] - shifted[np.arange(len(labels)), labels]
    return losses, np.concatenate([largest, sums], axis=1)


def softmax_cross_entropy_backward(
    grad: np.ndarray,
    logits: np.ndarray,
    labels: np.ndarray,
    norms: np.ndarray,
    share: float = 1.0,
) -> np.ndarray:
    """The gradient to the logits: grad * share * (softmax(logits) - onehot(label)).

    grad (N,), or () for all rows alike; norms from the forward pass.
    """
    dx = np.exp(logits - norms[:, :1] - norms[:, 1:])
    dx[np.arange(len(labels)), labels] -= 1
    dx *= (grad * grad.dtype.type(share)).reshape(-1, 1)
    return dx
