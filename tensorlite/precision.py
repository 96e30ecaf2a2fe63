"""What numbers products are computed with: exact float32, TF32, or float16.

Parameters, norms' vectors and statistics, and losses are float32 throughout. Within `autocast` what
goes into a convolution, a linear layer or a GRU is cast to float16, and so activations and their
gradients take half the memory; sums are formed in float32.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import numpy as np

PRECISIONS = ("float32", "tf32", "float16")


class _State(threading.local):
    products: np.dtype | None = None


_state = _State()  # each thread has its own


@contextlib.contextmanager
def autocast(dtype: str = "float16") -> Iterator[None]:
    """Within it, products of float32 tensors on a GPU are computed in `dtype` ("float16"; "float32"
    puts an end to that of an outer one). Forward only: backward follows what forward did."""
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype: expected 'float16' or 'float32', got {dtype!r}")
    before = _state.products
    _state.products = None if dtype == "float32" else np.dtype(dtype)
    try:
        yield
    finally:
        _state.products = before


def products_dtype() -> np.dtype | None:
    """What products of float32 tensors are to be computed in; None for float32 itself."""
    return _state.products


def set_tf32(allowed: bool) -> None:
    """Whether products of float32 arrays on a GPU may round their operands to 10 bits of fraction,
    which makes them several times faster. At first they may not."""
    from tensorlite.kernels.cuda import precision

    precision.set_tf32(allowed)


@contextlib.contextmanager
def using(precision: str) -> Iterator[None]:
    """Within it, products are computed as one of `PRECISIONS` says; ValueError for another."""
    from tensorlite.kernels.cuda.precision import tf32

    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    before = tf32()
    set_tf32(precision == "tf32")
    try:
        with autocast("float16" if precision == "float16" else "float32"):
            yield
    finally:
        set_tf32(before)
