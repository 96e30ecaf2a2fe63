"""Derivatives by central differences beside those of backward, while a program is recorded.

`check_op` looks at one op, at the step at which the walk passes it: its forward is run again in
float64, at the recorded inputs moved a little, and tells what backward should have sent. That finds
the op whose backward is wrong, and only that one, because the gradient that came in is taken as it
is. `Program` does the same to a whole program, from its leaves to its result: it also finds what
the walk itself does wrong, such as not adding up where paths meet.

The differences are taken for each element of the output before they are weighted with its
gradient and added up. (`numerical_gradient` of ``gradcheck.py`` differentiates the sum.) That gives
an estimate, for each output, of how far both sides and two step sizes disagree: a kink, as relu has
at 0. Where they disagree by more than is tolerated smaller steps are tried, and if none is small
enough the derivative counts as not smooth and is held against no one.

Costs are bounded by a count of elements computed, never by a clock, so that the same program is
checked at the same elements each time.
"""

from __future__ import annotations

import contextlib
import copy
import math
import random
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tensorlite.autograd import Function, Node
from tensorlite.device import Array, array_module, is_on_gpu, to_device
from tensorlite.ops.casting import Cast
from tensorlite.ops.convolution import Conv2d
from tensorlite.ops.elementwise import Dropout
from tensorlite.ops.linear import Linear, MatMul
from tensorlite.ops.recurrence import GRU
from tensorlite.ops.reduction import Mean
from tensorlite.ops.shape import ToDevice
from tensorlite.recording import no_grad, state
from tensorlite.tensor import Tensor

from .summary import finite
from .tape import Check

# Steps, relative to max(1, |x|). Central differences are best near the third root of a rounding
# error; smaller ones step over fewer kinks.
STEPS = (1e-5, 1e-6, 1e-7, 1e-8)
ROUNDING = 4 * np.finfo(np.float64).eps  # of a float64 forward, relative to its output

# What an analytic derivative may be off by, relative to the terms that it is the sum of, by the
# bytes of its dtype: of one op, and of a whole program, which passes rounding on from op to op.
OP_TOLERANCE = {2: 2e-2, 4: 3e-5, 8: 1e-7}
PROGRAM_TOLERANCE = {2: 5e-2, 4: 1e-3, 8: 1e-6}

EVERY = 256  # elements of an array up to which each is checked, where the cost allows
SAMPLE = 16  # elements of a larger one
CALL = 20_000  # elements that could be computed in the time that one call of an op takes by itself
PRODUCTS = 64  # products, as in a convolution, that take the time of one element
OP_WORK = 1 << 25  # elements computed to check one op, or as many as 2 elements of each input need
PROGRAM_WORK = 5 << 30  # elements computed to differentiate one program


# An op again


class Replay:
    """An op that has run, to be run again in float64 on the CPU whatever becomes of its node."""

    def __init__(self, node: Node) -> None:
        self.function: type[Function] = node.function
        self.inputs: tuple[Tensor | None, ...] = node.inputs
        self._options: dict[str, Any] = _copied(node.options)
        self._mask = (_double(node.saved[0]) if node.function is Dropout and node.recording
                      else None)

    def __call__(self, arrays: Sequence[np.ndarray | None]) -> np.ndarray:
        """Its output for these inputs, in memory of its own."""
        # (NumPy makes scalars of sums without axes.)
        arrays = [None if a is None else np.asarray(a) for a in arrays]
        x = arrays[0] if arrays else None
        if self._mask is not None:  # the generator has moved on
            return x * self._mask
        if self.function in (Cast, ToDevice):  # no other precision and device than this
            return np.array(x)
        tensors = tuple(None if a is None else Tensor(a, t is not None and t.requires_grad)
                        for a, t in zip(arrays, self.inputs, strict=True))
        # What forward writes to, as batch norm to its running statistics, it gets a copy of.
        options = _copied(self._options)
        return np.array(self.function.forward(Node(self.function, tensors, options), *arrays,
                                              **options))

    def near(self, arrays: Sequence[np.ndarray | None], base: np.ndarray) -> np.ndarray:
        """Its output for inputs close to those where it is `base`; NaN where it refuses them, as an
        op may that takes nothing but probabilities."""
        try:
            output = self(arrays)
        except Exception:  # a program must not fail because it is looked at
            return np.full_like(base, np.nan)
        return output if output.shape == base.shape else np.full_like(base, np.nan)

    def arrays(self) -> list[np.ndarray | None]:
        """The inputs as they were recorded, for a call."""
        return [None if t is None else _double(t.data) for t in self.inputs]

    def work(self, arrays: Sequence[np.ndarray | None], output: np.ndarray) -> int:
        """What one call costs, in elements."""
        given = [a for a in arrays if a is not None]
        products = 0
        if issubclass(self.function, Conv2d | Linear | MatMul):
            products = output.size * given[1].size // max(1, given[1].shape[-1])
        elif issubclass(self.function, GRU):
            products = output.shape[0] * output.shape[1] * (given[1].size + given[2].size)
        return CALL + sum(a.size for a in given) + 4 * output.size + products // PRODUCTS


