"""What the exercises are checked for: of each lesson, the functions to be written and their checks.

A check is given the learner's function and returns None if it is right, else a hint: what is wrong,
not what would be right. Where it can, it takes what is right from the engine or from differences.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from hunt import HUNTS, located

import tensorlite as tl
from tensorlite.gradcheck import numerical_gradient

Check = Callable[[Callable[..., Any]], str | None]


def compare(got: Any, expected: Any, what: str) -> str | None:
    """None where `got` is `expected` to 1e-5 of its size, else in which way it is not."""
    expected = np.asarray(expected, np.float64)
    try:
        got = np.asarray(got, np.float64)
    except (TypeError, ValueError):
        return f"{what}: expected numbers, got {type(got).__name__}"
    if got.shape != expected.shape:
        return (f"{what}: has the shape {got.shape}, but a gradient has that of what it belongs "
                f"to, {expected.shape}")
    tolerated = 1e-5 * (np.abs(expected).max(initial=0.0) + 1e-3)
    wrong = ~(np.abs(got - expected) <= tolerated)  # (NaN is wrong)
    if not wrong.any():
        return None
    if np.abs(got + expected).max() <= tolerated:
        return f"{what}: the sign is wrong, everything else is right"
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = got[expected != 0] / expected[expected != 0]
    if factor.size and np.ptp(factor) <= 1e-5 and not got[expected == 0].any():
        return f"{what}: a factor is missing or too much; it is the same everywhere"
    if got.ndim and not wrong.all():
        return f"{what}: {int(wrong.sum())} of {wrong.size} elements are wrong"
    return f"{what}: that is not it"


def several(got: Any, expected: dict[str, Any]) -> str | None:
    """`compare` of each of several results."""
    if not isinstance(got, tuple | list) or len(got) != len(expected):
        return f"return {len(expected)} results: {', '.join(expected)}"
    hints = (compare(g, value, name) for g, (name, value) in zip(got, expected.items(),
                                                                 strict=True))
    return next((hint for hint in hints if hint), None)


def gradients(function: Callable[..., tl.Tensor], arrays: list[np.ndarray],
              g: np.ndarray | float = 1.0) -> list[np.ndarray]:
    """The gradients of Σ function(*arrays) g by central differences, in float64."""
    arrays = [np.array(a, np.float64, order="C") for a in arrays]

    def value() -> float:
        return float((function(*map(tl.Tensor, arrays)).data * g).sum())

    return [numerical_gradient(value, a).reshape(a.shape) for a in arrays]


def hunt(lesson: int) -> Check:
    """The check of a hunt: the op at which the page's numbers part, and the bug."""
    def check(learner: Callable[..., Any]) -> str | None:
        answer = learner()
        if not isinstance(answer, tuple | list) or len(answer) != 2:
            return "return two names: the op's and the bug's"
        if answer[0] != located(lesson):
            return f"{answer[0]!r} is not where the numbers first part, walking back from the loss"
        if answer[1] != HUNTS[lesson]:
            return f"the op is right, but {answer[1]!r} would show in another way"
        return None
    return check


# Lesson 1


def difference_loss(w, v, before, now, target):
    d = w * now + v * before - target
    return d * d


def predict_1(learner):
    dw, dv, *_ = gradients(difference_loss, [1.0, 1.0, 2.0, 1.0, -1.0])
    return several(learner(), {"dL/dw": dw, "dL/dv": dv})


def difference_1(learner):
    for f, x, slope in ((lambda x: x * x, 3.0, 6.0), (np.exp, 1.0, np.e), (np.sin, 2.0, np.cos(2)),
                        (lambda x: 5.0, 2.0, 0.0)):
        got = learner(f, x)
        hint = compare(got, slope, f"the slope at x = {x:g}")
        if hint and abs(got - slope) < 1e-2:
            return "nearly: a step to one side leaves an error of the step's size; go both ways"
        if hint:
            return hint
    return None


