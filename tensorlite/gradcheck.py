"""Numerical against analytic gradients: how the engine is tested, and how to test one's own ops."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .tensor import Tensor

# Five-point central differences at this step: the truncation error is of order step^4 and rounding
# costs about 1e-16 / step, so both stay near 1e-12 of the function's own size.
STEP = 1e-4


class GradientError(AssertionError):
    """An analytic gradient differs from the numerical one."""


def numerical_gradient(function: Callable[[], float], array: np.ndarray,
                       where: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
    """d(function)/d(array) by central differences, one element of `array` after the other.

    array: float64; changed and put back. where: flat indices to do (all by default); the result
    has one value for each.
    """
    flat = array.reshape(-1)
    if not np.shares_memory(flat, array) and array.size:
        raise ValueError("array: must be contiguous")
    indices = range(flat.size) if where is None else where
    result = np.empty(len(indices))
    for k, i in enumerate(indices):
        x = flat[i]
        h = STEP * max(1.0, abs(x))
        values = []
        for offset in (h, -h, 2 * h, -2 * h):
            flat[i] = x + offset
            values.append(function())
        flat[i] = x
        result[k] = (8 * (values[0] - values[1]) - (values[2] - values[3])) / (12 * h)
    return result


def gradcheck(function: Callable[..., Tensor], inputs: Sequence[Tensor | np.ndarray], *,
              rtol: float = 1e-6, atol: float = 1e-8, samples: int | None = None,
              seed: int = 0) -> float:
    """Compare the gradients of ``function(*inputs)`` with central differences, in float64.

    The output is weighted with a random cotangent: a plain sum would hide errors such as a batch
    norm's, whose gradient for a constant cotangent is zero.

    function: takes and returns tensors, is smooth near the inputs, and gives the same each time.
    inputs: tensors or arrays; checked at a float64 copy. Those of integers are passed as they are.
    samples: how many elements of each input to check, drawn at random; all by default.
    Returns the largest difference in units of what is tolerated, at most 1.
    Raises GradientError, naming input and element, where |analytic - numeric| exceeds
    ``atol + rtol * |numeric|``, and TypeError or ValueError for what cannot be checked.
    """
    if isinstance(inputs, Tensor | np.ndarray):  # whose rows would be the inputs
        raise TypeError(f"inputs: expected a sequence of tensors or arrays, got one "
                        f"{type(inputs).__name__} of shape {inputs.shape}")
    if samples is not None and samples < 1:
        raise ValueError(f"samples: expected an int >= 1, got {samples!r}")
    rng = np.random.default_rng(seed)
    arrays = [np.array(t.numpy() if isinstance(t, Tensor) else t, order="C") for t in inputs]
    checked = [i for i, a in enumerate(arrays) if a.dtype.kind == "f"]
    arrays = [a.astype(np.float64) if i in checked else a for i, a in enumerate(arrays)]
    if not checked:
        raise ValueError("inputs: none is of a floating-point dtype")

    tensors = [Tensor(a, requires_grad=i in checked) for i, a in enumerate(arrays)]
    output = function(*tensors)
    if not isinstance(output, Tensor):
        raise TypeError(f"function: expected it to return a Tensor, got {type(output).__name__}")
    if output.dtype != np.float64:
        raise TypeError(f"function: returned {output.dtype} for float64 inputs")
    cotangent = rng.standard_normal(output.shape)
    if output.requires_grad:
        output.backward(cotangent)

    def value() -> float:
        return float((function(*(Tensor(a) for a in arrays)).data * cotangent).sum())

    worst = 0.0
    for i in checked:
        size = arrays[i].size
        where = None if samples is None or samples >= size else rng.choice(size, samples, False)
        numeric = numerical_gradient(value, arrays[i], where)
        grad = tensors[i].grad
        grad = np.zeros(arrays[i].shape) if grad is None else grad
        analytic = grad.reshape(-1) if where is None else grad.reshape(-1)[where]
        excess = np.abs(analytic - numeric) / (atol + rtol * np.abs(numeric))
        excess = np.where(np.isnan(excess), np.inf, excess)
        if excess.size and excess.max() > 1:
            k = int(excess.argmax())
            flat = k if where is None else int(where[k])
            element = tuple(int(j) for j in np.unravel_index(flat, arrays[i].shape))
            raise GradientError(
                f"gradient of input {i} at element {element}: analytic {analytic[k]:.10g}, "
                f"numeric {numeric[k]:.10g}, {excess[k]:.3g} times what is tolerated")
        worst = max(worst, float(excess.max(initial=0.0)))
    return worst
