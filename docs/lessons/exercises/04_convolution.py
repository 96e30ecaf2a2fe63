"""Exercises of lesson 4. Fill in the functions, then: python docs/lessons/check.py 4

Here a row has one channel, and there is one detector: y_i = Σ_a x_{i+a} w_a.
"""


def predict():
    """x = [1, 2, 3], w = [1, 1], and L = y_0 + 2 y_1. Return dL/dw and dL/dx, as lists."""
    raise NotImplementedError


def backward(x, w, g):
    """dL/dx and dL/dw, given g = dL/dy: x has n elements, w has k, g has n − k + 1."""
    raise NotImplementedError


def padded_backward(x, w, g, padding):
    """The same where `padding` zeros were put to each end of x first: g has 2 · padding more."""
    raise NotImplementedError


def hunt():
    """Something is wrong with the engine: python docs/lessons/hunt.py 4 runs a program on it.

    Return the name of the op at which backward and differences first part, and the bug's.
    """
    raise NotImplementedError
