"""Answers to the exercises of lesson 2."""


def predict():
    # h_now = 3, h_before = 6, s = −3, d = −2, dL/ds = −4; by now −4 · 1, by before 4 · 2.
    return -4, 8, 4


def backward(w, before, now, target):
    z_now, z_before = w * now, w * before
    dL_ds = 2 * (max(z_now, 0) - max(z_before, 0) - target)
    return dL_ds * (z_now > 0) * now - dL_ds * (z_before > 0) * before


def walk(tape, values, root):
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
            grads[name] = grads.get(name, 0.0) + g * slope  # pieces add
    return grads
