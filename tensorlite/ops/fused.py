"""Operations that do the work of several in one pass over memory.

A batch norm and a relu after a convolution need not be stored: the convolution's output z is, and
whoever reads it applies z * scale + shift and the relu on the way: a `Deferred` activation.
`conv_norm` makes one and reads one, `max_pool2d` reads one, and `block_join` adds deferred and
ordinary terms up to the output of a residual block, which is stored.

They equal the simple ops, which are their definition and what runs within `unfused`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from .. import kernels
from ..autograd import Function, Node
from ..device import Array
from ..kernels.contract import Epilogue, GradSums, Mask, NormGrad, Prologue, Term
from ..precision import products_dtype
from ..recording import state
from ..tensor import Tensor
from .arguments import one_dtype
from .casting import as_dtype, for_products
from .convolution import conv2d, convolution_geometry
from .elementwise import Add
from .elementwise import relu as relu_op
from .normalisation import batch_norm, check_norm, norm_grad_vectors, pooled_moments
from .recurrence import temporal_skip


@contextlib.contextmanager
def unfused() -> Iterator[None]:
    """Within it, fused operations run as the simple ones that they stand for."""
    before, state.fused = state.fused, False
    try:
        yield
    finally:
        state.fused = before


class Norm:
    """What the readers of a deferred activation share: how it is made of z, and what they leave
    behind in the backward walk, the sums that the batch norm's own gradient needs."""

    def __init__(self, relu: bool) -> None:
        self.relu = relu
        self.left: list[GradSums | None] = []

    def set(self, z: Array, mean: Array, inverse: Array, scale: Array, shift: Array) -> None:
        self.z, self.mean, self.inverse = z, mean, inverse
        self.activation = Prologue(scale, shift, self.relu)

    @property
    def mask(self) -> Mask:
        return Mask(self.z, self.activation, self.mean)

    def sums(self, grad: Array, trusted: bool) -> GradSums:
        """The sums of grad, the sum of what the readers sent: theirs, if they left them all."""
        left = [part for part in self.left if part is not None]
        complete = bool(left) and len(left) == len(self.left)
        self.left = []
        if not trusted or not complete:
            return kernels.of(grad).norm_backward_sums(grad, self.z, self.mean)
        total = left[0]
        for part in left[1:]:
            total = GradSums(total.grad + part.grad, total.grad_centred + part.grad_centred)
        return total


class Deferred:
    """A normalised convolution output that is not stored: z * scale + shift, then perhaps relu.

    It has the shape and dtype of its value; `tensor()` makes it an ordinary tensor. On the tape, z
    stands for the norm's output: the gradient that arrives there is d(loss)/d(z * scale + shift).
    """

    def __init__(self, z: Tensor, norm: Norm) -> None:
        self.z, self.norm = z, norm

    @property
    def shape(self) -> tuple[int, ...]:
        return self.z.shape

    @property
    def dtype(self) -> Any:
        return self.z.dtype

    def tensor(self) -> Tensor:
        """The value itself."""
        return Activate.apply(self.z, norm=self.norm)


class Pending:
    """In inference, a convolution whose sum with a residual is still open, so that the convolution
    itself adds it: `finish(residual, relu)` runs it."""

    def __init__(self, shape: tuple[int, ...],
                 finish: Callable[[Tensor | None, bool], Tensor]) -> None:
        self.shape, self.finish = shape, finish

    def tensor(self) -> Tensor:
        """The value without a residual."""
        return self.finish(None, False)


Activation = Tensor | Deferred | Pending


def value_of(x: Activation) -> Tensor:
    """x as an ordinary tensor."""
    return x if isinstance(x, Tensor) else x.tensor()


def source_of(x: Activation) -> tuple[Tensor, Norm | None]:
    """The tensor that a reader of x is applied to, and how to make x of it."""
    return (x.z, x.norm) if isinstance(x, Deferred) else (value_of(x), None)


class Activate(Function):
    """y = relu?(z * scale + shift): a deferred activation stored after all."""

    @staticmethod
    def forward(ctx: Node, z: Array, *, norm: Norm) -> Array:
        scale, shift, relu = norm.activation
        y = kernels.of(z).affine(z, scale, shift, relu)
        ctx.save(y)
        ctx.norm = norm
        return y

    @staticmethod
    def backward(ctx: Node, grad: Array) -> Array:
        (y,) = ctx.saved
        ctx.norm.left.append(None)
        return kernels.of(grad).relu_backward(grad, y) if ctx.norm.relu else grad