def step_1(learner):
    rng = np.random.default_rng(0)
    for _ in range(3):
        w, v, before, now, target, rate = rng.standard_normal(6)
        dw, dv, *_ = gradients(difference_loss, [w, v, before, now, target])
        hint = several(learner(w, v, before, now, target, rate),
                       {"the new w": w - rate * dw, "the new v": v - rate * dv})
        if hint:
            return hint
    return None


# Lesson 2


def chain_loss(w_now, w_before, before, now, target):
    d = (w_now * now).relu() - (w_before * before).relu() - target
    return d * d


def predict_2(learner):
    piece_now, piece_before, *_ = gradients(chain_loss, [3.0, 3.0, 2.0, 1.0, -1.0])
    return several(learner(), {"the piece by now": piece_now, "the piece by before": piece_before,
                               "dL/dw": piece_now + piece_before})


def backward_2(learner):
    for w, before, now, target in ((2.0, 1.0, 3.0, 1.0), (0.7, -2.0, 1.5, 1.0),
                                   (-1.3, 2.0, -0.4, -1.0), (-2.0, 1.0, 3.0, 1.0)):
        pieces = gradients(chain_loss, [w, w, before, now, target])[:2]
        hint = compare(learner(w, before, now, target), pieces[0] + pieces[1],
                       f"dL/dw for w = {w:g}, before = {before:g}, now = {now:g}")
        if hint:
            return hint
    return None


def bug_2(learner):
    tapes = {
        "y = a · b": ([("y", "multiply", ("a", "b"))], {"a": 3.0, "b": 2.0}),
        "y = relu(a) · b": ([("r", "relu", ("a",)), ("y", "multiply", ("r", "b"))],
                            {"a": 2.0, "b": -1.0}),
        "b = a + a; y = b + b": ([("b", "add", ("a", "a")), ("y", "add", ("b", "b"))], {"a": 3.0}),
        "h = relu(w · x); y = h · w": ([("z", "multiply", ("w", "x")), ("h", "relu", ("z",)),
                                        ("y", "multiply", ("h", "w"))], {"w": 2.0, "x": 5.0}),
    }
    apply = {"add": tl.add, "multiply": tl.multiply, "relu": tl.relu}
    for title, (tape, leaves) in tapes.items():
        values = {name: tl.Tensor(np.array(x), requires_grad=True) for name, x in leaves.items()}
        for output, kind, inputs in tape:
            values[output] = apply[kind](*(values[name] for name in inputs))
        values["y"].backward()
        got = learner(tape, {name: t.item() for name, t in values.items()}, "y")
        for name in leaves:
            hint = compare(got.get(name, np.nan), values[name].grad, f"in {title}: dy/d{name}")
            if hint:
                return hint
    return None


# Lesson 3


def predict_3(learner):
    D, target = np.array([[1.0, -1.0], [2.0, 0.0]]), np.array([-1.0, 1.0])

    def loss(w, b):
        d = (w * D).sum(axis=1) + b - target
        return (d * d).mean()

    dw, db = gradients(loss, [np.ones(2), np.zeros(1)])
    return several(learner(), {"dL/dw": dw, "dL/db": db})


def unbroadcast_3(learner):
    rng = np.random.default_rng(0)
    for large, small in (((2, 4), (2, 4)), ((2, 4), (4,)), ((2, 4), (1, 4)), ((2, 4), (2, 1)),
                         ((2, 4), ()), ((3, 2, 4), (2, 1)), ((2, 1), (2, 1))):
        g = rng.standard_normal(large)
        expected, _ = gradients(tl.add, [np.zeros(small), np.zeros(large)], g)
        hint = compare(learner(g, small), expected, f"{small} repeated to {large}")
        if hint:
            return hint
    return None


def centre_3(learner):
    rng = np.random.default_rng(0)
    for shape in ((2, 3), (4, 5)):
        x, g = rng.standard_normal((2, *shape))
        (dx,) = gradients(lambda x: x - x.mean(axis=1, keepdims=True), [x], g)
        got = learner(g)
        hint = compare(got, dx, "dL/dx")
        if hint and np.allclose(got, g):
            return "dL/dx: x stands in two places, and one of them is in the mean"
        if hint:
            return hint
    return None


