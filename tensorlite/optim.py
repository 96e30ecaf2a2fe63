"""Optimisers, gradient clipping, loss scaling and learning-rate schedules.

On the CPU an optimiser walks over all its parameters in blocks that stay in the cache, spread over
the threads, so that an update reads and writes memory about once although its formula takes a dozen
elementwise operations. What it remembers of the parameters lies in one array, the small ones side
by side, so that they make up blocks together. All is elementwise: neither blocks nor threads change
the result. On a GPU Adam updates all parameters in one launch, and `guarded_step` decides there
whether to, so that the host need not wait.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np

from tensorlite import kernels
from tensorlite.device import Array, array_module, to_device
from tensorlite.kernels.cpu.threads import parallel_for, scratch
from tensorlite.kernels.cuda import optimizer as cuda
from tensorlite.nn.module import refuse_arrays, refuse_names
from tensorlite.tensor import Tensor
from tensorlite.transfer import read_later

Parameters: TypeAlias = Iterable[Tensor] | Iterable[tuple[str, Tensor]]

Block = TypeVar("Block")
Result = TypeVar("Result")

# Elements a block. On the 25.6 million float32 values of ResNet-50 on two Zen 3 cores an Adam step
# took 50 ms with blocks of 1 << 16, 35 with 1 << 17, 31 with these, 34 with 1 << 19: the threads
# hand the interpreter to and fro with every call.
_BLOCK = 1 << 18
_ALIGNED = 64  # on a GPU, what is remembered of parameters begins at multiples of so many elements
_SMALL = 8  # parameters of less than this part of a block share one
_GRAIN = 1 << 16  # elements below which a second thread costs more than it brings


def _named(params: Parameters) -> dict[str, Tensor]:
    """Parameters by name ("0", "1", … if they come without); refuses what cannot be trained."""
    if isinstance(params, Tensor) or not isinstance(params, Iterable):
        raise TypeError(
            "params: expected an iterable of parameters or of (name, parameter) pairs, "
            f"got {type(params).__name__}"
        )
    named: dict[str, Tensor] = {}
    holder: dict[int, str] = {}
    for index, item in enumerate(params):
        name, param = item if isinstance(item, tuple) else (str(index), item)
        if not isinstance(name, str) or not isinstance(param, Tensor):
            raise TypeError(
                f"params: item {index} is neither a parameter nor a (name, parameter) pair"
            )
        if name in named:
            raise ValueError(f"params: the name {name!r} comes twice")
        if id(param) in holder:
            raise ValueError(f"params: {holder[id(param)]!r} and {name!r} are one parameter")
        named[name] = param
        holder[id(param)] = name
    return named


def _on_gpu(array: Array) -> bool:
    """Whether the kernels for `array` are those of `kernels.cuda`."""
    return kernels.of(array) is not kernels.cpu


class _Place(NamedTuple):
    """What is remembered of a parameter: columns start..stop of an array of a row for each slot."""

    array: Array
    start: int
    stop: int


class _Piece(NamedTuple):
    """A parameter or part of one: its values and their gradient, flat, and what is remembered."""

    value: Array
    grad: Array
    place: _Place


def _blocks(pieces: Iterable[_Piece]) -> list[list[_Piece]]:
    """Parameters cut into blocks; small ones that are neighbours in memory share a block."""
    blocks: list[list[_Piece]] = []
    room = 0  # in the last block
    for piece in sorted(pieces, key=lambda p: (id(p.place.array), p.place.start)):
        (array, start, stop), size = piece.place, piece.value.size
        last = blocks[-1][-1].place if blocks else None
        if size <= room and last is not None and last.array is array and last.stop == start:
            blocks[-1].append(piece)
            room -= size
        elif size <= _BLOCK // _SMALL:
            blocks.append([piece])
            room = _BLOCK - size
        else:
            for at in range(0, size, _BLOCK):
                part = slice(at, at + _BLOCK)
                place = _Place(array, start + at, min(start + at + _BLOCK, stop))
                blocks.append([_Piece(piece.value[part], piece.grad[part], place)])
            room = 0
    return blocks


def _for_each(
    blocks: Sequence[Block], sizes: Sequence[int], body: Callable[[Block], Result]
) -> list[Result]:
    """body of each block, in order; the thread pool shares the blocks out by their sizes."""
    starts = [0, *itertools.accumulate(sizes)]

    def run(start: int, stop: int, worker: int) -> list[Result]:
        first, last = (bisect.bisect_left(starts, at, hi=len(blocks)) for at in (start, stop))
        return [body(block) for block in blocks[first:last]]

    parts = parallel_for(starts[-1], run, grain=_GRAIN)
    return [result for part in parts for result in part]


class Optimizer:
    """Base of the optimisers: names, the learning rate, state, and the walk over blocks.

    params: parameters, or (name, parameter) pairs such as `model.named_parameters()`; the names
        are those of the state. None at all, or one twice, is a ValueError.
    lr: the learning rate, positive. It may be assigned before each step, down to zero:
        `optimizer.lr = schedule(step)`.
    weight_decay: the factor of the L2 penalty's gradient, added to the parameter's: >= 0.

    `step` updates the parameters that have a gradient and skips the others. What an optimiser
    remembers of a parameter is kept beside it, in the parameter's dtype and on its device.
    A subclass names what it remembers in `slots` and defines `update`.
    """

    slots: tuple[str, ...] = ()

    def __init__(self, params: Parameters, lr: float, weight_decay: float) -> None:
        self.params = _named(params)
        if not self.params:
            raise ValueError("params: no parameters to optimise")
        if lr == 0:
            raise ValueError("lr: expected a positive number, got 0")
        self.lr = lr
        self.weight_decay = _number("weight_decay", weight_decay)
        self.steps = 0
        self._memory: dict[str, _Place] = {}
        self._remember([name for name, param in self.params.items() if param.requires_grad])

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = _number("lr", value)

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for param in self.params.values():
            param.zero_grad()

    def step(self) -> None:
        """Update, in place, every parameter that has a gradient.

        A gradient of another shape than its parameter is a ValueError naming it, raised before
        anything has changed.
        """
        pieces = self._pieces()
        self.steps += 1
        on_cpu: list[_Piece] = []
        for piece in pieces:
            xp = array_module(piece.value)
            if xp is np:
                on_cpu.append(piece)
            else:
                one, two = xp.empty_like(piece.value), xp.empty_like(piece.value)
                self._update(piece, one, two)
        blocks = _blocks(on_cpu)
        sizes = [sum(piece.value.size for piece in block) for block in blocks]
        _for_each(blocks, sizes, self._update_block)

    def guarded_step(self, max_norm: float | None = None, scaler: LossScaler | None = None
                     ) -> Callable[[], Outcome]:
        """`step` if all gradients are finite, scaled down to the norm `max_norm` if they exceed it.

        scaler: what the loss was scaled by; the gradients are scaled back first, and it moves on.
        Returns a function that says how it went. Adam on a GPU decides there: the host need not
        wait before it calls that function, best after the next step was queued.
        """
        _check_max_norm(max_norm)
        scale = 1.0
        if scaler is not None:
            scale = scaler.scale
            for param in self.params.values():
                if param.grad is not None:
                    param.grad = array_module(param.grad).asarray(param.grad / scale)
        if max_norm is None:
            norm = grad_norm(self.params.items())
        else:
            norm = clip_grad_norm(self.params.items(), max_norm)
        outcome = Outcome(norm, not math.isfinite(norm), scale)
        if scaler is not None:
            scaler.move(outcome.skipped)
        if not outcome.skipped:
            self.step()
        return lambda: outcome

    def _pieces(self) -> list[_Piece]:
        """Every parameter that has a gradient, contiguous from here on; refuses a wrong shape."""
        ready = [(name, p, p.grad) for name, p in self.params.items() if p.grad is not None]
        for name, param, grad in ready:
            if grad.shape != param.shape:
                raise ValueError(
                    f"{name}: the gradient has shape {grad.shape}, expected {param.shape}"
                )
        self._remember([name for name, _, _ in ready])
        pieces: list[_Piece] = []
        for name, param, grad in ready:
            # (of an array without axes it makes one with one)
            data = array_module(param.data).ascontiguousarray(param.data).reshape(param.shape)
            pieces.append(_Piece(data.reshape(-1), grad.reshape(-1), self._memory[name]))
            param.data = data
        return pieces

    def _update_block(self, block: list[_Piece]) -> None:
        """Update parameters on the CPU; several are gathered first, and spread again."""
        piece, size = block[0], sum(piece.value.size for piece in block)
        dtype = piece.value.dtype
        one, two = scratch("optim one", (size,), dtype), scratch("optim two", (size,), dtype)
        if len(block) > 1:
            value = scratch("optim value", (size,), dtype)
            grad = scratch("optim grad", (size,), dtype)
            np.concatenate([piece.value for piece in block], out=value)
            np.concatenate([piece.grad for piece in block], out=grad, casting="same_kind")
            place = _Place(piece.place.array, piece.place.start, block[-1].place.stop)
            piece = _Piece(value, grad, place)
        self._update(piece, one, two)
        if len(block) > 1:
            at = 0
            for part in block:
                part.value[...] = value[at : at + part.value.size]
                at += part.value.size

    def _update(self, piece: _Piece, one: Array, two: Array) -> None:
        """`update` of one piece, with the penalty's gradient added; one, two: room for a piece."""
        value, grad, (array, start, stop) = piece
        if self.weight_decay:
            xp = array_module(value)
            xp.multiply(value, self.weight_decay, out=one)
            grad = xp.add(grad, one, out=one)
        self.update(value, grad, *array[:, start:stop], scratch=two)

    def update(self, value: Array, grad: Array, *memory: Array, scratch: Array) -> None:
        """Update `value` and `memory` in place; flat arrays of one length, `grad` is only read."""
        raise NotImplementedError

    def _remember(self, names: Sequence[str]) -> None:
        """Make room, zeros at first, for what is remembered of parameters that are new.

        The small ones come first, so that they are neighbours in memory.
        """
        kinds: dict[tuple[str, np.dtype], list[str]] = {}
        for name in names:
            if name not in self._memory:
                param = self.params[name]
                kinds.setdefault((param.device, param.dtype), []).append(name)
        for members in kinds.values():
            members.sort(key=lambda name: self.params[name].size)
            data, grain = self.params[members[0]].data, 1
            if _on_gpu(data):
                grain = _ALIGNED
            sizes = [self.params[name].size for name in members]
            *starts, end = itertools.accumulate((-(-size // grain) * grain for size in sizes),
                                                initial=0)
            array = array_module(data).zeros((len(self.slots), end), data.dtype)
            for name, start, size in zip(members, starts, sizes, strict=True):
                self._memory[name] = _Place(array, start, start + size)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies, on the CPU, of all that the next step depends on beside the parameters.

        "step" and "lr" (0-d), and one array of a parameter's shape for each thing remembered of
        it, under names such as "first_moment/block4.2.conv1.weight".
        """
        state = {"step": np.array(self.steps, np.int64), "lr": np.array(self.lr, np.float64)}
        for slot, name, array in self._entries():
            state[f"{slot}/{name}"] = np.array(to_device(array, "cpu"))
        return state

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Take up the state of an optimiser of the same kind and parameters, `lr` included.

        A name missing or unknown and a wrong shape are a ValueError; nothing is changed then.
        """
        owner = type(self).__name__
        known = {f"{slot}/{name}": (slot, name) for slot in self.slots for name in self.params}
        # A parameter frozen now may have been trained, and remembered, before.
        later = {name for key, (_, name) in known.items() if key in state}
        needed = [key for key, (_, name) in known.items() if name in self._memory or name in later]
        refuse_names(
            owner,
            missing=[key for key in ("step", "lr", *needed) if key not in state],
            unexpected=[key for key in state if key not in known and key not in ("step", "lr")],
        )
        shapes: dict[str, Tensor | np.ndarray] = {
            "step": np.array(0, np.int64),
            "lr": np.array(0.0),
            **{key: self.params[name] for key, (_, name) in known.items()},
        }
        refuse_arrays(owner, state, shapes)
        if state["step"] < 0:
            raise ValueError(f"state of {owner}: step is {int(state['step'])}, expected >= 0")
        self.lr = float(state["lr"])
        self.steps = int(state["step"])
        self._remember([name for name in self.params if name in later])
        for slot, name, array in self._entries():
            array[...] = array_module(array).asarray(state[f"{slot}/{name}"])

    def _entries(self) -> Iterator[tuple[str, str, Array]]:
        """(slot, parameter name, array), in the order of the parameters."""
        for name, param in self.params.items():
            if name in self._memory:
                array, start, stop = self._memory[name]
                for slot, row in zip(self.slots, array[:, start:stop], strict=True):
                    yield slot, name, row.reshape(param.shape)


class Outcome(NamedTuple):
    """How a guarded step went: the norm of all gradients before clipping; whether there was no
    update, since it is not finite; what the loss had been scaled by."""

    norm: float
    skipped: bool
    scale: float


class LossScaler:
    """Dynamic loss scaling (Micikevicius et al. 2018): gradients in float16 become zero below 6e-8,
    so the loss is multiplied by as much as they bear.

    The scale starts at `scale`, doubles after `growth_steps` good updates in a row (up to 2^24),
    and halves after one whose gradients overflowed, which is skipped.

        scaler.backward(loss)
        outcome = optimizer.guarded_step(scaler=scaler)
    """

    largest = 2.0**24

    def __init__(self, scale: float = 2.0**16, growth_steps: int = 2000) -> None:
        if _number("scale", scale) == 0:
            raise ValueError("scale: expected a positive number, got 0")
        if growth_steps < 1:
            raise ValueError(f"growth_steps: expected an int >= 1, got {growth_steps!r}")
        self.growth_steps = growth_steps
        # The scale, and good updates since it changed; moves to where the losses are.
        self._state: Array = np.array([scale, 0.0])

    @property
    def scale(self) -> float:
        """The scale of the next update; on a GPU asking waits for the device."""
        return float(self._state[0])

    def backward(self, loss: Tensor) -> None:
        """Add d(scale · loss)/d(leaf) to ``.grad`` of every leaf: `Tensor.backward`, scaled."""
        if loss.size != 1:
            raise ValueError(f"loss: expected a scalar, got shape {loss.shape}")
        scale = self.state_beside(loss.data)[:1]
        loss.backward(scale.astype(loss.dtype).reshape(loss.shape))

    def state_beside(self, array: Array) -> Array:
        """Scale and count, float64, on the device of `array`; whoever makes an update there moves
        them on."""
        self._state = array_module(array).asarray(self._state)
        return self._state

    def move(self, skipped: bool) -> None:
        """Take account of an update, on the host."""
        scale, good = (float(value) for value in self._state)
        good = 0 if skipped else good + 1
        if skipped:
            scale /= 2
        elif good >= self.growth_steps:
            scale, good = min(2 * scale, self.largest), 0
        self._state[:] = array_module(self._state).asarray([scale, good])

    def state_dict(self) -> dict[str, np.ndarray]:
        """All that the next update depends on, on the CPU: "scale" and "good_steps" (0-d)."""
        scale, good = to_device(self._state, "cpu")
        return {"scale": np.array(scale), "good_steps": np.array(int(good))}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Take up what `state_dict` gave; ValueError for anything else."""
        names = ("scale", "good_steps")
        refuse_names(type(self).__name__, [n for n in names if n not in state],
                     [n for n in state if n not in names])
        refuse_arrays(type(self).__name__, state, self.state_dict())
        scale, good = float(state["scale"]), int(state["good_steps"])
        if not (0 < scale < math.inf and good >= 0):
            raise ValueError(f"state of {type(self).__name__}: scale {scale}, good_steps {good}")
        self._state[:] = array_module(self._state).asarray([scale, good])


class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015), bias-corrected, with weight decay as an L2 penalty.

    m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g²,
    p = p - lr · m/(1 - beta1^t) / (sqrt(v/(1 - beta2^t)) + eps)

    t counts the optimiser's steps. betas lie in [0, 1), eps is positive: ValueError otherwise.
    """

    slots = ("first_moment", "second_moment")

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self._control: Array | None = None  # on a GPU: what its kernels read and write
        super().__init__(params, lr, weight_decay)
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas: expected two numbers in [0, 1), got {betas!r}")
        if _number("eps", eps) == 0:
            raise ValueError("eps: expected a positive number, got 0")
        self.betas, self.eps = (float(betas[0]), float(betas[1])), float(eps)
        self._tables: dict[np.dtype, cuda.Table] = {}

    @property
    def steps(self) -> int:
        """Updates made. On a GPU, which may skip some by itself, asking waits for the device."""
        return self._steps if self._control is None else int(self._control[cuda.STEPS])

    @steps.setter
    def steps(self, value: int) -> None:
        self._steps = value
        if self._control is not None:
            self._control[cuda.STEPS] = value

    def step(self) -> None:
        if self._on_gpu:
            self._step_on_gpu()
        else:
            super().step()

    def guarded_step(self, max_norm: float | None = None, scaler: LossScaler | None = None
                     ) -> Callable[[], Outcome]:
        if not self._on_gpu:
            return super().guarded_step(max_norm, scaler)
        _check_max_norm(max_norm)
        read = read_later(self._step_on_gpu(True, max_norm, scaler))

        def outcome() -> Outcome:
            norm, skipped, scale = read()[cuda.NORM : cuda.SCALE + 1]
            return Outcome(float(norm), bool(skipped), float(scale))

        return outcome

    @property
    def _on_gpu(self) -> bool:
        return all(_on_gpu(param.data) for param in self.params.values())

    def _step_on_gpu(self, guarded: bool = False, max_norm: float | None = None,
                     scaler: LossScaler | None = None) -> Array:
        """A step of all parameters by a few launches, none of them waited for; `_control`."""
        like = next(iter(self.params.values())).data
        xp = array_module(like)
        if self._control is None:
            self._control = xp.zeros(cuda.CONTROLS, np.float64)
            self._control[cuda.STEPS] = self._steps
        self._control[cuda.LR : cuda.LR + 1].fill(self.lr)
        entries: dict[np.dtype, list[cuda.Entry]] = {}
        for value, grad, (array, start, stop) in self._pieces():
            grad = xp.ascontiguousarray(grad, dtype=value.dtype)
            entry = cuda.Entry(value, grad, *array[:, start:stop])
            entries.setdefault(value.dtype, []).append(entry)
        for dtype, members in entries.items():
            self._tables.setdefault(dtype, cuda.Table()).set(members)
        tables = [(self._tables[dtype], dtype) for dtype in entries]
        partial = cuda.gradient_squares(tables, like) if guarded else None
        state = None if scaler is None else scaler.state_beside(like)
        growth = (1, 1.0) if scaler is None else (scaler.growth_steps, scaler.largest)
        cuda.prepare(self._control, partial, state, self.betas, self.eps, max_norm, *growth)
        for table, dtype in tables:
            cuda.adam(table, dtype, self._control, self.betas, self.weight_decay)
        return self._control

    def update(self, value: Array, grad: Array, *memory: Array, scratch: Array) -> None:
        xp, (m, v), (beta1, beta2) = array_module(value), memory, self.betas
        # Both corrections are moved out of the fraction, which saves a pass over v.
        root = math.sqrt(1 - beta2**self.steps)
        rate = self.lr * root / (1 - beta1**self.steps)
        m *= beta1
        m += xp.multiply(grad, 1 - beta1, out=scratch)
        v *= beta2
        xp.multiply(grad, grad, out=scratch)
        scratch *= 1 - beta2
        v += scratch
        xp.sqrt(v, out=scratch)
        scratch += self.eps * root
        xp.divide(m, scratch, out=scratch)
        scratch *= rate
        value -= scratch


class SGD(Optimizer):
    """Gradient descent with momentum, in PyTorch's convention: the rate is outside the momentum.

    b = momentum b + g,  p = p - lr b,  or with Nesterov's look-ahead p = p - lr (g + momentum b).

    momentum lies in [0, 1), and nesterov needs it positive: ValueError otherwise.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum: expected a number in [0, 1), got {momentum!r}")
        if nesterov and not momentum:
            raise ValueError("nesterov: needs a positive momentum, got momentum 0")
        self.momentum, self.nesterov = float(momentum), bool(nesterov)
        self.slots = ("momentum",) if momentum else ()
        super().__init__(params, lr, weight_decay)

    def update(self, value: Array, grad: Array, *memory: Array, scratch: Array) -> None:
        xp, step = array_module(value), grad
        for b in memory:
            b *= self.momentum
            b += grad
            step = b
            if self.nesterov:
                xp.multiply(b, self.momentum, out=scratch)
                step = xp.add(scratch, grad, out=scratch)
        value -= xp.multiply(step, self.lr, out=scratch)


def _cut(grads: Iterable[np.ndarray]) -> tuple[list[np.ndarray], list[int]]:
    """Gradients as flat blocks, and the blocks' sizes; copies of those that are not contiguous."""
    flat = [grad.reshape(-1) for grad in grads]
    blocks = [g[at : at + _BLOCK] for g in flat for at in range(0, g.size, _BLOCK)]
    return blocks, [block.size for block in blocks]


def _square_sum(block: np.ndarray) -> float:
    wide = scratch("optim wide", block.shape, np.float64)
    wide[...] = block
    return float(np.dot(wide, wide))


def grad_norm(params: Parameters) -> float:
    """The Euclidean norm of all gradients taken as one vector, summed in float64; 0 if none."""
    grads = [param.grad for param in _named(params).values() if param.grad is not None]
    with np.errstate(over="ignore"):  # an infinite norm is an answer
        # Blocks are added in order: the sum does not depend on the number of threads.
        total = sum(_for_each(*_cut(g for g in grads if array_module(g) is np), _square_sum), 0.0)
        for grad in grads:
            xp = array_module(grad)
            if xp is not np:
                total += float(xp.square(grad, dtype=np.float64).sum())
    return math.sqrt(total)


def grad_norms_later(groups: Mapping[str, Iterable[Tensor]]) -> Callable[[], dict[str, float]]:
    """The norm of the gradients of each group of parameters; a function that gives them. On a GPU
    the host need not wait before it calls that, best after the next step was queued. Groups without
    a gradient are left out."""
    grads = {name: found for name, group in groups.items()
             if (found := [p.grad for p in group if p.grad is not None])}
    if not grads:
        return dict
    xp = array_module(next(iter(grads.values()))[0])
    if xp is np:
        norms = {name: math.sqrt(sum(map(_square_sum, _cut(found)[0])))
                 for name, found in grads.items()}
        return lambda: norms
    sums = [xp.stack([xp.square(grad, dtype=np.float64).sum() for grad in found]).sum()
            for found in grads.values()]
    read = read_later(xp.stack(sums))
    return lambda: dict(zip(grads, map(math.sqrt, read()), strict=True))


def clip_grad_norm(params: Parameters, max_norm: float) -> float:
    """Scale all gradients by one factor so that their norm is at most `max_norm`, in place.

    Returns the norm before (`grad_norm`). A norm that is not finite is returned and nothing is
    scaled: whether to skip the update is the caller's to say. max_norm must be positive.
    """
    _check_max_norm(max_norm)
    named = _named(params)
    norm = grad_norm(named.items())
    if max_norm < norm < math.inf:
        factor, flat = max_norm / norm, []
        for param in named.values():
            if isinstance(param.grad, np.ndarray) and param.grad.flags.c_contiguous:
                flat.append(param.grad)
            elif param.grad is not None:
                param.grad *= factor
        _for_each(*_cut(flat), lambda block: np.multiply(block, factor, out=block))
    return norm


# Schedules: pure functions of the step number, so that a resumed run needs none of their state.


@dataclass(frozen=True)
class Constant:
    """The same learning rate at every step."""

    lr: float

    def __post_init__(self) -> None:
        _number("lr", self.lr)

    def __call__(self, step: int) -> float:
        _check_step(step)
        return self.lr


@dataclass(frozen=True)
class Step:
    """lr · factor^k once the k-th of the (rising) `milestones` has been reached."""

    lr: float
    milestones: tuple[int, ...]
    factor: float = 0.1

    def __post_init__(self) -> None:
        _number("lr", self.lr)
        _number("factor", self.factor)
        if not all(a < b for a, b in itertools.pairwise((0, *self.milestones))):
            raise ValueError(f"milestones: expected rising ints > 0, got {self.milestones!r}")

    def __call__(self, step: int) -> float:
        _check_step(step)
        return self.lr * self.factor ** bisect.bisect_right(self.milestones, step)


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from lr at the end of the warm-up down to `final` at step `steps` and after.

    The first `warmup` steps rise linearly: lr·1/warmup, lr·2/warmup, …, lr. Loshchilov and Hutter
    (2017), without restarts.
    """

    lr: float
    steps: int
    warmup: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        _number("lr", self.lr)
        if not 0 <= self.warmup < self.steps:
            raise ValueError(
                f"warmup: expected 0 <= warmup < steps, got {self.warmup} of {self.steps}"
            )
        if not 0 <= self.final <= self.lr:
            raise ValueError(f"final: expected 0 <= final <= lr, got {self.final} and {self.lr}")

    def __call__(self, step: int) -> float:
        _check_step(step)
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = min((step - self.warmup) / (self.steps - self.warmup), 1.0)
        return self.final + (self.lr - self.final) * (1 + math.cos(math.pi * done)) / 2


def _number(argument: str, value: float) -> float:
    """`value` as a float; ValueError unless it is finite and not negative."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{argument}: expected a finite number >= 0, got {value!r}")
    return float(value)


def _check_max_norm(max_norm: float | None) -> None:
    if max_norm is not None and not max_norm > 0:
        raise ValueError(f"max_norm: expected a positive number, got {max_norm!r}")


def _check_step(step: int) -> None:
    if step < 0:
        raise ValueError(f"step: expected an int >= 0, got {step!r}")