def _copied(value: Any) -> Any:
    """`value` with copies of the arrays and generators in it."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_copied(item) for item in value)
    if isinstance(value, np.ndarray) or is_on_gpu(value):
        return np.array(to_device(value, "cpu"))
    return copy.deepcopy(value) if isinstance(value, np.random.Generator) else value


def _double(array: Array) -> np.ndarray:
    """A copy on the CPU, of float64 unless it is of integers."""
    array = to_device(array, "cpu")
    return np.array(array, np.float64 if array.dtype.kind == "f" else None, order="C")


def _base(replay: Replay, arrays: Sequence[np.ndarray | None],
          recorded: Array | None) -> np.ndarray | None:
    """The op's output at the recorded inputs; None where it cannot be had again: its forward
    draws at random, takes no float64, or computes in less."""
    try:
        output = replay(arrays)
    except Exception:  # a program must not fail because it is looked at
        return None
    if output.dtype != np.float64:
        return None
    if recorded is None:
        return output
    before = _double(recorded)
    known = np.isfinite(before)
    difference = np.linalg.norm((output - before)[known])
    scale = np.linalg.norm(before[known]) + 1e-3 * math.sqrt(before.size)
    return output if difference <= 1e-2 * scale else None


@contextlib.contextmanager
def _aside() -> Iterator[None]:
    """Within it ops are not recorded, no one looks on, overflow is no one's concern, and what draws
    from NumPy's or Python's generator takes nothing from the program."""
    observers, state.observers = state.observers, ()
    drawn = random.getstate(), np.random.get_state()
    try:
        with no_grad(), np.errstate(all="ignore"):
            yield
    finally:
        state.observers = observers
        random.setstate(drawn[0])
        np.random.set_state(drawn[1])


# One derivative


class Slopes(NamedTuple):
    """dy/ds of each element of an output y as s moves: `kinks` estimates what they are off by where
    y(s) is not smooth, `noise` what they are off by due to rounding."""

    slopes: np.ndarray
    kinks: np.ndarray
    noise: np.ndarray


class Difference(NamedTuple):
    """The derivative of <grad, y>, what an analytic one may differ from it by, and whether it is
    smooth, that is, known better than that."""

    numeric: float
    tolerance: float
    smooth: bool


@dataclass
class Differ:
    """Differentiates <grad, y>, for an output y that is `base` where nothing is moved.

    relative: what is tolerated relative to the terms of the sum. floor: a size of derivatives below
    which the rounding of the analytic one is all there is. size: of the numbers inside, whose
    rounding y has a part of. (They are seldom smaller than y, nor than 1: log(1 + tiny).)
    """

    base: np.ndarray
    grad: np.ndarray
    relative: float
    floor: float
    size: float = 1.0

    def __call__(self, y: Callable[[float], np.ndarray],
                 steps: Sequence[float]) -> tuple[Difference, Slopes]:
        """Of y(s) at s = 0, with the first of `steps` for which it is smooth."""
        for step in steps:
            slopes, found = self._try(y, step)
            if found.smooth:
                break
        return found, slopes

    def _try(self, y: Callable[[float], np.ndarray],
             step: float) -> tuple[Slopes, Difference]:
        noise = ROUNDING * (np.abs(self.base) + _rms(self.base) + self.size) / step
        rise, fall = y(step) - self.base, self.base - y(-step)
        # One step may do: if both sides agree, there is no kink within it.
        slope, bend = (rise + fall) / (2 * step), rise - fall
        slopes = Slopes(slope, _beyond(np.abs(bend) / (2 * step), noise), noise)
        found = self.weigh(slopes, self.grad)
        if found.smooth:
            return slopes, found
        # Or else the function may be curved. With twice the step the bend of a smooth function is
        # four times as large, that of a kink is not, and the five-point formula is at hand.
        further, back = y(2 * step), y(-2 * step)
        double = (further - back) / (4 * step)
        turn = np.abs(further + back - 2 * self.base - 4 * bend) / (2 * step)
        slopes = Slopes((4 * slope - double) / 3,
                        _beyond(np.abs(double - slope) + turn, 4 * noise), noise)
        return slopes, self.weigh(slopes, self.grad)

    def weigh(self, found: Slopes, grad: np.ndarray) -> Difference:
        """The sum over outputs weighted with `grad`."""
        terms = grad * found.slopes
        numeric = float(terms.sum())
        tolerated = self.relative * (abs(numeric) + _norm(terms)) + self.floor
        tolerated += _norm(grad * found.noise)
        off = _norm(grad * found.kinks)
        return Difference(numeric, tolerated,
                          math.isfinite(numeric) and math.isfinite(off) and off <= tolerated / 4)

    def without_kinks(self, found: Slopes) -> np.ndarray:
        """`grad` where y is smooth, 0 where it is not."""
        tolerated = self.weigh(found, self.grad).tolerance
        share = tolerated / 4 / math.sqrt(max(1, self.grad.size))
        with np.errstate(all="ignore"):
            return np.where(np.abs(self.grad) * found.kinks <= share, self.grad, 0)


def _beyond(size: np.ndarray, noise: np.ndarray) -> np.ndarray:
    return np.maximum(size - noise, 0)


def _norm(x: np.ndarray) -> float:
    return float(np.linalg.norm(x.reshape(-1)))


def _rms(x: np.ndarray) -> float:
    return _norm(x) / math.sqrt(max(1, x.size))


def _moved(x: np.ndarray, element: int) -> tuple[Callable[[float], np.ndarray], float]:
    """x with one element moved by s times a scale, as a function of s, and that scale. Each call
    returns the same array."""
    y = x.copy()
    flat, value = y.reshape(-1), float(x.reshape(-1)[element])
    scale = max(1.0, abs(value))

    def at(s: float) -> np.ndarray:
        flat[element] = value + s * scale
        return y

    return at, scale


def _elements(size: int, count: int, seed: int) -> np.ndarray:
    """`count` of the elements of an array, in order; the same ones each time."""
    if count >= size:
        return np.arange(size)
    return np.sort(np.random.default_rng(seed).choice(size, count, replace=False))


def _direction(x: np.ndarray, seed: int) -> np.ndarray:
    """A random direction for x to move in, of no element so small that moving it is rounded off."""
    return np.random.default_rng(seed).standard_normal(x.shape) * np.maximum(1, np.abs(x))


def _steps(moving: int) -> Sequence[float]:
    """Steps to try where so many elements move at once: among many, some are always near a kink."""
    return STEPS if moving <= 4096 else STEPS[1:] if moving <= 100_000 else STEPS[2:]


def _is_float(array: np.ndarray | None) -> bool:
    return array is not None and array.dtype.kind == "f"


# One op


@np.errstate(all="ignore")
def check_op(node: Node, grad: Array, outgoing: Sequence[Array | None],
             output: Array | None = None) -> list[Check | None]:
    """Check what the backward of `node` made of `grad` for each of its inputs.

    To be called before the node lets go of what it saved. The result has a `Check` for each input
    that wants a gradient (nothing sent counts as zeros), otherwise None; all are None for an op
    whose forward cannot be run again in float64. `output`: of the op, as recorded, by which an op
    that draws at random is known.
    """
    checks: list[Check | None] = [None] * len(outgoing)
    if not node.recording:
        return checks
    replay = Replay(node)
    arrays = replay.arrays()
    with _aside():
        base = _base(replay, arrays, output)
        if base is None:
            return checks
        wanted = [slot for slot, array in enumerate(arrays)
                  if node.needs[slot] and _is_float(array)]
        calls = OP_WORK // (replay.work(arrays, base) * max(1, len(wanted)))
        for slot in wanted:
            checks[slot] = _check_slot(node, replay, arrays, base, grad, outgoing[slot], slot,
                                       calls)
    return checks


def _check_slot(node: Node, replay: Replay, arrays: list[np.ndarray | None], base: np.ndarray,
                grad: Array, sent: Array | None, slot: int, calls: int) -> Check:
    x = arrays[slot]
    tensor = node.inputs[slot]
    assert x is not None and tensor is not None
    dtype = np.dtype(tensor.dtype)
    weights = _double(grad)
    floor = 8 * float(np.finfo(dtype).eps) * float(np.abs(weights).max(initial=0.0))
    differ = Differ(base, weights, OP_TOLERANCE[min(dtype.itemsize, 8)], floor)
    analytic = np.zeros(x.shape) if sent is None else _double(sent)

    def run(moved: np.ndarray) -> np.ndarray:
        return replay.near([*arrays[:slot], moved, *arrays[slot + 1:]], base)

    most = EVERY if x.size <= EVERY else SAMPLE
    where = _elements(x.size, min(most, max(2, calls // 4)), slot)
    found = []
    for i in where:
        moved, scale = _moved(x, int(i))
        found.append(_per(differ(_then(moved, run), STEPS)[0], scale))
    if not x.size:
        return _check(where, dtype, analytic, found, 0.0, None)

    v = _direction(x, slot)
    along, slopes = differ(lambda s: run(x + s * v), _steps(x.size))
    pair: tuple[float, Difference] | None = (float((analytic * v).sum()), along)
    if not along.smooth:
        # Some outputs have a kink right here, as the largest of equal elements has. Leave them out
        # on both sides: backward is asked again, for the gradient without them.
        kept = differ.without_kinks(slopes)
        along = differ.weigh(slopes, kept)
        pair = None
        if along.smooth and kept.any():
            with contextlib.suppress(Exception):  # of a backward that runs only once
                again = node.backward(_like(kept, grad))[slot]
                pair = (0.0 if again is None else float((_double(again) * v).sum()), along)
    # In an element that nearly cancels, rounding is that of the others.
    largest = max((abs(d.numeric) for d in found if d.smooth), default=0.0)
    least = floor + 8 * float(np.finfo(dtype).eps) * largest
    return _check(where, dtype, analytic, found, least, pair,
                  differ.relative * _norm(analytic * v))


def _like(array: np.ndarray, other: Array) -> Array:
    """`array` in the dtype and on the device of `other`."""
    return array_module(other).asarray(array, dtype=other.dtype)


def _then(moved: Callable[[float], np.ndarray],
          run: Callable[[np.ndarray], np.ndarray]) -> Callable[[float], np.ndarray]:
    return lambda s: run(moved(s))


def _per(found: Difference, scale: float) -> Difference:
    return Difference(found.numeric / scale, found.tolerance / scale, found.smooth)


def _check(where: np.ndarray, dtype: np.dtype, analytic: np.ndarray, found: Sequence[Difference],
           least: float, along: tuple[float, Difference] | None, slack: float = 0.0) -> Check:
    """Analytic derivatives, of `dtype` as backward left them, beside numerical ones. least: what is
    tolerated beyond what each `Difference` says; slack: the same of the direction."""
    picked = analytic.reshape(-1)[where]
    most = float(np.finfo(dtype).max)
    ratios = [_ratio(float(a) - d.numeric, d.tolerance + least)
              for a, d in zip(picked, found, strict=True)
              # What is too large for its dtype is infinite, and right.
              if d.smooth and not (np.isinf(a) and d.numeric * np.sign(a) > most)]
    beside = None
    if along is not None and along[1].smooth and not (
            dtype.itemsize < 4 and np.isinf(analytic).any()):
        ratios.append(_ratio(along[0] - along[1].numeric, along[1].tolerance + slack))
        beside = {"analytic": _json(along[0]), "numeric": along[1].numeric}
    worst = max(ratios, default=0.0)
    return Check(where=[int(i) for i in where], every=len(where) == analytic.size,
                 analytic=[_json(float(a)) for a in picked],
                 numeric=[_json(d.numeric) for d in found], smooth=[d.smooth for d in found],
                 along=beside, worst=worst, right=worst <= 1)


def _ratio(difference: float, tolerance: float) -> float:
    if difference == 0:
        return 0.0
    ratio = abs(difference) / tolerance if tolerance else math.inf
    return ratio if ratio < sys.float_info.max else sys.float_info.max  # also what is not a number


def _json(value: float) -> Any:
    return finite(value)


# A whole program


@dataclass
class Derivatives:
    """The derivatives of a program by some elements of a tensor, `where`, and along `direction`;
    `floor` as in `Differ`."""

    where: np.ndarray
    elements: list[Difference]
    direction: np.ndarray
    along: Difference
    floor: float


class Program:
    """What a backward walk is about to go through, in float64: <seed, root> as a function of any
    tensor on the way. To be made before the walk releases its nodes.

    Each op gives what was recorded where nothing is moved: what it would give in float64 and a
    constant, the rounding of the recording. Backward goes by the values recorded, and a relu's
    input that is 1e-9 in one precision and -1e-9 in the other makes two different derivatives.

    Only the ops after the tensor are run again. A tensor whose gradient passes an op that cannot be
    (see `check_op`), or is one of `stale`, which had other inputs than there are now, is left out.
    """

    def __init__(self, root: Tensor, seed: Array, nodes: Sequence[Node],
                 stale: Collection[Node] = ()) -> None:
        self._root, self._seed = root, _double(seed)
        self._values: dict[Tensor, np.ndarray] = {root: _double(root.data)}
        self._uses: dict[Tensor, int] = {root: 1}
        forwards = sorted(nodes, key=lambda node: node.rank)
        outputs = {t.node: t for t in (root, *_inputs(forwards)) if t.node is not None}
        self._ops = [Replay(node) for node in forwards]
        self._outputs = [outputs[node] for node in forwards]
        self._roundings: list[np.ndarray | None] = []
        self._costs: list[float] = []
        with _aside():
            for node, replay, output in zip(forwards, self._ops, self._outputs, strict=True):
                self._add(replay, output, node in stale)
        self._counts: dict[Tensor, int] | None = None

    def _add(self, replay: Replay, output: Tensor, stale: bool) -> None:
        for tensor in replay.inputs:
            if tensor is not None:
                self._uses[tensor] = self._uses.get(tensor, 0) + 1
        for tensor in (*replay.inputs, output):
            if tensor is not None and tensor not in self._values:
                self._values[tensor] = _double(tensor.data)
        arrays = self._arrays(replay, {})
        again = None if stale else _base(replay, arrays, output.data)
        recorded = self._values[output]
        rounding = None if again is None else recorded - again
        self._roundings.append(rounding if rounding is not None and rounding.any() else None)
        self._costs.append(math.inf if again is None else replay.work(arrays, again))

    def _arrays(self, replay: Replay, moved: dict[Tensor, np.ndarray]) -> list[np.ndarray | None]:
        return [None if t is None else moved.get(t, self._values[t]) for t in replay.inputs]

    def _after(self, tensor: Tensor) -> list[int]:
        """The ops whose result depends on that of `tensor`, in order."""
        reached, found = {tensor}, []
        for k, replay in enumerate(self._ops):
            if any(t in reached for t in replay.inputs):
                reached.add(self._outputs[k])
                found.append(k)
        return found

    def _terms(self) -> float:
        """The size of what a root of one element is the sum of, of which little may be left."""
        made = dict(zip(self._outputs, self._ops, strict=True))
        tensor, parts = self._root, 1
        while tensor.size == 1 and tensor in made:
            replay = made[tensor]
            tensor = max((t for t in replay.inputs if t is not None and t.requires_grad),
                         key=lambda t: t.size)
            parts *= tensor.size if replay.function is Mean else 1
        return 0.0 if tensor is self._root else _norm(self._values[tensor]) / parts

    def tensors(self) -> list[Tensor]:
        """Those whose derivatives are worth their cost: leaves and results at which paths meet
        first, as long as there is a budget; in the order in which the walk completes them."""
        return list(self._plan())

    def _plan(self) -> dict[Tensor, int]:
        """How many elements of which tensor are moved."""
        if self._counts is not None:
            return self._counts
        known = [t for t in dict.fromkeys((self._root, *_inputs(self._ops[::-1])))
                 if t.requires_grad]
        urgent = [t for t in known if t.node is None or self._uses[t] > 1]
        others = [t for t in known if t.node is not None and self._uses[t] == 1]
        left, costs = float(PROGRAM_WORK), dict[Tensor, float]()
        for tensor in (*urgent, *others):
            # Two or four calls of each op, and sometimes more.
            cost = 3 * (CALL + sum(self._costs[k] for k in self._after(tensor)))
            if 2 * cost <= left:  # a direction and an element
                costs[tensor] = cost
                left -= 2 * cost
            elif left < CALL:
                break
        counts = {}
        for place, tensor in enumerate(sorted(costs, key=lambda t: costs[t] * t.size)):
            most = EVERY if tensor.size <= EVERY else SAMPLE
            extra = int(left / (len(costs) - place) // costs[tensor])
            counts[tensor] = min(most, tensor.size, 1 + extra)
            left -= max(0, counts[tensor] - 1) * costs[tensor]
        self._counts = {t: counts[t] for t in known if t in counts}
        return self._counts

    @np.errstate(all="ignore")
    def derivatives(self, tensor: Tensor) -> Derivatives:
        """d <seed, root> / d tensor, of one of `tensors`, for a tensor by itself: as if it were
        moved after whatever made it."""
        count = self._plan()[tensor]
        x, after = self._values[tensor], self._after(tensor)
        dtype = np.dtype(tensor.dtype)
        base = self._values[self._root]
        # A gradient that is nothing but rounding (of what a norm takes out again, of a class that
        # is certain) is compared with what rounding makes of the result.
        size = float(np.abs(self._seed * base).sum() + np.abs(self._seed).max(initial=0.0))
        floor = 8 * float(np.finfo(dtype).eps) * size
        differ = Differ(base, self._seed, PROGRAM_TOLERANCE[min(dtype.itemsize, 8)], floor,
                        1.0 + self._terms())

        def run(moved: np.ndarray) -> np.ndarray:
            values = {tensor: moved}
            for k in after:
                value = self._ops[k].near(self._arrays(self._ops[k], values),
                                          self._values[self._outputs[k]])
                rounding = self._roundings[k]
                values[self._outputs[k]] = value if rounding is None else value + rounding
            return np.array(values[self._root])

        steps = _steps(sum(self._values[self._outputs[k]].size for k in after))
        where, elements = _elements(x.size, count, 0), []
        with _aside():
            for i in where:
                moved, scale = _moved(x, int(i))
                elements.append(_per(differ(_then(moved, run), steps)[0], scale))
            v = _direction(x, 0)
            along, _ = differ(lambda s: run(x + s * v), steps)
        return Derivatives(where, elements, v, along, floor)


def _inputs(ops: Sequence[Node | Replay]) -> list[Tensor]:
    return [t for op in ops for t in op.inputs if t is not None]


@np.errstate(all="ignore")
def compare(grad: Array, found: Derivatives) -> Check:
    """The gradient of a tensor as backward left it beside its numerical derivatives."""
    analytic = _double(grad)
    relative = PROGRAM_TOLERANCE[min(grad.dtype.itemsize, 8)]
    typical = _rms(np.array([d.numeric for d in found.elements if d.smooth]))
    moving = analytic * found.direction
    return _check(found.where, grad.dtype, analytic, found.elements,
                  found.floor + relative * typical, (float(moving.sum()), found.along),
                  relative * _norm(moving))
