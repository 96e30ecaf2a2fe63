"""Batch normalisation (Ioffe and Szegedy 2015), channels last."""

from __future__ import annotations

from .. import kernels
from ..autograd import Function, Node
from ..device import Array, array_module
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
        if mode == "train":
            count, mean, m2 = kernels.of(x).moments(x)
            var = m2 / count
            # In place: the running statistics belong to the caller.
            running_mean += momentum * (mean - running_mean)
            running_var += momentum * (m2 / (count - 1) - running_var)
            ctx.count = count
        else:
            # Copies: a later update must not reach back into this op.
            mean, var = running_mean.astype(x.dtype), running_var.astype(x.dtype)
            ctx.count = None
        inverse = 1 / array_module(x).sqrt(var + eps)
        scale = gamma * inverse
        ctx.save(x, mean, inverse, scale)
        return kernels.of(x).affine(x, scale, beta - mean * scale)

    @staticmethod
    def backward(ctx: Node, grad: Array) -> tuple[Array | None, ...]:
        x, mean, inverse, scale = ctx.saved
        kernel = kernels.of(grad)
        if ctx.count is None and not any(ctx.needs[1:]):
            return kernel.affine(grad, scale, array_module(grad).zeros_like(scale)), None, None
        sums = kernel.norm_backward_sums(grad, x, mean)
        dgamma, dbeta = sums.grad_centred * inverse, sums.grad
        dx = None
        if ctx.needs[0]:
            slope = offset = array_module(grad).zeros_like(scale)
            if ctx.count is not None:
                slope = -scale * inverse * dgamma / ctx.count
                offset = -scale * dbeta / ctx.count - slope * mean
            dx = kernel.norm_backward(grad, x, scale, slope, offset)
        return dx, dgamma, dbeta


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
    channels = x.shape[-1:]
    running_mean, running_var = (r.data if isinstance(r, Tensor) else r
                                 for r in (running_mean, running_var))
    for name, t in (("gamma", gamma), ("beta", beta), ("running_mean", running_mean),
                    ("running_var", running_var)):
        if t.shape != channels:
            raise ValueError(f"{name}: expected shape {channels} for x of shape {x.shape}, "
                             f"got {t.shape}")
    one_dtype(x, gamma=gamma, beta=beta)
    if mode not in MODES:
        raise ValueError(f"mode: got {mode!r}, expected one of {', '.join(MODES)}")
    if mode == "train" and x.size <= x.shape[-1]:
        raise ValueError("batch_norm: mode 'train' needs more than one value per channel, got x "
                         f"of shape {x.shape}")
    return BatchNorm.apply(x, gamma, beta, running_mean=running_mean, running_var=running_var,
                           mode=mode, momentum=momentum, eps=eps)
