"""Device names, moving between devices, and saying what is missing."""

from __future__ import annotations

import inspect
import sys
import types

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import Tensor, kernels
from tensorlite.device import (
    array_module,
    device_of,
    fingerprint,
    parse_device,
    require_cuda,
    to_device,
)


@pytest.mark.parametrize(("name", "canonical"), [
    ("cpu", "cpu"), ("cuda", "cuda:0"), ("cuda:0", "cuda:0"), ("cuda:3", "cuda:3"),
    ("cuda:03", "cuda:3"),
])
def test_device_names(name: str, canonical: str):
    assert parse_device(name) == canonical


@pytest.mark.parametrize("name", ["gpu", "", "cuda:", "cuda:-1", "cuda:x", "CPU", "cpu:0", None, 0])
def test_no_device_names(name):
    with pytest.raises(ValueError, match=r"^device: got .*, expected 'cpu', 'cuda' or 'cuda:N'$"):
        parse_device(name)
    with pytest.raises(ValueError, match="^device: got "):
        Tensor([1.0]).to(name)


def test_numpy_arrays_are_on_the_cpu():
    array = np.ones(3)
    assert array_module(array) is np
    assert device_of(array) == "cpu"
    assert to_device(array, "cpu") is array
    assert Tensor(array, device="cpu").data is array
    assert kernels.of(array) is kernels.cpu


def test_cuda_without_cupy_says_what_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # makes `import cupy` fail
    for ask in (lambda: Tensor([1.0], device="cuda"), lambda: Tensor([1.0]).to("cuda:0"),
                lambda: to_device(np.ones(1), "cuda"), lambda: require_cuda("cuda:0")):
        with pytest.raises(RuntimeError, match="CuPy is not installed; install it with: pip "):
            ask()


def test_use_device_makes_it_the_current_one(monkeypatch: pytest.MonkeyPatch):
    used: list[int] = []
    cupy = types.SimpleNamespace(
        is_available=lambda: True,
        cuda=types.SimpleNamespace(
            runtime=types.SimpleNamespace(getDeviceCount=lambda: 2),
            Device=lambda number: types.SimpleNamespace(use=lambda: used.append(number))))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    for device in ("cpu", "cuda:1", "cuda"):
        tl.use_device(device)
    assert used == [1, 0]
    with pytest.raises(RuntimeError, match="'cuda:2': this machine has CUDA devices 0 to 1"):
        tl.use_device("cuda:2")
    with pytest.raises(ValueError, match="^device: got 'gpu'"):
        tl.use_device("gpu")


@pytest.mark.parametrize(("available", "count", "device", "message"), [
    (False, 0, "cuda:0", "CuPy is installed but finds no CUDA device"),
    (True, 2, "cuda:2", "device 'cuda:2': this machine has CUDA devices 0 to 1"),
])
def test_cupy_without_the_device(monkeypatch: pytest.MonkeyPatch, available: bool, count: int,
                                 device: str, message: str):
    cupy = types.SimpleNamespace(
        is_available=lambda: available,
        cuda=types.SimpleNamespace(runtime=types.SimpleNamespace(getDeviceCount=lambda: count)))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    with pytest.raises(RuntimeError, match=message):
        require_cuda(device)


def test_both_kinds_of_kernels_have_the_same_names():
    from tensorlite.kernels import cpu, cuda

    threads = {"get_num_threads", "set_num_threads", "parallel_for"}  # of the CPU alone
    functions = {name for name in cpu.__all__ if callable(getattr(cpu, name)) and name.islower()}
    for name in functions - threads:
        ours, twin = getattr(cuda, name), getattr(cpu, name)
        assert list(inspect.signature(ours).parameters) == list(inspect.signature(twin).parameters)
    assert not hasattr(cuda, "__wrapped__")  # as tools that look modules over expect


def test_a_tensor_stays_where_it_is():
    tensor = Tensor([1.0], requires_grad=True)
    assert tensor.to("cpu") is tensor


@pytest.mark.parametrize("array", [
    np.arange(5.0), np.arange(100_000.0), np.arange(100_000.0).reshape(400, 250).T,
    np.arange(100_000.0)[::-2],
], ids=["small", "large", "transposed", "strided"])
def test_fingerprint_notices_a_write(array: np.ndarray):
    array = array.copy(order="K") if array.size < 10 else array
    before = fingerprint(array)
    assert fingerprint(array) == before
    array += 1
    assert fingerprint(array) != before


def test_fingerprint_notices_one_element_of_a_small_array():
    for size in (1, 4096):
        array = np.zeros(size)
        before = fingerprint(array)
        array[size // 2] = 1e-300
        assert fingerprint(array) != before
    assert fingerprint(np.zeros((0, 3))) == fingerprint(np.zeros((0, 3)))
