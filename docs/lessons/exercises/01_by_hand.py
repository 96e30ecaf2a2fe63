"""Exercises of lesson 1. Fill in the functions, then: python docs/lessons/check.py 1"""


def predict():
    """It became darker: before = 2, now = 1, target = −1; the weights are w = 1, v = 1.

    Return dL/dw and dL/dv of the lesson's loss, worked out on paper.
    """
    raise NotImplementedError


def difference(f, x, h=1e-4):
    """The slope of f at x, from values of f alone, as the lesson asks the loss for it."""
    raise NotImplementedError


def step(w, v, before, now, target, rate):
    """One step of size `rate` against the gradient of the lesson's loss: the new w and v."""
    raise NotImplementedError
