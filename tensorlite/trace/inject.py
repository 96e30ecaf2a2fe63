"""Bugs to hunt: `inject` breaks one thing on purpose, in all programs that run within it.

Each is a mistake that is easily made, raises no error and changes no shape. It is made by swapping
one function of the engine for a wrong one, where the engine looks it up, so that nothing else
changes and taking it back leaves the engine as it was. What each does to training is measured in
docs/bugs.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tensorlite import autograd, kernels
from tensorlite.autograd import Function, Node
from tensorlite.device import Array, array_module
from tensorlite.ops.casting import Cast
from tensorlite.ops.convolution import Conv2d
from tensorlite.ops.elementwise import Add, ReLU
from tensorlite.ops.fused import unfused
from tensorlite.ops.linear import Linear, MatMul
from tensorlite.ops.normalisation import BatchNorm
from tensorlite.ops.recurrence import GRU, TemporalSkip
from tensorlite.ops.shape import Index, Reshape, Transpose
from tensorlite.recording import Observer, observe, state
from tensorlite.tensor import Tensor

Backward = Callable[[Node, Array], Any]


@dataclass(frozen=True)
class Bug:
    """A mistake that `inject` makes: the formula as it should be and as it becomes; where it shows,
    in the gradients that one "op" sends or in a "sum"; and a paragraph about it."""

    name: str
    title: str
    right: str
    wrong: str
    shows: str
    description: str


BUGS: dict[str, Bug] = {bug.name: bug for bug in (
    Bug("no-accumulation", "No accumulation where paths meet",
        "dL/dx = Σ over all uses of x of what each sends back",
        "dL/dx = what the last of them sends back", "sum",
        "A tensor that is used more than once gets a piece of gradient from each use, and its "
        "gradient is their sum. Here a piece that arrives later takes the place of the sum so far: "
        "an assignment where an addition belongs. A plain chain of layers uses everything once and "
        "trains as before; a skip connection, a weight shared between frames or a value used twice "
        "loses all paths but one."),
    Bug("same-frame", "Recurrent weight paired with the same frame",
        "dL/dW = Σ_t x_{t-1}ᵀ e_t", "dL/dW = Σ_t x_tᵀ e_t", "op",
        "A recurrent weight W takes what the frame before holds, x_{t-1}, into frame t, where the "
        "error e_t comes back to it. Here e_t is paired with x_t, the frame that the error comes "
        "from, instead of the one that the weight was applied to. It goes for the weight of a "
        "convolution, a linear layer or a product with the frames of a chunk but the last, or "
        "with all of them before a temporal skip, and for the recurrent weight of a GRU, whose "
        "e_t meets h_t. Frames that follow each other look alike, and so do the two gradients; "
        "and the gradients of all else are right."),
    Bug("norm-means", "Batch norm's gradient without its mean terms",
        "dx = γ / √(σ² + ε) (g - mean(g) - x̂ mean(g x̂))", "dx = γ / √(σ² + ε) g", "op",
        "In training the mean and the variance that a batch norm divides by are those of the "
        "batch: they depend on x, and that is what the two mean terms are the gradient of. Here "
        "they are taken for constants, as they are in inference. The gradients of γ and β stay "
        "right, and so does dx where the gradient that comes in has no mean and no correlation "
        "with x̂. A check with a cotangent of ones sees the opposite of the truth: there the right "
        "dx is 0."),
    Bug("broadcast", "Broadcast sum forgotten",
        "db = Σ_n g_n for b added to each of n rows", "db = g_0", "op",
        "Where an op repeats an input along an axis to make it fit, as a bias is repeated for each "
        "row of the batch, the input's gradient is the sum over the repetitions. Here it is that "
        "of the first one alone. The shape is right, and for a batch of one all is right; with "
        "more the gradient is that of one example, too small and noisy. (The biases inside linear "
        "layers and convolutions are summed elsewhere and are not concerned.)"),
    Bug("padding", "Padding off by one pixel",
        "dx[i] = dx_padded[i + p]", "dx[i] = dx_padded[i + p - 1]", "op",
        "The gradient to a convolution's input is found for the padded image, and the border of p "
        "pixels is cut off. Here the cut starts one pixel early, in each direction that is padded: "
        "all that goes back to x is shifted by a pixel. The gradients of the weights of this layer "
        "are right, those of the layers before it are made of errors that belong one pixel further "
        "on, one more for each such layer that they have passed."),
)}


@contextlib.contextmanager
def inject(name: str) -> Iterator[Bug]:
    """Break one thing on purpose within it: one of `BUGS`, or else ValueError.

    It runs the simple ops, not the fused ones, whose gradients are formed elsewhere. Injections may
    be nested.
    """
    if name not in BUGS:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(BUGS)}")
    with unfused(), _INJECTIONS[name]():
        yield BUGS[name]


@contextlib.contextmanager
def _swapped(place: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """Within it, ``place.name`` is what `make` makes of it."""
    before = place.__dict__[name]  # as it is: a static method stays one
    is_static = isinstance(before, staticmethod)
    after = make(before.__func__ if is_static else before)
    setattr(place, name, staticmethod(after) if is_static else after)
    try:
        yield
    finally:
        setattr(place, name, before)


def _no_accumulation() -> contextlib.AbstractContextManager[None]:
    def make(right: Callable[..., None]) -> Callable[..., None]:
        def add(self: autograd._Sums, target: Node | Tensor, piece: Array, fresh: bool) -> None:
            before = self._sums.pop(target, None)
            self._owned.discard(target)
            if before is None:
                right(self, target, piece, fresh)
                return
            self._sums[target] = piece
            state.tell("accumulate", target, before, piece, piece)

        return add

    # The one place where pieces are added up.
    return _swapped(autograd._Sums, "add", make)


def _norm_means() -> contextlib.AbstractContextManager[None]:
    def make(right: Backward) -> Backward:
        def backward(ctx: Node, grad: Array) -> tuple[Array | None, ...]:
            dx, *others = right(ctx, grad)
            _, _, _, scale = ctx.saved
            return (None if dx is None else grad * scale, *others)

        return backward

    return _swapped(BatchNorm, "backward", make)


@contextlib.contextmanager
def _broadcast() -> Iterator[None]:
    def make(_: Any) -> Callable[[Array, tuple[int, ...]], Array]:
        def unbroadcast(grad: Array, shape: tuple[int, ...]) -> Array:
            if 0 in grad.shape:  # nothing to take a slice of
                return array_module(grad).zeros(shape, grad.dtype)
            first = grad[(0,) * (grad.ndim - len(shape))]
            return first[tuple(slice(n) for n in shape)]

        return unbroadcast

    # The ops of both files look it up by its name there. (``ops.linear`` is the function.)
    files = {sys.modules[function.__module__] for function in (Add, MatMul)}
    with contextlib.ExitStack() as stack:
        for file in files:
            stack.enter_context(_swapped(file, "unbroadcast", make))
        yield


def _padding() -> contextlib.AbstractContextManager[None]:
    def make(right: Backward) -> Backward:
        def backward(ctx: Node, grad: Array) -> tuple[Array | None, ...]:
            dx, *others = right(ctx, grad)
            (high, wide), (x, weight) = ctx.geometry["padding"], ctx.saved
            if dx is None or not (high or wide):
                return (dx, *others)
            # With the innermost ring of the padding in the image, the same convolution gives the
            # gradient of that ring too; the wrong cut takes its first row and column along.
            rows, columns = int(high > 0), int(wide > 0)
            ring = array_module(x).pad(x, ((0, 0), (rows, rows), (columns, columns), (0, 0)))
            geometry = {**ctx.geometry, "padding": (high - rows, wide - columns)}
            around, _, _ = kernels.of(grad).conv2d_backward(ring, grad, weight,
                                                            needs=(True, False), **geometry)
            return (around[:, : x.shape[1], : x.shape[2]], *others)

        return backward

    return _swapped(Conv2d, "backward", make)


# The recurrent weight


class _Cut(NamedTuple):
    """A part of `source` along one axis: a slice or an index; path: the ops since, which only
    rearranged it."""

    source: Tensor
    axis: int
    part: Any
    path: list[Node]

    def other(self, part: Any) -> Array:
        """Another part of the source, rearranged likewise."""
        return _along(self.path, self.source.data[(*[slice(None)] * self.axis, part)])


class _Recurrences(Observer):
    """Finds, as a walk begins, the ops that apply a weight to the frame before: `later` has for
    each of them the slots of frames and weight and the frames one later, of the same shape."""

    def __init__(self) -> None:
        self.later: dict[Node, tuple[int, int, Array]] = {}
        # The tape knows what made a tensor only where a gradient passes: not for frames of data.
        self._made: weakref.WeakKeyDictionary[Tensor, Node] = weakref.WeakKeyDictionary()

    def forward(self, node: Node, output: Tensor) -> None:
        if node.function in (Index, Reshape, Transpose, Cast):
            self._made[output] = node

    def start(self, root: Tensor, grad: Array, nodes: Sequence[Node]) -> None:
        self.later.clear()
        uses: dict[Tensor, int] = {}
        for node in nodes:
            for tensor in node.inputs:
                if tensor is not None:
                    uses[tensor] = uses.get(tensor, 0) + 1
        applied = {node: slots for node in nodes if (slots := _slots(node)) is not None}
        self._find_cut(applied)
        self._find_steps(applied)
        for node in nodes:
            if node.function is TemporalSkip:
                self._find_before_skip(node, applied, uses)

    def _find_cut(self, applied: dict[Node, tuple[int, int]]) -> None:
        """x[:, :-1], or the same of another axis: the frames one later are x[:, 1:]."""
        for node, (slot, weight) in applied.items():
            cut = self._cut(_input(node, slot))
            if cut is None or not isinstance(cut.part, slice):
                continue
            length = cut.source.shape[cut.axis]
            if cut.part.indices(length) == (0, length - 1, 1) and length > 1:
                self.later[node] = slot, weight, cut.other(slice(1, None))

    def _find_steps(self, applied: dict[Node, tuple[int, int]]) -> None:
        """x[:, t - 1] for each t but the first, with one weight: x[:, t]. (Weights that are applied
        to every frame, the last included, are not recurrent.)"""
        steps: dict[tuple[Tensor, Tensor, int], dict[Node, tuple[int, _Cut]]] = {}
        for node, (slot, weight) in applied.items():
            cut = self._cut(_input(node, slot))
            if cut is not None and not isinstance(cut.part, slice):
                group = steps.setdefault((_input(node, weight), cut.source, cut.axis), {})
                group[node] = int(cut.part) % cut.source.shape[cut.axis], cut
        for (_, source, axis), group in steps.items():
            if {t for t, _ in group.values()} == set(range(source.shape[axis] - 1)):
                for node, (t, cut) in group.items():
                    self.later[node] = *applied[node], cut.other(t + 1)

    def _cut(self, x: Tensor) -> _Cut | None:
        """How x was taken out of a larger tensor, if along one axis."""
        path: list[Node] = []
        while (node := self._made.get(x)) is not None and node.function is not Index:
            path.insert(0, node)
            x = _input(node, 0)
        if node is None:
            return None
        key = _as_tuple(node.options["key"])
        axes = [axis for axis, part in enumerate(key) if part != slice(None)]
        return _Cut(_input(node, 0), axes[0], key[axes[0]], path) if len(axes) == 1 else None

    def _find_before_skip(self, skip: Node, applied: dict[Node, tuple[int, int]],
                          uses: dict[Tensor, int]) -> None:
        """All frames, before a temporal skip takes them one frame on; the last has none later and
        stays."""
        tensor, frames = _input(skip, 1), skip.options["frames"]
        if len(tensor) != len(_input(skip, 0)):
            return
        while tensor.node is not None and uses[tensor] == 1:
            node = tensor.node
            if node in applied and node not in self.later:
                slot, weight = applied[node]
                x = _input(node, slot).data
                if len(x) == len(tensor) and len(x) % frames == 0:
                    later = x.reshape(-1, frames, *x.shape[1:]).copy()
                    later[:, :-1] = later[:, 1:].copy()
                    self.later[node] = slot, weight, later.reshape(x.shape)
                return
            if node.function not in (BatchNorm, ReLU, Cast):
                return
            tensor = _input(node, 0)


def _input(node: Node, slot: int) -> Tensor:
    tensor = node.inputs[slot]
    assert tensor is not None  # none of the ops here can do without
    return tensor


def _slots(node: Node) -> tuple[int, int] | None:
    """Which input is what a weight is applied to, and which is the weight: a leaf."""
    if not issubclass(node.function, Conv2d | Linear | MatMul):
        return None
    orders = [(0, 1), (1, 0)] if issubclass(node.function, MatMul) else [(0, 1)]
    for slot, weight in orders:
        leaf = _input(node, weight)
        if leaf.node is None and leaf.requires_grad:
            return slot, weight
    return None


def _as_tuple(key: Any) -> tuple[Any, ...]:
    keys = key if isinstance(key, tuple) else (key,)
    basic = all(isinstance(part, slice | int | np.integer) for part in keys)
    return keys if basic else ()


def _along(path: Sequence[Node], array: Array) -> Array:
    """`array` through the ops of `path`."""
    for node in path:
        array = node.function.forward(Node(node.function, (), node.options), array, **node.options)
    return array


@contextlib.contextmanager
def _same_frame() -> Iterator[None]:
    found = _Recurrences()

    def make(right: Backward) -> Backward:
        def backward(ctx: Node, grad: Array) -> tuple[Array | None, ...]:
            grads = list(right(ctx, grad))
            if ctx in found.later:
                slot, weight, frames = found.later[ctx]
                # The same op applied to the frames one later: its weight's gradient pairs them.
                tensors = [*ctx.inputs]
                tensors[slot] = Tensor(frames)
                paired = Node(ctx.function, tuple(tensors), ctx.options)
                paired.recording = True
                ctx.function.forward(paired, *(None if t is None else t.data for t in tensors),
                                     **ctx.options)
                grads[weight] = right(paired, grad)[weight]
            return tuple(grads)

        return backward

    def make_gru(right: Backward) -> Backward:
        def backward(ctx: Node, grad: Array) -> tuple[Array | None, ...]:
            dx, dw_ih, _, *others = right(ctx, grad)
            return (dx, dw_ih, _paired_with_itself(ctx, grad), *others)

        return backward

    classes: list[type[Function]] = [Conv2d, Linear, MatMul]
    with contextlib.ExitStack() as stack:
        stack.enter_context(observe(found))
        for function in classes:
            stack.enter_context(_swapped(function, "backward", make))
        stack.enter_context(_swapped(GRU, "backward", make_gru))
        yield


def _paired_with_itself(ctx: Node, grad: Array) -> Array:
    """Σ_t h_tᵀ e_t for the recurrent weight of a GRU, e_t being the error at h_{t-1} W_hh."""
    x, lengths, w_ih, w_hh, h, *_ = ctx.saved
    b_ih, b_hh = _input(ctx, 3).data, _input(ctx, 4).data
    xp = array_module(x)
    live = xp.asarray(np.arange(x.shape[1]) < lengths[:, None])[..., None]
    steps = []
    for t in range(x.shape[1]):
        (xr, xz, xn), (hr, hz, hn) = (xp.split(a, 3, axis=1) for a in (
            x[:, t] @ w_ih + b_ih, h @ w_hh + b_hh))
        r, z = (0.5 * (1 + xp.tanh(0.5 * a)) for a in (xr + hr, xz + hz))
        n = xp.tanh(xn + r * hn)
        after = xp.where(live[:, t], (1 - z) * n + z * h, h)
        steps.append((h, r, z, n, hn, after))
        h = after
    result, dh = xp.zeros_like(w_hh), xp.zeros_like(h)
    for t in reversed(range(x.shape[1])):
        h, r, z, n, hn, after = steps[t]
        dh = dh + xp.where(live[:, t], grad[:, t], 0)
        dn = dh * (1 - z) * (1 - n * n)
        errors = xp.concatenate([dn * hn * r * (1 - r), dh * (h - n) * z * (1 - z), dn * r], 1)
        errors = xp.where(live[:, t], errors, 0)
        result += after.T @ errors  # where h.T belongs
        dh = xp.where(live[:, t], dh * z + errors @ w_hh.T, dh)
    return result


_INJECTIONS: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
    "no-accumulation": _no_accumulation, "same-frame": _same_frame, "norm-means": _norm_means,
    "broadcast": _broadcast, "padding": _padding}
