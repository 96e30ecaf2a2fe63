"""Answers to the exercises of lesson 3."""


def predict():
    # s = (0, 2), d = (1, 1), g = 2/2 d = (1, 1): the sums of D's columns, and of g.
    return [3, -1], [2]


def unbroadcast(grad, shape):
    grad = grad.sum(axis=tuple(range(grad.ndim - len(shape))))  # axes that were put in front
    repeated = tuple(i for i, n in enumerate(shape) if n == 1)
    return grad.sum(axis=repeated, keepdims=True)


def centre_backward(g):
    return g - g.mean(axis=1, keepdims=True)


def hunt():
    return "add", "broadcast"