# Lesson 4


def convolve(x, w, padding=0):
    """One row, one channel, as arrays of one axis."""
    return tl.conv2d(x.reshape(1, 1, -1, 1), w.reshape(1, -1, 1, 1),
                     padding=(0, padding)).reshape(-1)


def predict_4(learner):
    dx, dw = gradients(convolve, [np.array([1.0, 2.0, 3.0]), np.ones(2)], np.array([1.0, 2.0]))
    return several(learner(), {"dL/dw": dw, "dL/dx": dx})


def backward_4(learner):
    rng = np.random.default_rng(0)
    for n, k in ((3, 2), (6, 3), (5, 1), (4, 4)):
        x, w, g = (rng.standard_normal(m) for m in (n, k, n - k + 1))
        dx, dw = gradients(convolve, [x, w], g)
        hint = several(learner(x, w, g), {"dL/dx": dx, "dL/dw": dw})
        if hint:
            return hint
    return None


def padded_4(learner):
    rng = np.random.default_rng(0)
    for n, k, p in ((3, 3, 1), (5, 2, 1), (4, 3, 2), (4, 2, 0)):
        x, w, g = (rng.standard_normal(m) for m in (n, k, n + 2 * p - k + 1))
        dx, dw = gradients(functools.partial(convolve, padding=p), [x, w], g)
        hint = several(learner(x, w, g, p), {"dL/dx": dx, "dL/dw": dw})
        if hint:
            return f"with a padding of {p}, {hint}"
    return None


# Lesson 5

CLIPS = np.array([1.0, 1.0, 5.0, 5.0])


def normalise(z, gamma, beta):
    channels = z.shape[1]
    return tl.batch_norm(z, gamma, beta, np.zeros(channels), np.ones(channels), eps=0.0)


def predict_5(learner):
    g = np.array([[0.0], [0.0], [0.0], [1.0]])
    dz, _, _ = gradients(normalise, [CLIPS[:, None], np.array([2.0]), np.zeros(1)], g)
    return compare(learner(), dz.ravel(), "dL/dz")


def backward_5(learner):
    rng = np.random.default_rng(0)
    z, g = rng.standard_normal((2, 6, 3))
    gamma = np.array([2.0, -1.0, 0.5])
    dz, dgamma, dbeta = gradients(normalise, [z, gamma, np.zeros(3)], g)
    got = learner(z, gamma, g)
    hint = several(got, {"dL/dz": dz, "dL/dγ": dgamma, "dL/dβ": dbeta})
    if hint and hint.startswith("dL/dz") and np.shape(got[0]) == z.shape:
        zhat = (z - z.mean(axis=0)) / z.std(axis=0)
        dz = np.asarray(got[0])
        for name, sums in (("Σ dL/dz", dz.sum(axis=0)), ("Σ dL/dz · ẑ", (dz * zhat).sum(axis=0))):
            if abs(sums).max() > 1e-9:
                return f"dL/dz: {name} of the channels is {sums.round(3)}, and should be 0"
    return hint


def hidden_5(learner):
    answer = learner()
    if not isinstance(answer, tuple | list) or len(answer) != 2 or any(
            np.shape(g) != (4,) for g in answer):
        return "return two cotangents of four numbers each"
    zhat = (CLIPS - 3) / 2
    blind, seeing = (np.asarray(g, np.float64) for g in answer)
    if np.ptp(blind) == 0:
        return "the first: not all four numbers may be equal"
    for g, name, wanted in ((blind, "first", True), (seeing, "second", False)):
        right = bool(abs((g * zhat).mean()) < 1e-9)  # the last term is 0: nothing is lacking
        if right != wanted:
            return (f"the {name}: with it, the wrong backward gives "
                    f"{'the right' if right else 'a wrong'} gradient")
    return None


# Lesson 6


