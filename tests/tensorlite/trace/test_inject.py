"""Each injected bug is found, is found at its op and only there, and is gone afterwards."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tensorlite as tl
from recres.models import recurrent_resnet
from tensorlite import Function, GradientError, Tensor, autograd, gradcheck, trace
from tensorlite.ops.convolution import Conv2d
from tensorlite.ops.elementwise import Add, Multiply
from tensorlite.ops.linear import Linear, MatMul
from tensorlite.ops.normalisation import BatchNorm
from tensorlite.ops.recurrence import GRU
from tensorlite.trace import BUGS, check
from tensorlite.trace.tape import Check


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def loop(x: Tensor, w: Tensor) -> Tensor:
    """Each frame takes in the one before, one at a time."""
    out = [x[:, 0]]
    for t in range(1, x.shape[1]):
        out.append(x[:, t] + tl.tanh(x[:, t - 1] @ w))
    return tl.stack(out, 1)


def all_but_the_last(x: Tensor, w: Tensor) -> Tensor:
    before = x[:, :-1].reshape(-1, 4, 4, 2)
    return tl.relu(tl.conv2d(before, w)) * 2.0


def before_a_skip(x: Tensor, w: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    z = tl.batch_norm(tl.conv2d(x, w, padding=1), gamma, beta, np.zeros(2), np.ones(2))
    return tl.temporal_skip(x, tl.relu(z), 3)


def gru(x: Tensor, *weights: Tensor) -> Tensor:
    return tl.gru(x, np.array([4, 2]), *weights)


def convolve(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
    y = tl.tanh(tl.conv2d(x, w, padding=(1, 0), stride=2))
    return tl.conv2d(y, v, padding=1)


def normalise(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return tl.batch_norm(tl.tanh(x), gamma, beta, np.zeros(3), np.ones(3))


SEQUENCES = [draw(2, 4, 3), draw(3, 6, seed=1), draw(2, 6, seed=2), draw(6, seed=3),
             draw(6, seed=4), draw(2, 2, seed=5)]

# A bug, a program that has it, the inputs, and the op it shows at (None: at no op, in a sum).
PROGRAMS: dict[str, tuple[str, Callable[..., Tensor], list[np.ndarray],
                          type[Function] | None]] = {
    "used twice": ("no-accumulation", lambda x: x * tl.tanh(x), [draw(2, 3)], None),
    "a path around": ("no-accumulation", lambda x: tl.relu(tl.exp(x) + tl.tanh(x)), [draw(5)],
                      None),
    "steps": ("same-frame", loop, [draw(2, 4, 3), draw(3, 3, seed=1)], MatMul),
    "matrix on the left": ("same-frame", lambda x, w: w @ x[:, :-1],
                           [draw(3, 4), draw(2, 3, seed=1)], MatMul),
    "linear": ("same-frame", lambda x, w: tl.linear(x[:, :-1], w), [draw(2, 4, 3),
               draw(3, 3, seed=1)], Linear),
    "chunks": ("same-frame", all_but_the_last, [draw(2, 3, 4, 4, 2), draw(1, 1, 2, 2, seed=1)],
               Conv2d),
    "before a skip": ("same-frame", before_a_skip,
                      [draw(6, 4, 4, 2), draw(3, 3, 2, 2, seed=1), draw(2), draw(2)], Conv2d),
    "data": ("same-frame", lambda w: tl.linear(Tensor(draw(2, 4, 3))[:, :-1].reshape(-1, 3), w),
             [draw(3, 3, seed=1)], Linear),
    "gru": ("same-frame", gru, SEQUENCES, GRU),
    "norm": ("norm-means", normalise, [draw(5, 3), draw(3, seed=1), draw(3, seed=2)], BatchNorm),
    "bias": ("broadcast", lambda x, b: tl.tanh(x + b), [draw(4, 3), draw(3, seed=1)], Add),
    "scale": ("broadcast", lambda x, s: x * s, [draw(4, 2, 3), draw(2, 1, seed=1)], Multiply),
    "batched product": ("broadcast", lambda x, w: x @ w, [draw(4, 2, 3), draw(3, 2, seed=1)],
                        MatMul),
    "convolution": ("padding", convolve, [draw(2, 6, 6, 2), draw(3, 3, 2, 2, seed=1),
                                          draw(3, 3, 2, 1, seed=2)], Conv2d),
}
every_program = pytest.mark.parametrize(("name", "run", "arrays", "function"),
                                        PROGRAMS.values(), ids=PROGRAMS)


class Look(tl.Observer):
    """The verdict on each op, and on each tensor's gradient, in the order of the walk."""

    def __init__(self) -> None:
        self.ops: list[tuple[type[Function], list[Check | None]]] = []
        self.tensors: list[tuple[Tensor, bool]] = []

    def start(self, root, grad, nodes) -> None:
        program = check.Program(root, grad, nodes)
        self._found = {t: program.derivatives(t) for t in program.tensors()}
        self._outputs = {t.node: t for n in nodes for t in (root, *n.inputs) if t is not None}

    def backward(self, node, grad, outgoing) -> None:
        self.ops.append((node.function, check.check_op(node, grad, outgoing)))
        self._compare(self._outputs[node], grad)

    def deposit(self, leaf, before) -> None:
        self._compare(leaf, leaf.grad)

    def _compare(self, tensor, grad) -> None:
        self.tensors.append((tensor, check.compare(grad, self._found[tensor]).right))


