"""Helpers of the kernel tests: awkward arrays, small bands, and the agreement that is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tensorlite.kernels import cpu
from tensorlite.kernels.cpu import convolution, elementwise, normalisation, pooling


def _array(seed: int, shape: tuple[int, ...], dtype: str, layout: str) -> np.ndarray:
    """Normal values, read-only (so that a kernel that writes into its input fails)."""
    rng = np.random.default_rng(seed)
    if layout == "strided":
        a = rng.standard_normal((*shape[:-1], 2 * shape[-1]))[..., ::2].astype(dtype, copy=False)
        a = np.repeat(a, 2, axis=-1)[..., ::2]
    elif layout == "transposed":
        a = np.asfortranarray(rng.standard_normal(shape).astype(dtype))
    elif layout == "reversed":
        a = rng.standard_normal(shape).astype(dtype)[:, ::-1]
    else:
        a = rng.standard_normal(shape).astype(dtype)
    a.flags.writeable = False
    return a


@pytest.fixture(scope="session")
def make_array() -> Callable[[int, tuple[int, ...], str, str], np.ndarray]:
    return _array


@contextlib.contextmanager
def _machine(workspace: int, threads: int) -> Iterator[None]:
    """Kernels cut into bands of `workspace` bytes and spread over threads, however small."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in (
            (convolution, "WORKSPACE", workspace),
            (convolution, "MIN_PIXELS", 1),
            (convolution, "GRAIN_FLOPS", 1),
            (elementwise, "CHUNK", workspace // 4 + 1),
            (elementwise, "GRAIN", 1),
            (normalisation, "CHUNK", workspace // 4 + 1),
            (normalisation, "GRAIN", 1),
            (pooling, "CHUNK", workspace + 8),
            (pooling, "GRAIN", 1),
        ):
            patch.setattr(module, name, value)
        before = cpu.get_num_threads()
        cpu.set_num_threads(threads)
        try:
            yield
        finally:
            cpu.set_num_threads(before)


@pytest.fixture(scope="session")
def machine() -> Callable[[int, int], contextlib.AbstractContextManager[None]]:
    return _machine


def _close(actual: np.ndarray, reference: np.ndarray, magnitude: np.ndarray | float) -> None:
    """Agree with a float64 reference to 64 units of rounding of the largest `magnitude`: the sum of
    the absolute values of a result's terms, which bounds what rounding can do when they cancel.
    (One unit would do on average; the reference of a float64 result rounds too.)"""
    assert actual.shape == reference.shape
    bound = 64 * np.finfo(actual.dtype).eps * np.max(magnitude, initial=0.0)
    np.testing.assert_allclose(actual, reference, rtol=0, atol=bound)


@pytest.fixture(scope="session")
def assert_close() -> Callable[..., None]:
    return _close
