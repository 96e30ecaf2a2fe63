"""Batch normalisation (Ioffe and Szegedy 2015), channels last."""

from __future__ import annotations

import math

from .. import kernels
from ..autograd import Function, Node
from ..device import Array, array_module
from ..kernels.contract import GradSums, Moments
from ..recording import state
from ..tensor import Tensor
from .arguments import one_dtype

MODES = ("train", "frozen", "eval")


class BatchNorm(Function):
    """y = γ x̂ + β, x̂ = (x - μ) / √(σ² + ε), for each channel.

    dβ = Σ grad and dγ = Σ grad x̂. Where μ and σ² are those of the batch of m values, they depend
    on x as well:  dx = γ / √(σ² + ε) (grad - dβ / m - x̂ dγ / m);  where they are the running ones,
    dx = γ / √(σ² + ε) grad.
    """

    name = "batch_norm"

    @staticmethod
    def forward(ctx: Node, x: Array, gamma: Array, beta: Array, *, running_mean: Array,
                running_var: Array, mode: str, momentum: float, eps: float) -> Array:
        kernel = kernels.of(x)
        moments = pooled_moments(ctx, kernel.moments(x) if mode == "train" else None)
        mean, inverse, scale, shift = kernel.norm_vectors(moments, gamma, beta, running_mean,
                                                          running_var, momentum, eps)
        ctx.save(x, mean, inverse, scale)
        return kernel.affine(x, scale, shift)

    @staticmethod
    def backward(ctx: Node, grad: Array) -> tuple[Array | None, ...]:
        x, mean, inverse, scale = ctx.saved
        kernel = kernels.of(grad)
        if ctx.count is None and not any(ctx.needs[1:]):
            return kernel.affine(grad, scale, array_module(grad).zeros_like(scale)), None, None
        sums = kernel.norm_backward_sums(grad, x, mean)
        if ctx.count is None:
            dgamma, slope = sums.grad_centred * inverse, array_module(grad).zeros_like(scale)
            offset = slope
        else:
            dgamma, slope, offset = norm_grad_vectors(ctx, sums, mean, inverse, scale)
        dx = kernel.norm_backward(grad, x, scale, slope, offset) if ctx.needs[0] else None
        return dx, dgamma, sums.grad


def pooled_moments(ctx: Node, moments: Moments | None) -> Moments | None:
    """What a norm goes by: `moments` of its batch or, within a `distributed.NormPool`, those of all
    ranks' batches; None without any. Keeps on `ctx` what its backward will need."""
    ctx.pool = None if moments is None else state.pool
    if ctx.pool is not None:
        moments = ctx.pool.moments(moments)
    ctx.count = None if moments is None else moments.count
    return moments


def norm_grad_vectors(ctx: Node, sums: GradSums, mean: Array, inverse: Array,
                      scale: Array) -> tuple[Array, Array, Array]:
    """The kernel of this name, for a norm by `pooled_moments`: slope and offset come of all ranks'
    sums, the gradient to gamma of this rank's alone."""
    kernel = kernels.of(scale)
    whole = sums if ctx.pool is None else ctx.pool.sums(sums)
    dgamma, slope, offset = kernel.norm_grad_vectors(whole, mean, inverse, scale, ctx.count)
    return dgamma if ctx.pool is None else sums.grad_centred * inverse, slope, offset


def batch_norm(x: Tensor, gamma: Tensor, beta: Tensor, running_mean: Array, running_var: Array,
               mode: str = "train", momentum: float = 0.1, eps: float = 1e-5) -> Tensor:
    """Normalise each channel of `x`, then scale by `gamma` and shift by `beta`.

    x (..., C); gamma, beta (C,); running_mean, running_var (C,): arrays, not tensors.
    mode ``"train"``: by the mean and variance over all leading axes of x; the running statistics
        move by `momentum` towards them, in place (the variance towards the unbiased one).
    mode ``"frozen"`` or ``"eval"``: by the running statistics, which stay as they are. The two are
        one formula; ``"frozen"`` says that it is used in training, gamma and beta being trained.

    Raises ValueError for wrong shapes, an unknown mode, or one value per channel in mode train.
    """
    one_dtype(x, gamma=gamma, beta=beta)
    running_mean, running_var = check_norm(x.shape, gamma, beta, running_mean, running_var, mode)
    return BatchNorm.apply(x, gamma, beta, running_mean=running_mean, running_var=running_var,
                           mode=mode, momentum=momentum, eps=eps)


def check_norm(shape: tuple[int, ...], gamma: Tensor, beta: Tensor, running_mean: Array,
               running_var: Array, mode: str) -> tuple[Array, Array]:
    """Check what a batch norm of an x of `shape` is given; the running statistics as arrays."""
    running_mean, running_var = (r.data if isinstance(r, Tensor) else r
                                 for r in (running_mean, running_var))
    for name, t in (("gamma", gamma), ("beta", beta), ("running_mean", running_mean),
                    ("running_var", running_var)):
        if t.shape != shape[-1:]:
            raise ValueError(f"{name}: expected shape {shape[-1:]} for x of shape {shape}, "
                             f"got {t.shape}")
    if mode not in MODES:
        raise ValueError(f"mode: got {mode!r}, expected one of {', '.join(MODES)}")
    if mode == "train" and math.prod(shape[:-1]) <= 1:
        raise ValueError("batch_norm: mode 'train' needs more than one value per channel, got x "
                         f"of shape {shape}")
    return running_mean, running_var
