"""Answers to the exercises of lesson 4."""

import numpy as np


def predict():
    # The detector lay on (1, 2) with g = 1 and on (2, 3) with g = 2.
    return [5, 8], [1, 3, 2]


def backward(x, w, g):
    dx, dw = np.zeros(len(x)), np.zeros(len(w))
    for i in range(len(g)):
        for a in range(len(w)):
            dx[i + a] += w[a] * g[i]
            dw[a] += x[i + a] * g[i]
    return dx, dw


def padded_backward(x, w, g, padding):
    dx, dw = backward(np.pad(x, padding), w, g)
    return dx[padding : len(dx) - padding], dw


def hunt():
    return "conv2d", "padding"