class ConvNorm(Function):
    """z = x * W, and the moments of z that make norm(z) = z scale + shift of it.

    With grad = d(loss)/d(norm output): dz = scale grad + slope z + offset (see `BatchNorm`), formed
    while the convolution's two gradients read grad.
    """

    name = "conv_norm"

    @staticmethod
    def forward(ctx: Node, x: Array, weight: Array, gamma: Array, beta: Array, *,
                source: Norm | None, norm: Norm, train: bool, geometry: dict,
                statistics: dict) -> Array:
        weight = as_dtype(weight, x.dtype)
        prologue = None if source is None else source.activation
        z, moments = kernels.of(x).conv2d_forward(x, weight, prologue=prologue, statistics=train,
                                                  **geometry)
        moments = pooled_moments(ctx, moments)
        vectors = kernels.of(x).norm_vectors(moments, gamma, beta, **statistics)
        norm.set(z, *vectors)
        ctx.save(x, weight, z)
        ctx.source, ctx.norm, ctx.geometry = source, norm, geometry
        return z

    @staticmethod
    def backward(ctx: Node, grad: Array) -> tuple[Array | None, ...]:
        x, weight, z = ctx.saved
        source, norm, count = ctx.source, ctx.norm, ctx.count
        dgamma = dbeta = None
        scale = norm.activation.scale
        norm_grad = NormGrad(None, scale, None, None)
        if count is not None or any(ctx.needs[2:]):
            sums = norm.sums(grad, trusted=not ctx.hooks)
            dbeta = sums.grad
            if count is None:
                dgamma = sums.grad_centred * norm.inverse
            else:
                dgamma, slope, offset = norm_grad_vectors(
                    ctx, sums, norm.mean, norm.inverse, scale)
                norm_grad = NormGrad(z, scale, slope, offset)
        norm.left.clear()
        dx, left, dw = kernels.of(grad).conv2d_backward(
            x, grad, weight, needs=ctx.needs[:2], norm_grad=norm_grad,
            prologue=None if source is None else source.activation,
            mask=None if source is None else source.mask, **ctx.geometry)
        if source is not None and ctx.needs[0]:
            source.left.append(left)
        return dx, dw, dgamma, dbeta


def conv_norm(x: Activation, weight: Tensor, gamma: Tensor, beta: Tensor, running_mean: Array,
              running_var: Array, *, relu: bool = False, stride: Any = 1, padding: Any = 0,
              dilation: Any = 1, mode: str = "train", momentum: float = 0.1,
              eps: float = 1e-5, kept: dict[str, Array] | None = None) -> Activation:
    """``batch_norm(conv2d(x, weight), …)``, then relu if asked, without storing them.

    x (N, H, W, C_in) is a tensor or the result of another conv_norm; see `conv2d` and `batch_norm`
    for the rest. The result is read by conv_norm, `max_pool2d` and `block_join`; ``.tensor()``, or
    `value_of`, makes it an ordinary tensor. In inference (`no_grad`, mode ``"eval"``) the norm is
    part of the convolution and nothing is kept, except in the dictionary `kept` what can be
    computed once as long as no argument but x changes.
    """
    norms = {"running_mean": running_mean, "running_var": running_var, "momentum": momentum,
             "eps": eps}
    if not state.fused:
        y = batch_norm(conv2d(value_of(x), weight, None, stride, padding, dilation), gamma, beta,
                       mode=mode, **norms)
        return relu_op(y) if relu else y
    tensor, source = source_of(x)
    tensor = for_products(tensor)
    geometry, shape = convolution_geometry(tensor, weight, None, stride, padding, dilation, 1)
    one_dtype(tensor, gamma=gamma, beta=beta)
    norms["running_mean"], norms["running_var"] = check_norm(shape, gamma, beta, running_mean,
                                                             running_var, mode)
    if mode == "eval" and not state.recording:
        def finish(residual: Tensor | None, relu: bool) -> Tensor:
            return FoldedConvNorm.apply(tensor, weight, gamma, beta, residual, relu=relu,
                                        source=source, geometry=geometry, statistics=norms,
                                        kept=kept)
        return finish(None, True) if relu else Pending(shape, finish)
    norm = Norm(relu)
    z = ConvNorm.apply(tensor, weight, gamma, beta, source=source, norm=norm, train=mode == "train",
                       geometry=geometry, statistics=norms)
    return Deferred(z, norm)


class FoldedConvNorm(Function):
    """y = relu?(norm(x * W) + residual) by running statistics, for inference only: the norm's scale
    and shift, the residual and the relu are applied to the convolution's output in the cache."""

    name = "folded_conv_norm"

    @staticmethod
    def forward(ctx: Node, x: Array, weight: Array, gamma: Array, beta: Array,
                residual: Array | None, *, relu: bool, source: Norm | None, geometry: dict,
                statistics: dict, kept: dict[str, Array] | None) -> Array:
        if kept is None or "shift" not in kept:
            _, _, scale, shift = kernels.of(x).norm_vectors(None, gamma, beta, **statistics)
            if kept is not None:
                kept["weight"], kept["shift"] = as_dtype(weight * scale, x.dtype), shift
        if kept is not None:
            weight, scale, shift = kept["weight"], None, kept["shift"]
        weight = as_dtype(weight, x.dtype)
        y, _ = kernels.of(x).conv2d_forward(
            x, weight, prologue=None if source is None else source.activation,
            epilogue=Epilogue(scale, shift, residual, relu), kept=kept, **geometry)
        return y

    @staticmethod
    def backward(ctx: Node, grad: Array) -> tuple[Array | None, ...]:
        raise RuntimeError("folded_conv_norm: runs in inference, where nothing is kept")