def look(run: Callable[..., Tensor], arrays: list[np.ndarray]) -> Look:
    observer = Look()
    tensors = [Tensor(a, requires_grad=True) for a in arrays]
    with tl.observe(observer):
        output = run(*tensors)
        output.backward(draw(*output.shape, seed=9))
    return observer


@every_program
def test_gradcheck_finds_it(name, run, arrays, function):
    gradcheck(run, arrays)
    with trace.inject(name) as bug, pytest.raises(GradientError):
        assert bug is BUGS[name]
        gradcheck(run, arrays)
    gradcheck(run, arrays)


@every_program
def test_it_is_located_at_the_op_and_only_there(name, run, arrays, function):
    with trace.inject(name):
        found = look(run, arrays)
    wrong = {op for op, checks in found.ops for c in checks if c and not c.right}
    assert wrong == (set() if function is None else {function})
    assert (function is None) == (BUGS[name].shows == "sum")
    assert not all(right for _, right in found.tensors)
    again = look(run, arrays)
    assert all(c.right for _, checks in again.ops for c in checks if c)
    assert all(right for _, right in again.tensors)


def test_the_first_tensor_that_lacks_a_piece_is_where_paths_meet():
    with trace.inject("no-accumulation"):
        found = look(lambda x: tl.log(tl.exp(tl.exp(x)) + tl.exp(x * 2.0) + 1.0), [draw(4)])
    first = next(tensor for tensor, right in found.tensors if not right)
    assert first.node is None  # x, used twice; all the others are used once


def gradients(model: tl.nn.Module, frames: Tensor) -> dict[str, np.ndarray]:
    model.zero_grad()
    with tl.unfused():
        tl.cross_entropy(model(frames), np.array([1, 3])).backward()
    return {name: p.grad.copy() for name, p in model.named_parameters()}


def small(recurrent_gradient: str) -> tl.nn.Module:
    return recurrent_resnet(18, classes=4, skip="conv", context=3, width=8, rng=0,
                            recurrent_gradient=recurrent_gradient)


@pytest.mark.parametrize("name", BUGS)
def test_a_recurrent_network_learns_from_other_gradients_and_then_from_the_right_ones(name: str):
    model = small("correct")
    frames = Tensor(draw(2, 3, 32, 32, 3).astype(np.float32))
    right = gradients(model, frames)
    with trace.inject(name):
        wrong = gradients(model, frames)
    again = gradients(model, frames)
    changed = {key for key in right if not np.allclose(right[key], wrong[key], 1e-3, 1e-6)}
    temporal = {key for key in right if "temporal.conv.weight" in key}
    assert temporal
    if name == "broadcast":  # a network of convolutions, norms and linear layers has no such sum
        assert changed == set()
    elif name == "same-frame":
        assert changed == temporal
    else:
        assert changed >= {"conv1.weight", "block1.0.conv1.weight"}
    for key in right:
        np.testing.assert_array_equal(again[key], right[key])


def test_the_network_has_the_same_wrong_gradient_by_another_way():
    """What a model with recurrent_gradient="same-frame" computes by itself, for comparison."""
    frames = Tensor(draw(2, 3, 32, 32, 3).astype(np.float32))
    with trace.inject("same-frame"):
        injected = gradients(small("correct"), frames)
    for key, expected in gradients(small("same-frame"), frames).items():
        scale = np.abs(expected).max()
        np.testing.assert_allclose(injected[key], expected, rtol=1e-4, atol=1e-4 * scale)


def test_the_wrong_pairing_of_a_gru_is_that_of_the_formula():
    """The recurrent weight in a second product, of the states as constants: Σ_t h_tᵀ e_t."""
    x, w_ih, w_hh, b_ih, b_hh, h0 = (Tensor(a) for a in SEQUENCES)
    weight = Tensor(SEQUENCES[2], requires_grad=True)
    states = tl.gru(x, None, w_ih, w_hh, b_ih, b_hh, h0)
    h, outputs = h0, []
    for t in range(4):
        later = states[:, t].detach() @ weight
        from_h = h @ w_hh + (later - later.detach()) + b_hh
        from_x = x[:, t] @ w_ih + b_ih
        r = tl.sigmoid(from_x[:, :2] + from_h[:, :2])
        z = tl.sigmoid(from_x[:, 2:4] + from_h[:, 2:4])
        n = tl.tanh(from_x[:, 4:] + r * from_h[:, 4:])
        h = (1.0 - z) * n + z * h
        outputs.append(h)
    cotangent = draw(2, 4, 2, seed=8)
    tl.stack(outputs, 1).backward(cotangent)
    expected, weight.grad = weight.grad, None
    with trace.inject("same-frame"):
        tl.gru(x, None, w_ih, weight, b_ih, b_hh, h0).backward(cotangent)
    np.testing.assert_allclose(weight.grad, expected, rtol=1e-10)


