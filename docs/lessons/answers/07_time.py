"""Answers to the exercises of lesson 7."""

import numpy as np


def predict():
    # (1 + 0.5 Z)⁴ and (1 + Z)⁴.
    return [0.0625, 0.5, 1.5, 2, 1], [1, 4, 6, 4, 1]


def temporal_weight_gradient(x, e):
    return x[:-1].T @ e[1:]


def input_gradient(W, W_s, e):
    later = np.zeros_like(e)
    later[:-1] = e[1:]
    return e + e @ W.T + later @ W_s.T


def hunt():
    return "conv2d", "same-frame"
