"""Answers to the exercises of lesson 1."""


def predict():
    # s = 1 · 1 + 1 · 2 = 3, d = 3 − (−1) = 4, dL/ds = 4 + 4 = 8.
    return 8, 16


def difference(f, x, h=1e-4):
    return (f(x + h) - f(x - h)) / (2 * h)


def step(w, v, before, now, target, rate):
    dL_ds = 2 * (w * now + v * before - target)
    return w - rate * dL_ds * now, v - rate * dL_ds * before
