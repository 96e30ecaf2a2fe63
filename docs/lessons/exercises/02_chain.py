"""Exercises of lesson 2. Fill in the functions, then: python docs/lessons/check.py 2"""


def predict():
    """before = 2, now = 1, target = −1, w = 3.

    Return the piece of dL/dw that comes by `now`, the piece that comes by `before`, and dL/dw.
    """
    raise NotImplementedError


def backward(w, before, now, target):
    """dL/dw of the lesson's chain. Frames may be negative here: mind the gates."""
    raise NotImplementedError


def walk(tape, values, root):
    """Find the bug: one line is wrong.

    tape: the ops in the order in which they ran, each (output, kind, inputs), by names of values;
    values: the number that each name stands for. Returns d(root)/d(name) by name.
    """
    grads = {root: 1.0}
    for output, kind, inputs in reversed(tape):
        g = grads.get(output, 0.0)
        if kind == "add":
            slopes = (1.0, 1.0)
        elif kind == "multiply":
            slopes = (values[inputs[1]], values[inputs[0]])
        else:  # relu
            slopes = (1.0 if values[inputs[0]] > 0 else 0.0,)
        for name, slope in zip(inputs, slopes, strict=True):
            grads[name] = g * slope
    return grads