def test_weights_that_see_every_frame_are_not_recurrent():
    def run(x: Tensor, w: Tensor) -> Tensor:
        return tl.stack([x[:, t] @ w for t in range(4)], 1) + x[:, :, :2] @ w[:2]

    with trace.inject("same-frame"):
        gradcheck(run, [draw(2, 4, 3), draw(3, 3, seed=1)])


def engine() -> list[object]:
    classes = (Conv2d, BatchNorm, Linear, MatMul, GRU, Add)
    return [autograd._Sums.__dict__["add"], *(c.__dict__["backward"] for c in classes),
            *(vars(sys.modules[f"tensorlite.ops.{name}"])["unbroadcast"]
              for name in ("elementwise", "linear")),
            tl.recording.state.fused, tl.recording.state.observers]


@pytest.mark.parametrize("name", BUGS)
def test_the_engine_is_as_it_was_also_after_an_error(name: str):
    before = engine()
    with pytest.raises(ZeroDivisionError), trace.inject(name):
        assert engine() != before
        raise ZeroDivisionError
    assert engine() == before


def test_bugs_can_be_nested():
    before = engine()
    bias, twice = PROGRAMS["bias"][1:3], PROGRAMS["used twice"][1:3]
    with trace.inject("broadcast"):
        with trace.inject("no-accumulation"), trace.inject("broadcast"):
            for run, arrays in (bias, twice):
                with pytest.raises(GradientError):
                    gradcheck(run, arrays)
        gradcheck(*twice)
        with pytest.raises(GradientError):
            gradcheck(*bias)
    gradcheck(*bias)
    assert engine() == before


def test_nothing_of_an_empty_batch():
    with trace.inject("broadcast"):
        x, b = (Tensor(np.zeros(s), requires_grad=True) for s in ((0, 3), (3,)))
        (x + b).backward(np.zeros((0, 3)))
    np.testing.assert_array_equal(b.grad, np.zeros(3))


def test_an_unknown_name_is_refused_with_the_known():
    with pytest.raises(ValueError, match="name: got 'gremlin', expected one of no-accumulation, "
                                         "same-frame, norm-means, broadcast, padding"):
        trace.inject("gremlin").__enter__()


PAGES = Path(__file__).resolve().parents[3] / "docs" / "bugs"


def block(page: str) -> str:
    """The program in a page."""
    return re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]


@pytest.mark.parametrize("name", BUGS)
def test_each_bug_has_a_page_that_says_what_happens(name: str):
    bug, page = BUGS[name], (PAGES / f"{name}.md").read_text("utf-8")
    assert page.startswith(f"# {bug.title}\n")
    assert bug.right in page and bug.wrong in page
    assert f"[{name}]({name}.md) | {bug.title} |" in (PAGES / "README.md").read_text("utf-8")
    assert bug.name == name and bug.shows in ("op", "sum") and len(bug.description) > 200
    with pytest.raises(GradientError) as caught:
        exec(block(page), {})
    message = re.compile(r"gradient of input (\d) at element (.*): analytic (\S+), numeric (\S+),")
    shown, seen = message.search(page), message.search(str(caught.value))
    assert shown.groups()[:2] == seen.groups()[:2]
    assert [float(n) for n in shown.groups()[2:]] == pytest.approx(
        [float(n) for n in seen.groups()[2:]], rel=1e-6)


@pytest.mark.parametrize("name", BUGS)
def test_the_hunt_of_the_index_has_something_to_find(name: str, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(random, "choice", lambda names: names[names.index(name)])
    hunt: dict = {}
    exec(block((PAGES / "README.md").read_text("utf-8")), hunt)
    assert (tmp_path / "hunt.html").exists()
    tape = hunt["tape"]
    pieces = [(tape.ops[e.op], p) for e in tape.events if e.op is not None for p in e.pieces]
    wrong = {op.op for op, piece in pieces if piece.check and not piece.check.right}
    assert wrong == {"no-accumulation": set(), "same-frame": {"conv2d"}, "padding": {"conv2d"},
                     "norm-means": {"batch_norm"}, "broadcast": {"add"}}[name]
    sums = [piece for _, piece in pieces if not piece.sum_right]
    assert bool(sums) == (name == "no-accumulation")