class BlockJoin(Function):
    """y_t = relu(residual_t + skip_t + before_{t-1}), before_0 = 0, of deferred or ordinary terms.

    grad (y > 0) goes to each of them, a frame earlier to `before`.
    """

    name, roles = "block_join", ("residual branch", "spatial skip", "temporal skip")

    @staticmethod
    def forward(ctx: Node, *arrays: Array, norms: tuple[Norm | None, ...],
                offsets: tuple[int, ...], chunks: int) -> Array:
        y = kernels.of(arrays[0]).join_forward(_terms(arrays, norms, offsets), chunks)
        ctx.save(y, *arrays)
        ctx.norms, ctx.offsets, ctx.chunks = norms, offsets, chunks
        return y

    @staticmethod
    def backward(ctx: Node, grad: Array) -> tuple[Array, ...]:
        y, *arrays = ctx.saved
        means = [None if norm is None else norm.mean for norm in ctx.norms]
        results = kernels.of(grad).join_backward(
            grad, y, _terms(arrays, ctx.norms, ctx.offsets), means, ctx.chunks)
        for norm, (_, sums) in zip(ctx.norms, results, strict=True):
            if norm is not None:
                norm.left.append(sums)
        return tuple(dx for dx, _ in results)


def _terms(arrays: Any, norms: tuple[Norm | None, ...], offsets: tuple[int, ...]) -> list[Term]:
    return [Term(array, None if norm is None else norm.activation, offset)
            for array, norm, offset in zip(arrays, norms, offsets, strict=True)]


def block_join(residual: Activation, skip: Activation, before: Activation | None = None, *,
               frames: int = 1, first_left_out: bool = False) -> Tensor:
    """The output of a residual block: relu(residual + skip), (N, H, W, C).

    In a recurrent block the N images are chunks of `frames` frames, and `before` is what each frame
    passes on to the next of its chunk (Iqbal et al. 2017, eq. 2); it may lack the last frame. With
    `first_left_out`, residual and output lack the first frame of each chunk, skip may.
    """
    left_out = int(first_left_out)
    kept = frames - left_out
    shape = residual.shape
    chunks = shape[0] // kept
    for name, term, counts in (("residual", residual, (kept,)), ("skip", skip, (kept, frames)),
                               ("before", before, (frames, frames - 1))):
        expected = [(chunks * count, *shape[1:]) for count in counts]
        if term is not None and term.shape not in expected:
            raise ValueError(f"{name}: got shape {term.shape}, expected {expected[-1]} beside a "
                             f"residual of shape {shape} in chunks of {frames} frames")
    if frames == 1:
        before = None
    if products_dtype() is not None:  # beside a convolution's output the terms are as it is
        residual, skip = _for_products(residual), _for_products(skip)
        before = None if before is None else _for_products(before)
    if not state.fused:
        return _simple_join(value_of(residual), value_of(skip),
                            None if before is None else value_of(before), frames, left_out)
    if isinstance(skip, Pending):
        value = skip.tensor()
        skip, before = value, value if before is skip else before
    if isinstance(residual, Pending) and before is None and skip.shape == shape:
        return residual.finish(value_of(skip), True)
    terms: list[tuple[Activation, int]]
    terms = [(residual, 0), (skip, 0 if skip.shape == shape else -left_out)]
    if before is not None:
        terms.append((before, 1 - left_out))
    sources = [source_of(term) for term, _ in terms]
    return BlockJoin.apply(*(tensor for tensor, _ in sources), chunks=chunks,
                           norms=tuple(norm for _, norm in sources),
                           offsets=tuple(offset for _, offset in terms))


def _for_products(x: Activation) -> Activation:
    return for_products(x) if isinstance(x, Tensor) else x


class _Join(Add):
    """residual + skip."""

    name, roles = "add", ("residual branch", "spatial skip")


class _JoinBefore(Add):
    """y + before, where the first frame of each chunk has been left out."""

    name, roles = "add", (None, "temporal skip")


def _simple_join(residual: Tensor, skip: Tensor, before: Tensor | None, frames: int,
                 left_out: int) -> Tensor:
    if skip.shape != residual.shape:
        chunks = skip.reshape(-1, frames, *skip.shape[1:])
        skip = chunks[:, left_out:].reshape(residual.shape)
    y = _Join.apply(residual, skip)
    if before is None:
        return relu_op(y)
    if left_out and before.shape == y.shape:
        return relu_op(_JoinBefore.apply(y, before))
    return relu_op(temporal_skip(y, before, frames))
