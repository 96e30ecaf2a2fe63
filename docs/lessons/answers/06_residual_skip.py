"""Answers to the exercises of lesson 6."""

from math import comb


def predict():
    return (1 - 0.5) ** 3, (-0.5) ** 3


def paths(n, w):
    return [comb(n, k) * w**k for k in range(n + 1)]


def backward(x, W, g):
    e = g * (x @ W > 0)  # what the gates let into the branch
    return g + e @ W.T, x.T @ e


def hunt():
    return "multiply", "no-accumulation"
