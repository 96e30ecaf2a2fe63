"""Differences beside gradients: right backwards pass, wrong ones are found where they are."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorlite as tl
from tensorlite import Function, Node, Observer, Tensor, trace
from tensorlite.ops.elementwise import Add, Multiply
from tensorlite.ops.normalisation import BatchNorm
from tensorlite.trace import check
from tensorlite.trace.tape import Check

from ..campaign import examples
from ..op_cases import CASES, Call, OpCase

every_op = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
DTYPES = (np.float32, np.float64)
both_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


class Look(Observer):
    """Checks each op that the walk passes and, with `program`, the gradient of each tensor."""

    def __init__(self, program: bool) -> None:
        self.program = program
        self.ops: list[tuple[type[Function], list[Check | None]]] = []
        self.tensors: dict[Tensor, Check] = {}  # in the order in which the walk completes them
        self._outputs: dict[Node, Tensor] = {}
        self._found: dict[Tensor, check.Derivatives] = {}

    def forward(self, node: Node, output: Tensor) -> None:
        self._outputs[node] = output

    def start(self, root: Tensor, grad: np.ndarray, nodes: list[Node]) -> None:
        if self.program:
            program = check.Program(root, grad, nodes)
            self._found = {tensor: program.derivatives(tensor) for tensor in program.tensors()}

    def backward(self, node: Node, grad: np.ndarray, outgoing: list) -> None:
        output = self._outputs[node]
        self.ops.append((node.function, check.check_op(node, grad, outgoing, output.data)))
        self._compare(output, grad)

    def deposit(self, leaf: Tensor, before: np.ndarray | None) -> None:
        self._compare(leaf, leaf.grad)

    def _compare(self, tensor: Tensor, grad: np.ndarray) -> None:
        if tensor in self._found:
            self.tensors[tensor] = check.compare(grad, self._found[tensor])

    def checks(self, function: type[Function] | None = None) -> list[Check]:
        return [c for f, found in self.ops if function in (None, f) for c in found if c]

    def wrong(self) -> set[type[Function]]:
        """The ops whose gradients are not right."""
        return {function for function, found in self.ops for c in found if c and not c.right}


def look(run: Callable[..., Tensor], arrays: list[np.ndarray], dtype: type = np.float64,
         program: bool = False) -> Look:
    """Run a program forwards, and backwards with a random cotangent, and look on."""
    observer = Look(program)
    tensors = [Tensor(a.astype(dtype), requires_grad=True) for a in arrays]
    with tl.observe(observer), tl.unfused():
        output = run(*tensors)
        cotangent = np.random.default_rng(7).standard_normal(output.shape)
        output.backward(cotangent.astype(output.dtype))
    return observer


def claim(forward: Callable, backward: Callable) -> type[Function]:
    """An op: ``backward(grad, *inputs)`` is claimed to be the gradient of ``forward(*inputs)``."""

    class Claim(Function):
        @staticmethod
        def forward(ctx: Node, *arrays):
            ctx.save(*arrays)
            return forward(*arrays)

        @staticmethod
        def backward(ctx: Node, grad):
            return backward(grad, *ctx.saved)

    return Claim


# Right and wrong backwards of every op


@every_op
@both_dtypes
@examples(5)
@given(data=st.data())
def test_right_backwards_pass(case: OpCase, dtype: type, data: st.DataObject):
    call = data.draw(case.calls)
    checks = look(call.run, call.inputs, dtype).checks(case.function)
    assert len(checks) >= len(call.inputs)
    for found in checks:
        assert found.right, found
        assert all(found.smooth)
        assert found.along is not None or not found.where
    for found, array in zip(checks, call.inputs, strict=False):
        assert found.where == list(range(array.size)) or not found.every


def one_element_off(grads: list, slot: int) -> None:
    largest = np.abs(grads[slot]).argmax()
    grads[slot].flat[largest] *= 1.02


def turned(grads: list, slot: int) -> None:
    grads[slot] = grads[slot].reshape(-1)[::-1].reshape(grads[slot].shape)


def set_to(factor: float) -> Callable[[list, int], None]:
    def change(grads: list, slot: int) -> None:
        grads[slot] = grads[slot] * grads[slot].dtype.type(factor)

    return change


WRONG: dict[str, Callable[[list, int], None]] = {
    "by 1 %": set_to(1.01), "in sign": set_to(-1), "zero": set_to(0), "nan": set_to(np.nan),
    "in one element": one_element_off, "elements exchanged": turned}


def broken(right: Callable, change: Callable[[list, int], None], slot: int) -> Callable:
    def backward(ctx: Node, grad: np.ndarray) -> tuple:
        sent = right(ctx, grad)
        sent = list(sent) if isinstance(sent, tuple) else [sent]
        sent = [None if piece is None else np.array(piece) for piece in sent]
        if sent[slot] is not None:
            change(sent, slot)
        return tuple(sent)

    return backward


def sent_by(call: Call, dtype: type, function: type[Function]) -> list:
    """What the last use of `function` in a call sends back."""
    sent: list = []

    class Last(Observer):
        def backward(self, node: Node, grad: np.ndarray, outgoing: list) -> None:
            if node.function is function:
                sent[:] = outgoing

    tensors = [Tensor(a.astype(dtype), requires_grad=True) for a in call.inputs]
    with tl.observe(Last()):
        output = call.run(*tensors)
        output.backward(np.random.default_rng(7).standard_normal(output.shape).astype(dtype))
    return sent


def is_wrong(sent: list, slot: int, how: str) -> bool:
    """Whether the change is one: an array turned round may be the same. What is off by less than
    half a percent of the largest derivative, and derivatives near 0, are not asked for."""
    changed = [None if piece is None else piece.copy() for piece in sent]
    WRONG[how](changed, slot)
    largest = np.abs(sent[slot]).max()
    return largest > 1e-2 and not np.abs(changed[slot] - sent[slot]).max() <= 5e-3 * largest


@every_op
@both_dtypes
@examples(8)
@given(data=st.data())
def test_wrong_backwards_are_found_at_the_op(case: OpCase, dtype: type, data: st.DataObject):
    call = data.draw(case.calls)
    sent = sent_by(call, dtype, case.function)
    choices = [(slot, how) for slot, right in enumerate(sent) for how in WRONG
               if right is not None and right.size and is_wrong(sent, slot, how)]
    if not choices:  # nothing that could be wrong: an empty array, a single class
        return
    slot, how = data.draw(st.sampled_from(choices))

    def run(*tensors: Tensor) -> Tensor:
        y = call.run(*(t.reshape(t.shape) for t in tensors))
        return (y * draw(*y.shape).astype(dtype)).sum()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(case.function, "backward",
                      staticmethod(broken(case.function.backward, WRONG[how], slot)))
        assert look(run, call.inputs, dtype).wrong() == {case.function}
    assert look(run, call.inputs, dtype).wrong() == set()


@both_dtypes
def test_a_dropped_term_is_found_at_the_op(dtype: type):
    def normalise(x: np.ndarray) -> np.ndarray:
        return (x - x.mean(0)) / x.std(0)

    def backward(grad: np.ndarray, x: np.ndarray) -> np.ndarray:
        return (grad - grad.mean(0)) / x.std(0)  # - y (grad y).mean(0)

    op = claim(normalise, backward)
    found = look(lambda x: tl.exp(op.apply(x * 2.0)), [draw(6, 3)], dtype)
    assert found.wrong() == {op}


def test_a_gradient_that_backward_does_not_send_is_found():
    op = claim(lambda a, b: a * b, lambda grad, a, b: (grad * b, None))
    found = look(op.apply, [draw(3), draw(3, seed=1)])
    assert [c.right for c in found.checks()] == [True, False]
    unused = claim(lambda a, b: 2 * a, lambda grad, a, b: (2 * grad, None))
    assert look(unused.apply, [draw(3), draw(3, seed=1)]).wrong() == set()


def test_the_numbers_are_the_derivatives():
    x = draw(3, 4)
    found = look(tl.tanh, [x]).checks()[0]
    expected = np.random.default_rng(7).standard_normal((3, 4)) * (1 - np.tanh(x) ** 2)
    np.testing.assert_allclose(found.numeric, expected.reshape(-1), rtol=1e-8)
    np.testing.assert_allclose(found.analytic, expected.reshape(-1), rtol=1e-12)
    assert found.where == list(range(12)) and found.every and found.right
    assert found.along["numeric"] == pytest.approx(found.along["analytic"], rel=1e-7)


def test_each_use_of_an_input_is_checked_by_itself():
    x = draw(4)
    found = look(lambda x: x * x, [x]).checks(Multiply)
    expected = np.random.default_rng(7).standard_normal(4) * x
    for slot in found:
        np.testing.assert_allclose(slot.numeric, expected, rtol=1e-7)


# Kinks


@both_dtypes
@pytest.mark.parametrize("at", [0.0, 3e-7, -4e-6])
def test_a_kink_within_the_steps_is_not_held_against_anyone(dtype: type, at: float):
    x = draw(50)
    x[[3, 20]] = at
    found = look(tl.relu, [x], dtype).checks()[0]
    assert found.right and found.along is not None
    assert [i for i in range(50) if not found.smooth[i]] == ([3, 20] if at == 0 else [])

    doubled = claim(lambda x: np.maximum(x, 0), lambda grad, x: 2 * grad * (x > 0))
    assert not look(doubled.apply, [x], dtype).checks()[0].right


def test_directions_leave_out_what_has_a_kink_in_every_direction():
    x = np.maximum(draw(2, 12, 12, 8), 0)  # after a relu many windows hold nothing but zeros
    x[0, :6] = 0
    found = look(lambda x: tl.max_pool2d(x, 3, 2, 1), [x], np.float32).checks()[0]
    assert found.right and found.along is not None and found.along["numeric"] != 0
    assert not found.every


# Ops with state, and ops that cannot be had again


def test_looking_changes_nothing():
    mean, var, rng = np.zeros(3, np.float32), np.ones(3, np.float32), np.random.default_rng(5)
    other = np.random.default_rng(5)
    expected_mean, expected_var = mean.copy(), var.copy()

    def run(x: Tensor, mean: np.ndarray, var: np.ndarray, rng: np.random.Generator) -> Tensor:
        ones = Tensor(np.ones(3, np.float32))
        y = tl.batch_norm(x, ones, ones, mean, var)
        return tl.dropout(y, 0.5, rng=rng)

    x = draw(8, 3).astype(np.float32)
    run(Tensor(x), expected_mean, expected_var, other)
    found = look(lambda x: run(x, mean, var, rng), [x], np.float32, program=True)
    np.testing.assert_array_equal(mean, expected_mean)
    np.testing.assert_array_equal(var, expected_var)
    assert rng.random() == other.random()
    assert found.checks() and not found.wrong()
    assert found.tensors and all(c.right for c in found.tensors.values())


def test_an_op_that_cannot_be_had_again_is_not_checked():
    draws = np.random.default_rng(0)

    class Noisy(Function):
        @staticmethod
        def forward(ctx: Node, x):
            ctx.factor = draws.random()
            return x * ctx.factor

        @staticmethod
        def backward(ctx: Node, grad):
            return grad * ctx.factor

    single = claim(lambda x: x.astype(np.float32), lambda grad, x: grad)

    def picky(x: np.ndarray) -> np.ndarray:
        if x.dtype != np.float32:
            raise TypeError("float32 only")
        return 2 * x

    for op in (Noisy, single, claim(picky, lambda grad, x: 2 * grad)):
        found = look(lambda x, op=op: tl.tanh(op.apply(tl.exp(x))), [draw(5)], np.float32,
                     program=True)
        assert [c for f, c in found.ops if f is op] == [[None]]
        assert len(found.checks()) == 2 and not found.wrong()
        assert len(found.tensors) == 2  # what comes after it
        assert all(c.right for c in found.tensors.values())


def test_observers_and_ranks_do_not_see_the_replays():
    class Inner(Function):
        @staticmethod
        def forward(ctx: Node, x):
            return tl.exp(Tensor(x)).data  # an op within an op

        @staticmethod
        def backward(ctx: Node, grad):
            return grad

    told = []

    class Count(Observer):
        def forward(self, node: Node, output: Tensor) -> None:
            told.append(node.name)

    with tl.observe(Count()):
        look(Inner.apply, [draw(3)])
    assert told == ["exp", "inner"]


# Large inputs


def test_a_sample_is_the_same_each_time_and_the_direction_sees_the_rest():
    x, w = draw(2, 16, 16, 8), draw(3, 3, 8, 8, seed=1)

    def one_channel_off(ctx: Node, grad: np.ndarray) -> tuple:
        dx, dw = right(ctx, grad)[:2]
        dx[..., 5] *= 1.01
        return dx, dw, None

    def run(x: Tensor, w: Tensor) -> Tensor:
        return tl.conv2d(x, w, padding=1)

    first, second = (look(run, [x, w], np.float32).checks() for _ in range(2))
    assert first == second
    assert all(c.right and not c.every and 2 <= len(c.where) <= check.SAMPLE for c in first)
    function = tl.ops.convolution.Conv2d
    right = function.backward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(function, "backward", staticmethod(one_channel_off))
        found = look(run, [x, w], np.float32).checks()
    assert [c.right for c in found] == [False, True]


def test_costs_are_bounded_by_a_count(monkeypatch: pytest.MonkeyPatch):
    calls = []

    def forward(x: np.ndarray) -> np.ndarray:
        calls.append(1)
        return np.tanh(x)

    op = claim(forward, lambda grad, x: grad * (1 - np.tanh(x) ** 2))
    counts = []
    for work in (1, 1 << 20, 1 << 24):
        monkeypatch.setattr(check, "OP_WORK", work)
        calls.clear()
        found = look(op.apply, [draw(40)], np.float32)
        assert not found.wrong()
        counts.append((len(found.checks()[0].where), len(calls)))
    assert counts[0][0] == 2 and counts[0][1] <= 2 + 3 * 8
    assert counts[0] < counts[1] < counts[2] and counts[2][0] == 40

    monkeypatch.setattr(check, "PROGRAM_WORK", 30 * check.CALL)
    chain = look(lambda x: tl.exp(tl.tanh(tl.tanh(tl.tanh(tl.tanh(tl.tanh(x)))))), [draw(9)],
                 program=True)
    assert 0 < len(chain.tensors) < 7


# Rounding


@both_dtypes
def test_saturated_functions_pass(dtype: type):
    logits = np.array([[25.0, 0, -3], [0, 30, 1]])
    found = look(lambda x: tl.cross_entropy(x, np.array([0, 1])), [logits], dtype, program=True)
    assert not found.wrong() and all(c.right for c in found.tensors.values())
    for op in (tl.tanh, tl.sigmoid, tl.softmax):
        found = look(op, [np.array([[9.0, -12, 10.5]])], dtype, program=True)
        assert not found.wrong() and all(c.right for c in found.tensors.values())


@both_dtypes
def test_gradients_that_cancel_pass(dtype: type):
    def run(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        ones = Tensor(np.ones(4, dtype))
        y = tl.batch_norm(tl.conv2d(x, w, b), ones, ones, np.zeros(4, dtype), np.ones(4, dtype))
        return tl.cross_entropy(y.mean((1, 2)) * 3.0, np.arange(8) % 4)  # b cannot matter

    arrays = [draw(8, 6, 6, 3), draw(1, 1, 3, 4, seed=1), draw(4, seed=2)]
    found = look(run, arrays, dtype, program=True)
    assert not found.wrong() and all(c.right for c in found.tensors.values())
    assert len(found.checks(BatchNorm)) == 1


# Whole programs


def network(x: Tensor, w: Tensor, v: Tensor, b: Tensor) -> Tensor:
    """Three frames through one recurrent cell, its weights used at each."""
    h = tl.tanh(x[:, 0] @ w)
    for t in (1, 2):
        h = h + tl.relu(x[:, t] @ w + h @ v + b)
    return tl.cross_entropy(h, np.arange(4) % 5)


ARRAYS = [draw(4, 3, 6), draw(6, 5, seed=1), draw(5, 5, seed=2), draw(5, seed=3)]


@both_dtypes
def test_every_gradient_of_a_program_is_compared(dtype: type):
    found = look(network, ARRAYS, dtype, program=True)
    assert len(found.tensors) == len(found.ops) + 4
    for tensor, c in found.tensors.items():
        assert c.right and c.every and all(c.smooth), tensor
        assert len(c.where) == tensor.size and c.along is not None


def test_a_program_is_differentiated_where_the_recording_was():
    """A relu whose input is 1e-9 in one precision and -1e-9 in the other has two derivatives."""
    x = np.array([1 / 3, 0.7, 1 / 3 + 1e-9])  # in float32 the first and the last are equal

    def run(x: Tensor) -> Tensor:
        return tl.relu(x * 3.0 - 1.0).sum()

    found = look(run, [x], np.float32, program=True)
    assert all(c.right for c in found.tensors.values())


def test_a_sum_that_is_not_formed_shows_at_the_tensor_where_paths_meet():
    with trace.inject("no-accumulation"):
        found = look(network, ARRAYS, program=True)
    assert found.wrong() == set()  # each op is right
    verdicts = {tensor: c.right for tensor, c in found.tensors.items()}
    first = next(tensor for tensor, right in verdicts.items() if not right)
    assert first.shape == (4, 5) and first.node is not None and first.node.function is Add
    leaves = [right for tensor, right in verdicts.items() if tensor.node is None]
    assert len(leaves) == 4 and not all(leaves)


def test_a_wrong_op_shows_in_all_that_its_gradient_passes():
    wrong = claim(np.exp, lambda grad, x: grad * np.exp(x) * 1.01)
    found = look(lambda x: tl.tanh(wrong.apply(tl.sigmoid(x))), [draw(5)], program=True)
    assert [c.right for c in found.tensors.values()] == [True, True, False, False]
    assert found.wrong() == {wrong}


def test_a_walk_from_a_leaf():
    leaf = Tensor(draw(3), requires_grad=True)
    program = check.Program(leaf, np.array([1.0, 2.0, 3.0]), [])
    assert program.tensors() == [leaf]
    found = check.compare(np.array([1.0, 2.0, 3.0]), program.derivatives(leaf))
    np.testing.assert_allclose(found.numeric, [1, 2, 3], rtol=1e-9)
    assert found.right
    assert not check.compare(np.array([1.0, 2.0, 3.1]), program.derivatives(leaf)).right


def test_checks_are_json_whatever_the_numbers():
    op = claim(lambda x: 1e308 * np.exp(x), lambda grad, x: 1e308 * grad * np.exp(x))
    with np.errstate(over="ignore"):
        found = look(lambda x: op.apply(x.reshape(4)), [np.array([1.0, 0.0, 2.0, -1.0])],
                     program=True)
    assert not any(any(c.smooth) for c in found.checks())
    nan = claim(np.exp, lambda grad, x: grad * np.nan)
    wrong = look(nan.apply, [draw(4)])
    assert not wrong.checks()[0].right and wrong.checks()[0].analytic == [None] * 4
    for c in (*found.checks(), *found.tensors.values(), *wrong.checks()):
        json.dumps(vars(c), allow_nan=False)
