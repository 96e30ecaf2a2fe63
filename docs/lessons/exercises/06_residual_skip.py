"""Exercises of lesson 6. Fill in the functions, then: python docs/lessons/check.py 6"""


def predict():
    """f(x) = −0.5 x, three times. Return dy/dx with the skip, y = x + f(x), and without it."""
    raise NotImplementedError


def paths(n, w):
    """n residual blocks with f(x) = w x, and all paths through them.

    Return a list of n + 1 numbers: how much of dy/dx comes by the paths that go through no branch,
    through one branch, …, through n branches.
    """
    raise NotImplementedError


def backward(x, W, g):
    """y = x + relu(x @ W): dL/dx and dL/dW, given g = dL/dy; x, g: (N, C), W: (C, C)."""
    raise NotImplementedError


def hunt():
    """Something is wrong with the engine: python docs/lessons/hunt.py 6 runs a program on it.

    Return the name of the op at which backward and differences first part, and the bug's.
    """
    raise NotImplementedError
