"""Formulas: every op has its own, those that can be computed come to what the engine computes, and
the numbers put in are those of the run."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorlite as tl
from tensorlite import Tensor
from tensorlite.ops.convolution import Conv2d
from tensorlite.ops.elementwise import Multiply
from tensorlite.trace import formulas
from tensorlite.trace.expressions import evaluate, expression, kept, summed

from ..op_cases import CASES, OpCase

every_op = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


class Seen(tl.Observer):
    """Keeps the nodes of a program, with what their forward and backward gave."""

    def __init__(self) -> None:
        self.steps: list[tuple[tl.Node, Tensor]] = []

    def forward(self, node, output) -> None:
        self.steps.append((node, output))


def run(function, *arrays) -> tuple[tl.Node, Tensor]:
    """The last op that `function` applies to tensors of `arrays` which require gradients."""
    with tl.observe(Seen()) as seen:
        function(*(Tensor(np.asarray(a), requires_grad=True) for a in arrays))
    return seen.steps[-1]


def all_functions(base: type = tl.Function) -> set[type]:
    return {f for sub in base.__subclasses__() for f in {sub, *all_functions(sub)}
            if f.__module__.startswith("tensorlite.") and "backward" in f.__dict__}


def test_every_function_of_the_engine_has_its_formulas():
    assert formulas.known() == all_functions()


@every_op
@given(data=st.data())
def test_each_wanted_gradient_has_a_line(case: OpCase, data: st.DataObject):
    call = data.draw(case.calls)
    with tl.observe(Seen()) as seen:
        call.run(*(Tensor(a, requires_grad=True) for a in call.inputs))
    for node, output in seen.steps:
        forward, backward = formulas.formulas(node, output)
        assert re.match(r"(y|out)(\[.*?\])? (\(.*?\) )?= ", forward)
        assert "None" not in forward or node.name == "index"  # where it is a new axis
        names = [name for name, need in zip(formulas.slots(node), node.needs, strict=True) if need]
        greek = {"gamma": "γ", "beta": "β"}
        started = [re.match(r"∂(\w+)", line)[1] for line in backward.splitlines()
                   if line.startswith("∂")]
        assert started == [greek.get(name, name) for name in names]


@every_op
@given(data=st.data())
def test_expressions_come_to_what_the_engine_computes(case: OpCase, data: st.DataObject):
    call = data.draw(case.calls)
    node, output = run(call.run, *call.inputs)
    written = expression(node)
    if written is None:
        return
    values = {name: t.data for name, t in zip(formulas.slots(node), node.inputs, strict=True)
              if t is not None} | kept(node)
    np.testing.assert_allclose(evaluate(written.forward, values), output.data, rtol=1e-11,
                               atol=1e-12)
    grad = np.random.default_rng(0).standard_normal(output.shape)
    for text, tensor, sent in zip(written.backward, node.inputs, node.backward(grad), strict=False):
        if tensor is not None and sent is not None:
            value = summed(evaluate(text, values | {"g": grad}), tensor.shape)
            good = np.isfinite(value)  # what is said of 0^(-1) and log 0 in words
            np.testing.assert_allclose(value[good], sent[good], rtol=1e-10, atol=1e-11)


@every_op
@given(data=st.data())
def test_numbers_agree_with_the_run(case: OpCase, data: st.DataObject):
    call = data.draw(case.calls)
    with tl.observe(Seen()) as seen:
        call.run(*(Tensor(a, requires_grad=True) for a in call.inputs))
    for node, output in seen.steps:
        texts = [formulas.forward_numbers(node, output)]
        grad = np.random.default_rng(0).standard_normal(output.shape)
        texts.append(formulas.backward_numbers(node, grad, node.backward(grad)))
        assert not any("but" in text for text in texts if text)


def test_the_formula_of_a_convolution_is_what_it_computes():
    rng = np.random.default_rng(0)
    x, weight, bias = (rng.standard_normal(s) for s in ((2, 5, 6, 4), (3, 2, 2, 6), (6,)))
    node, output = run(lambda *t: tl.conv2d(*t, stride=(2, 1), padding=(1, 0), dilation=(1, 2),
                                            groups=2), x, weight, bias)
    forward, backward = formulas.formulas(node, output)
    read = r"x\[n, (.*?), (.*?), c\]"
    row, column = re.search(read, forward).groups()
    assert (row, column) == ("2i + a - 1", "j + 2b")
    assert re.search(read, backward.partition("∂weight")[2]).groups() == (row, column)
    assert f"({row}, {column}) is its place" in backward
    row, column = (compile(re.sub(r"(\d)([a-z])", r"\1*\2", t), "formula", "eval")
                   for t in (row, column))
    grad = rng.standard_normal(output.shape)
    y, dx, dw = np.zeros(output.shape) + bias, np.zeros(x.shape), np.zeros(weight.shape)
    places = itertools.product(*map(range, (*output.shape[:3], 3, 2, 2, 6)))
    for n, i, j, a, b, c, o in places:
        p, q = eval(row), eval(column)
        if 0 <= p < 5 and 0 <= q < 6:
            channel = c + 2 * (o // 3)
            y[n, i, j, o] += x[n, p, q, channel] * weight[a, b, c, o]
            dx[n, p, q, channel] += grad[n, i, j, o] * weight[a, b, c, o]
            dw[a, b, c, o] += grad[n, i, j, o] * x[n, p, q, channel]
    np.testing.assert_allclose(output.data, y, rtol=1e-12, atol=1e-12)
    for sent, expected in zip(node.backward(grad), (dx, dw, grad.sum((0, 1, 2))), strict=True):
        np.testing.assert_allclose(sent, expected, rtol=1e-12, atol=1e-12)


def test_scalars():
    w, x = (Tensor(v, requires_grad=True) for v in (2.0, 3.0))
    with tl.observe(Seen()) as seen:
        tl.multiply(w, x)
    node, output = seen.steps[0]
    assert formulas.formulas(node, output) == ("y = a · b", "∂a = g · b\n∂b = g · a")
    assert formulas.forward_numbers(node, output, ["w", "x"]) == "w · x = 2 · 3 = 6"
    one = np.float32(1)
    assert formulas.backward_numbers(node, one, node.backward(one), ["w", "x"]) == (
        "∂w = g · x = 1 · 3 = 3\n∂x = g · w = 1 · 2 = 2")


def test_shapes_and_sums_over_repeated_axes():
    node, output = run(tl.linear, np.ones((2, 3)), np.ones((3, 4)), np.ones(4))
    assert formulas.formulas(node, output) == (
        "y (2, 4) = x (2, 3) @ weight (3, 4) + bias (4,)",
        "∂x (2, 3) = g (2, 4) @ weightᵀ (4, 3)\n"
        "∂weight (3, 4) = xᵀ (3, 2) @ g (2, 4)\n"
        "∂bias (4,) = Σ g over axis 0")
    node, output = run(tl.multiply, np.ones((2, 3)), np.array([1.0, 2.0, 3.0]))
    grad = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert formulas.backward_numbers(node, grad, node.backward(grad)).splitlines()[1] == (
        "∂b = Σ g · a over axis 0 = Σ [[1, 2, 3], [4, 5, 6]] · [[1, 1, 1], [1, 1, 1]] over axis 0"
        " = [5, 7, 9]")


def test_one_element_of_what_is_too_large():
    x = np.arange(16.0).reshape(1, 4, 4, 1)
    node, output = run(lambda x, w: tl.conv2d(x, w, padding=1), x, np.full((2, 2, 1, 1), 0.5))
    assert formulas.forward_numbers(node, output) == (
        "y[0, 2, 2, 0] = 5 · 0.5 + 6 · 0.5 + 9 · 0.5 + 10 · 0.5 = 15")
    node, output = run(tl.relu, np.full((1, 4, 4, 2), -0.25))
    assert formulas.forward_numbers(node, output) == "y[0, 2, 2, 0] = max((-0.25), 0) = 0"
    node, output = run(lambda x: tl.sum(x), np.ones(50))
    assert formulas.forward_numbers(node, output) is None
    assert formulas.backward_numbers(node, np.float64(1), node.backward(np.float64(1))) is None


def test_the_terms_of_a_batch_norm():
    running = np.zeros(1), np.ones(1)
    node, output = run(lambda *t: tl.batch_norm(*t, *running, eps=0.0),
                       np.array([[1.0], [3.0]]), np.array([2.0]), np.array([0.5]))
    assert formulas.forward_numbers(node, output) == (
        "channel 0: x = [1, 3], μ = 2, σ² = 1\nx̂ = [-1, 1]\nγ · x̂ + β = 2 · x̂ + 0.5 = [-1.5, 2.5]")
    grad = np.array([[1.0], [2.0]])
    assert formulas.backward_numbers(node, grad, node.backward(grad)) == (
        "channel 0: g = [1, 2], x̂ = [-1, 1]\n"
        "∂x = γ / √(σ² + ε) · (g - mean(g) - x̂ · mean(g · x̂)) = 2 · (g - 1.5 - x̂ · 0.5) = [0, 0]\n"
        "∂γ = Σ g · x̂ = 1\n∂β = Σ g = 3")


@pytest.mark.parametrize(("function", "call", "wrong"), [
    (Multiply, lambda a, b: a * b, lambda ctx, g: (g, g)),
    (Conv2d, lambda a, b: tl.conv2d(a.reshape(1, 1, 1, 1), b.reshape(1, 1, 1, 1)),
     lambda ctx, g: (g * 9, g * 9, None)),
])
def test_a_wrong_backward_is_not_dressed_up(monkeypatch, function, call, wrong):
    with monkeypatch.context() as patch:
        patch.setattr(function, "backward", staticmethod(wrong))
        node, output = run(call, np.float64(2), np.float64(3))
        grad = np.ones(output.shape)
        text = formulas.backward_numbers(node, grad, node.backward(grad))
    assert "1 · 3 = 3, but its backward sent" in text


def test_a_wrong_forward_is_not_dressed_up(monkeypatch):
    monkeypatch.setattr(Multiply, "forward", staticmethod(lambda ctx, a, b: a * b + 1))
    node, output = run(tl.multiply, np.float64(2), np.float64(3))
    assert formulas.forward_numbers(node, output) == "a · b = 2 · 3 = 6, but the op returned 7"


class Cube(tl.Function):
    """x cubed.

    More about it.
    """

    @staticmethod
    def forward(ctx, x, *others):
        ctx.save(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return (3 * ctx.saved[0] ** 2 * grad, *[None] * (len(ctx.inputs) - 1))


class Plain(Cube):
    forward, backward = Cube.forward, Cube.backward


def test_an_op_of_the_user():
    node, output = run(Cube.apply, np.float64(2))
    assert formulas.formulas(node) == ("x cubed.", "by its own backward")
    assert formulas.slots(node) == ("x",)
    assert formulas.forward_numbers(node, output) == "cube(2) = 8"
    assert formulas.backward_numbers(node, np.ones(()), node.backward(np.ones(()))) == (
        "∂x = 12, from g = 1")
    node, output = run(Plain.apply, np.float64(2), np.float64(1), np.float64(1))
    assert formulas.slots(node) == ("x", "x0", "x1")
    assert formulas.formulas(node)[0] == "y = plain(x, x0, x1)"


def test_a_name_stands_for_one_tensor_only():
    x = Tensor(3.0, requires_grad=True)
    with tl.observe(Seen()) as seen:
        tl.multiply(x, x)
        tl.multiply(x, Tensor(4.0))
    (square, y), (other, z) = seen.steps
    one = np.float32(1)
    assert formulas.backward_numbers(square, one, square.backward(one), ["x", "x"]) == (
        "∂x (as a) = g · x = 1 · 3 = 3\n∂x (as b) = g · x = 1 · 3 = 3")
    assert formulas.forward_numbers(other, z, ["x", "x%9"]) == "a · b = 3 · 4 = 12"
    assert formulas.forward_numbers(other, z, ["h[1]", "net.fc.weight"]) == (
        "h[1] · weight = 3 · 4 = 12")
    assert formulas.forward_numbers(other, z, ["g", "%3"]) == "a · b = 3 · 4 = 12"


def test_fused_ops():
    rng = np.random.default_rng(0)
    x = Tensor(rng.standard_normal((4, 5, 5, 3)), requires_grad=True)
    weight = Tensor(rng.standard_normal((3, 3, 3, 3)), requires_grad=True)
    gamma, beta = (Tensor(np.ones(3), requires_grad=True) for _ in range(2))
    statistics = np.zeros(3), np.ones(3)
    with tl.observe(Seen()) as seen:
        a = tl.conv_norm(x, weight, gamma, beta, *statistics, relu=True, padding=1)
        b = tl.conv_norm(a, weight, gamma, beta, *statistics, padding=1)
        tl.block_join(b, a, x, frames=2)
        a.tensor()
        tl.max_pool2d(a, 2)
        with tl.no_grad():
            tl.conv_norm(x, weight, gamma, beta, *statistics, relu=True, mode="eval")
    texts = {node.name: formulas.formulas(node, output) for node, output in seen.steps}
    assert set(texts) == {"conv_norm", "block_join", "activate", "max_pool2d", "folded_conv_norm"}
    assert "x read through its own norm" in texts["conv_norm"][0]
    assert texts["conv_norm"][1].count("∂z[n, i, j, o]") == 2
    assert texts["block_join"][0].startswith("y[t] = max(residual[t] + skip[t] + before[t - 1], 0)")
    assert texts["block_join"][1].splitlines()[2].startswith("∂before = ")
    assert texts["folded_conv_norm"][1] == "no input wants a gradient"
