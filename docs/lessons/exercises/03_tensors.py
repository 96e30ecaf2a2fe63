"""Exercises of lesson 3. Fill in the functions, then: python docs/lessons/check.py 3"""


def predict():
    """Two clips of two pixels: D = [[1, −1], [2, 0]], targets (−1, 1), w = [1, 1], b = [0].

    Return dL/dw and dL/db of the lesson's loss, as lists.
    """
    raise NotImplementedError


def unbroadcast(grad, shape):
    """The gradient of an array of `shape` that was repeated to the shape of `grad` (an array)."""
    raise NotImplementedError


def centre_backward(g):
    """y = x − x.mean(axis=1, keepdims=True): dL/dx, given g = dL/dy, an array of two axes."""
    raise NotImplementedError


def hunt():
    """Something is wrong with the engine: python docs/lessons/hunt.py 3 runs a program on it.

    Return the name of the op at which backward and differences first part, and the bug's.
    """
    raise NotImplementedError
