"""Exercises of lesson 7. Fill in the functions, then: python docs/lessons/check.py 7"""


def predict():
    """Five frames, four blocks, F = 0, all gates open; the score is the last frame's feature.

    Return the gradients of the five frames, the first one first, as two lists: with S(x) = 0.5 x,
    and with the identity.
    """
    raise NotImplementedError


def temporal_weight_gradient(x, e):
    """dL/dW_s of S(x) = x @ W_s: x (T, C) came into the block, e (T, D) is e_t of the lesson."""
    raise NotImplementedError


def input_gradient(W, W_s, e):
    """dL/dx (T, C) of the block with F(x) = x @ W and S(x) = x @ W_s, given e (T, C)."""
    raise NotImplementedError


def hunt():
    """Something is wrong with the engine: python docs/lessons/hunt.py 7 runs a program on it.

    Return the name of the op at which backward and differences first part, and the bug's.
    """
    raise NotImplementedError
