"""Programs of all kinds, recorded with differences: each comes to the same bits as without, none is
said to be wrong, and each tape can be written."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import Function, Tensor, nn, optim, trace
from tensorlite.trace.check import Program
from tensorlite.trace.tape import Tape

PROGRAMS: list[Callable[[], Any]] = []


def program(run: Callable[[], Any]) -> Callable[[], Any]:
    PROGRAMS.append(run)
    return run


def draw(*shape: int, seed: int = 0, dtype: type = np.float64) -> Tensor:
    values = np.random.default_rng(seed).standard_normal(shape)
    return Tensor(values.astype(dtype), requires_grad=True)


def bits(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [bits(item) for item in value]
    return (str(value.dtype), value.shape, value.tobytes()) if isinstance(value, np.ndarray) else (
        value)


def faults(tape: Tape) -> list[str]:
    """What the tape says is wrong."""
    found = []
    for event in tape.events:
        op = None if event.op is None else tape.ops[event.op].op
        checks = [piece.check for piece in event.pieces] + [u.check for u in event.unsent]
        found += [f"{op}: {c}" for c in checks if c is not None and not c.right]
        found += [f"{op}: sum" for piece in event.pieces if not piece.sum_right]
        found += [f"{op}: {event.numbers}"] if "but" in (event.numbers or "") else []
    return found + [f"{t.name}: {t.numeric}" for t in tape.tensors
                    if t.numeric is not None and not t.numeric.right]


@program
def gradients_added_to_a_much_larger_one():
    w, x = draw(4, 2, dtype=np.float32), draw(5, 4, dtype=np.float32)
    w.grad = np.full((4, 2), 1e6, np.float32)
    (x @ w).mean().backward()
    return w.grad


@program
def an_update_between_two_backwards():
    w, x = draw(4, dtype=np.float32), draw(4, seed=1, dtype=np.float32)
    first, second = (w * x * w).sum(), (w * w * w).sum()
    first.backward()
    w.data = w.data - np.float32(1e-3) * w.grad
    second.backward()
    return w.grad, x.grad


@program
def optimiser_steps():
    model = nn.Sequential(nn.Linear(4, 8, rng=0), nn.ReLU(), nn.Linear(8, 3, rng=1))
    optimiser = optim.Adam(list(model.parameters()), lr=0.1)
    for i in range(3):
        model.zero_grad()
        x = np.random.default_rng(i).standard_normal((6, 4)).astype(np.float32)
        tl.cross_entropy(model(Tensor(x)), np.arange(6) % 3).backward()
        optimiser.step()
    return [p.data for p in model.parameters()]


@program
def hooks_that_change_gradients():
    x = draw(3)
    h = x * 2.0
    h.register_hook(lambda grad: grad * 0.5)
    x.register_hook(lambda grad: np.clip(grad, -0.1, 0.1))
    (h.tanh() * x).sum().backward()
    return x.grad


@program
def a_hook_that_writes_to_its_gradient():
    x = draw(3)
    h = x * 2.0

    def halve(grad: np.ndarray) -> None:
        grad *= 0.5

    h.register_hook(halve)
    (h * h).sum().backward()
    return x.grad


@program
def hooks_that_apply_ops_and_walk_back():
    x, z = draw(3), draw(3, seed=1)
    h = x * 2.0

    def hook(grad: np.ndarray) -> None:
        (z * z * Tensor(grad)).sum().backward()

    h.register_hook(hook)
    x.register_hook(hook)
    ((h * h).sum() + (h * x).sum()).backward()
    return x.grad, z.grad


class Checkpoint(Function):
    """Runs again in backward what it ran in forward."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save(x, w)
        return np.tanh(x @ w)

    @staticmethod
    def backward(ctx, grad):
        x, w = (Tensor(array, requires_grad=True) for array in ctx.saved)
        (x @ w).tanh().backward(grad)
        return x.grad, w.grad


@program
def checkpoints():
    x, w = draw(2, 3), draw(3, 3, seed=1)
    h = Checkpoint.apply(Checkpoint.apply(x, w), w)
    (h * h).sum().backward()
    return x.grad, w.grad


@program
def a_walk_between_the_steps_of_another():
    x, z = draw(3), draw(3, seed=1)
    for _ in tl.walk((x * x + x).sum()):
        (z * z).sum().backward()
    return x.grad, z.grad