def predict_6(learner):
    def stack(x, passed):
        for _ in range(3):
            x = passed * x - 0.5 * x
        return x

    with_skip, _ = gradients(stack, [np.array(1.0), np.array(1.0)])
    without, _ = gradients(stack, [np.array(1.0), np.array(0.0)])
    return several(learner(), {"with the skip": with_skip, "without": without})


def paths_6(learner):
    for n in (1, 2, 3, 6):
        for w in (0.5, -2.0):
            brackets = np.polynomial.Polynomial([1.0, w]) ** n  # (1 + w · branch)ⁿ
            hint = compare(learner(n, w), brackets.coef, f"{n} blocks of slope {w:g}")
            if hint:
                return hint.replace(", but a gradient has that of what it belongs to,",
                                    ", expected")
    return None


def backward_6(learner):
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((2, 4, 3))
    W = rng.standard_normal((3, 3))
    dx, dW = gradients(lambda x, W: x + (x @ W).relu(), [x, W], g)
    got = learner(x, W, g)
    hint = several(got, {"dL/dx": dx, "dL/dW": dW})
    if hint and hint.startswith("dL/dx") and np.shape(got[0]) == dx.shape:
        if np.allclose(got[0], dx - g):
            return "dL/dx: one of the two paths is missing"
        if np.allclose(got[0], g):
            return "dL/dx: only what comes by the skip"
    return hint


# Lesson 7


def recurrent(x, W, W_s):
    """x W + x + what x W_s of the frame before is, of x (T, C)."""
    return tl.temporal_skip(x @ W + x, x @ W_s, frames=len(x))


def predict_7(learner):
    def last(x, W_s):
        for _ in range(4):
            x = recurrent(x, np.zeros((1, 1)), W_s)
        return x[-1:]

    conv, identity = (gradients(last, [np.ones((5, 1)), np.full((1, 1), w)])[0].ravel()
                      for w in (0.5, 1.0))
    return several(learner(), {"with 0.5": conv, "with the identity": identity})


def temporal_weight_7(learner):
    rng = np.random.default_rng(0)
    for frames in (1, 2, 5):
        x, e = rng.standard_normal((frames, 3)), rng.standard_normal((frames, 3))
        W, W_s = np.zeros((3, 3)), rng.standard_normal((3, 3))
        _, _, expected = gradients(recurrent, [x, W, W_s], e)
        got = learner(x, e)
        hint = compare(got, expected, f"dL/dW_s of {frames} frame{'s' * (frames > 1)}")
        if hint and np.shape(got) == (3, 3):
            for wrong in (x.T @ e, x[1:].T @ e[1:]):
                if np.allclose(got, wrong):
                    return "dL/dW_s: that pairs e_t with the same frame's x, not with what W_s saw"
        if hint:
            return hint
    return None


def input_7(learner):
    rng = np.random.default_rng(0)
    for frames in (1, 2, 5):
        x, e = rng.standard_normal((2, frames, 3))
        W, W_s = rng.standard_normal((2, 3, 3))
        dx, _, _ = gradients(recurrent, [x, W, W_s], e)
        hint = compare(learner(W, W_s, e), dx, f"dL/dx of {frames} frame{'s' * (frames > 1)}")
        if hint:
            return hint
    return None


CHECKS: dict[int, dict[str, Check]] = {
    1: {"predict": predict_1, "difference": difference_1, "step": step_1},
    2: {"predict": predict_2, "backward": backward_2, "walk": bug_2},
    3: {"predict": predict_3, "unbroadcast": unbroadcast_3, "centre_backward": centre_3,
        "hunt": hunt(3)},
    4: {"predict": predict_4, "backward": backward_4, "padded_backward": padded_4,
        "hunt": hunt(4)},
    5: {"predict": predict_5, "backward": backward_5, "cotangents": hidden_5, "hunt": hunt(5)},
    6: {"predict": predict_6, "paths": paths_6, "backward": backward_6, "hunt": hunt(6)},
    7: {"predict": predict_7, "temporal_weight_gradient": temporal_weight_7,
        "input_gradient": input_7, "hunt": hunt(7)},
}