@program
def walks_that_do_not_end():
    x = draw(3)
    for _ in tl.walk((x * x).sum()):
        break
    h = x * x
    h.register_hook(lambda grad: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        (h * x).sum().backward()
    (x * 3.0).sum().backward()
    return x.grad


class Noise(Function):
    """Draws from generators that belong to everyone."""

    @staticmethod
    def forward(ctx, x):
        return x + np.random.standard_normal(x.shape) * random.random()

    @staticmethod
    def backward(ctx, grad):
        return grad


@program
def drawing_at_random():
    np.random.seed(0)
    random.seed(0)
    x = draw(3)
    Noise.apply(Noise.apply(x)).sum().backward()
    return x.grad, np.random.standard_normal(3), random.random()


class Probabilities(Function):
    """Takes nothing else."""

    @staticmethod
    def forward(ctx, p):
        if abs(p.sum() - 1) > 1e-9:
            raise ValueError("p: expected probabilities")
        ctx.save(p)
        return (p * p).sum()

    @staticmethod
    def backward(ctx, grad):
        return 2 * ctx.saved[0] * grad


@program
def an_op_that_refuses_what_is_close_by():
    p = Tensor(np.array([0.25, 0.75]), requires_grad=True)
    (Probabilities.apply(p) * 2.0).backward()
    return p.grad


class Once(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.kept = [x]
        return np.maximum(x, 0)

    @staticmethod
    def backward(ctx, grad):
        return grad * (ctx.kept.pop() > 0)


@program
def a_backward_that_runs_once():
    x = Tensor(np.array([0.0, 1.0, -1.0]), requires_grad=True)
    Once.apply(x).sum().backward()
    return x.grad


class Sum(Function):
    """Of what is given, times `scale`; `names` is its own affair."""

    @staticmethod
    def forward(ctx, a, b, c, scale=1.0, names=None):
        ctx.scale = scale
        return (a + (0 if b is None else b) + (0 if c is None else c)) * scale

    @staticmethod
    def backward(ctx, grad):
        return tuple(None if t is None else grad * ctx.scale for t in ctx.inputs)


@program
def inputs_left_out_and_odd_options():
    a, b = draw(3), draw(3, seed=1)
    y = Sum.apply(a, None, b, scale=np.float32(2), names={("a", 1): {2}})
    (y + Sum.apply(a, None, None) + Sum.apply(b, a, None)).sum().backward()
    return a.grad, b.grad


@program
def a_root_close_to_zero():
    x = Tensor(np.array([1e-30, 1e-12, 1e-3]), requires_grad=True)
    (x ** 0.5).sum().backward()
    return x.grad


@program
def float16_that_overflows():
    with np.errstate(all="ignore"):
        x = Tensor(np.array([1e2, 3e2, -9e2, 1.0], np.float16), requires_grad=True)
        (x * x * x).sum().backward()
    return x.grad


@program
def very_large_and_very_small_numbers():
    with np.errstate(over="raise", under="raise", invalid="raise"):
        x = Tensor(np.full((40, 40), 1e300), requires_grad=True)
        y = Tensor(np.full((1024, 4), 1e-25, np.float32), requires_grad=True)
        trace.frames(x, 0)
        (x / 2.0).sum().backward()
        (y * 2.0).sum().backward()
    with np.errstate(all="ignore"):
        z = Tensor(np.full((1024, 4), 3e38, np.float32), requires_grad=True)
        trace.frames(z)
        (z * 1e-38).sum().backward()
    return x.grad, y.grad, z.grad


@program
def not_a_number():
    with np.errstate(all="ignore"):
        x = Tensor(np.array([np.nan, np.inf, -np.inf, 0.0, 1.0]), requires_grad=True)
        (x * x + x.exp() - x).sum().backward()
    return x.grad


@program
def empty_and_single():
    x, y, z = draw(0, 3), draw(2, 0, 4), Tensor(np.float64(2.0), requires_grad=True)
    trace.frames(y)
    ((x * 2.0).sum() + (y * 3.0).sum(axis=1).sum() + z * z).backward()
    return x.grad, y.grad, z.grad


@program
def mixed_precision():
    a, b, c = draw(3, dtype=np.float16), draw(3, seed=1, dtype=np.float32), draw(3, seed=2)
    (a.exp() * b + c).sum().backward()
    return a.grad, b.grad, c.grad


@program
def a_loop_over_frames():
    x = trace.frames(draw(2, 4, 3, dtype=np.float32))
    w, u = draw(3, 4, seed=1, dtype=np.float32), draw(4, 4, seed=2, dtype=np.float32)
    h = Tensor(np.zeros((2, 4), np.float32))
    for t in range(4):
        h = (x[:, t] @ w + h @ u).tanh()
    (h * h).mean().backward()
    return x.grad, w.grad, u.grad


@program
def recurrent_layers():
    gru, lstm = nn.GRU(3, 4, rng=0), nn.LSTM(4, 2, rng=0)
    x = trace.frames(draw(2, 3, 3, dtype=np.float32))
    out = lstm(gru(x))
    (out * out).mean().backward()
    return [x.grad, *(p.grad for p in (*gru.parameters(), *lstm.parameters()))]


@pytest.mark.parametrize("run", PROGRAMS, ids=lambda run: run.__name__)
def test_a_recording_changes_nothing_and_raises_no_false_alarm(run, tmp_path):
    with tl.unfused():
        plain = run()
    with trace.record(check=True, ledger=True) as tape:
        recorded = run()
    assert bits(plain) == bits(recorded)
    assert faults(tape) == []
    tape.save_json(tmp_path / "tape.json")
    written = json.loads((tmp_path / "tape.json").read_text())
    assert len(written["events"]) == len(tape.events) > 0
    for event in tape.events:
        assert not event.pieces or event.kind == "backward"


def test_steps_of_a_walk_within_another_stay_apart() -> None:
    with trace.record() as tape:
        hooks_that_apply_ops_and_walk_back()
    for event in (event for event in tape.events if event.kind == "backward"):
        inputs = tape.ops[event.op].inputs
        assert event.pieces and all(inputs[p.slot] == p.tensor for p in event.pieces)
    into_x = [p for event in tape.events for p in event.pieces
              if tape.tensors[p.tensor].name == "x" and p.deposited]
    assert len(into_x) == 1


def test_a_walk_that_began_before_the_recording_is_left_out() -> None:
    x = draw(3)
    walk = tl.walk((x * x + x).sum())
    next(walk)
    with trace.record() as tape:
        for _ in walk:
            pass
        (x * 2.0).sum().backward()
    assert [event.kind for event in tape.events] == ["forward"] * 2 + ["start"] + ["backward"] * 2


def test_a_wrong_backward_after_a_hook_that_changes_nothing_is_found() -> None:
    class Wrong(Function):
        @staticmethod
        def forward(ctx, x):
            return x * 3.0

        @staticmethod
        def backward(ctx, grad):
            return grad * 2.0

    with trace.record(check=True) as tape:
        x = draw(3)
        y = Wrong.apply(x)
        y.retain_grad()
        y.sum().backward()
    assert len(faults(tape)) == 2  # at the op, and so at x


def test_a_hook_ends_the_comparison_only_of_what_lies_before_it() -> None:
    with trace.record(check=True) as tape:
        x, w = draw(3), draw(3, seed=1)
        h = x * 2.0
        h.register_hook(lambda grad: grad * 0.5)
        (h * w).sum().backward()
    numeric = {t.name: t.numeric for t in tape.tensors}
    assert numeric["x"] is None and numeric["h"].right and numeric["w"].right
    assert any("A hook changed the gradient of h" in note for note in tape.notes)


def test_the_derivatives_of_a_stale_op_are_not_had() -> None:
    x = draw(3)
    y = (x * x).sum()
    assert y.node is not None
    nodes = [y.node, y.node.inputs[0].node]
    assert x in Program(y, np.ones(()), nodes).tensors()
    assert x not in Program(y, np.ones(()), nodes, {nodes[1]}).tensors()


def test_a_function_that_is_given_a_model_is_not_part_of_it() -> None:
    model = nn.Linear(3, 2, rng=0)

    def train(model: nn.Linear, x: Tensor) -> None:
        (model(x) * 2.0).sum().backward()

    with trace.record() as tape:
        train(model, Tensor(np.ones((2, 3), np.float32)))
    assert [op.module for op in tape.ops] == ["", None, None]
    assert {"weight", "bias"} <= {t.name for t in tape.tensors}
