"""Memory shared between Tensor and the arrays of other libraries, both ways."""

from __future__ import annotations

import gc
import re
import weakref

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import Tensor

DTYPES = ("float16", "float32", "float64", "uint8", "int64", "bool")


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_shares_the_memory_of_a_tensor(dtype):
    tensor = Tensor(np.array([[1, 0, 1], [0, 1, 1]], dtype).T, requires_grad=dtype == "float64")
    for array in (np.asarray(tensor), np.from_dlpack(tensor), np.array(tensor, copy=False)):
        assert np.shares_memory(array, tensor.data)
        assert array.shape == (3, 2) and array.dtype == dtype
    np.from_dlpack(tensor)[2, 1] = 0
    assert tensor.data[2, 1] == 0


def test_array_copies_where_it_is_asked_to_or_must():
    tensor = Tensor([1.5, 2.5])
    for copied in (np.array(tensor), np.asarray(tensor, copy=True), np.asarray(tensor, np.int64)):
        assert not np.shares_memory(copied, tensor.data)
    assert np.asarray(tensor, np.int64).tolist() == [1, 2]
    with pytest.raises(ValueError, match="copy"):
        np.asarray(tensor, np.float64, copy=False)


def test_a_tensor_on_the_cpu_claims_no_gpu():
    tensor = Tensor([1.0])
    assert tensor.__dlpack_device__() == (1, 0)
    assert not hasattr(tensor, "__cuda_array_interface__")


class Foreign:
    """An array of a library that is neither NumPy nor CuPy; it has a dtype of its own."""

    dtype = "foreign.float32"
    device = (1, 0)
    failure: Exception | None = None

    def __init__(self) -> None:
        self.memory = np.arange(6, dtype=np.float32).reshape(2, 3)

    def __dlpack__(self, **options):
        if self.failure:
            raise self.failure
        return self.memory.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device


def test_a_tensor_shares_the_memory_of_what_comes_by_dlpack():
    foreign = Foreign()
    tensor = Tensor(foreign, requires_grad=True)
    assert np.shares_memory(tensor.data, foreign.memory)
    assert tensor.dtype == np.float32 and tensor.requires_grad
    assert not np.shares_memory(Tensor(foreign, dtype=np.float64).data, foreign.memory)


def test_an_op_takes_it_as_a_constant():
    foreign = Foreign()
    assert (Tensor(np.ones((2, 3))) * foreign).sum().item() == 15


@pytest.mark.parametrize("failure", [BufferError("no,\nnot this"), RuntimeError("no, not this")])
def test_what_cannot_be_shared_is_an_error_of_one_line(failure):
    foreign = Foreign()
    foreign.failure = failure
    with pytest.raises(TypeError, match=re.escape(
            f"data: the memory of a {__name__}.Foreign of dtype foreign.float32 cannot be shared: "
            "no, not this") + "$"):
        Tensor(foreign)


def test_memory_on_a_gpu_without_cupy_says_what_is_missing():
    try:
        import cupy

        if cupy.is_available():
            pytest.skip("there is a GPU")
    except ImportError:
        pass
    foreign = Foreign()
    foreign.device = (2, 0)
    with pytest.raises(TypeError, match="cannot be shared: device 'cuda:0': CuPy is "):
        Tensor(foreign)


def test_a_write_from_outside_is_found_before_backward():
    foreign = Foreign()
    weight = Tensor(np.ones((2, 3)), requires_grad=True)
    loss = (weight * Tensor(foreign)).sum()
    foreign.memory += 1
    with pytest.raises(RuntimeError, match="changed in place before backward ran"):
        loss.backward()


def test_a_write_through_what_was_handed_out_is_found_before_backward():
    weight = Tensor(np.ones((2, 3)), requires_grad=True)
    loss = weight.exp().sum() + (weight * weight).sum()
    np.from_dlpack(weight)[:] = 2
    with pytest.raises(RuntimeError, match="changed in place before backward ran"):
        loss.backward()


def test_no_device_is_an_error_of_one_line():
    class NoDevice:
        def __dlpack__(self, **options):
            raise AssertionError("never asked for")

    with pytest.raises(TypeError, match="cannot be shared: .*__dlpack_device__"):
        Tensor(NoDevice())


class Described:
    """An array of a library without DLPack: NumPy's dtype, and ``__array__`` to get at it."""

    dtype, ndim, shape = np.dtype(np.float64), 1, (3,)

    def __array__(self, dtype=None, copy=None):
        return np.arange(3.0)


def test_what_has_a_dtype_but_is_no_array_becomes_one():
    tensor = Tensor(Described())
    assert type(tensor.data) is np.ndarray and tensor.data.tolist() == [0, 1, 2]


def test_arrays_that_mean_something_else():
    with pytest.warns(PendingDeprecationWarning):
        matrix = np.matrix([[1.0, 2.0], [3.0, 4.0]])
    tensor = Tensor(matrix)
    assert type(tensor.data) is np.ndarray and np.shares_memory(tensor.data, matrix)
    assert (tensor * tensor).data.tolist() == [[1, 4], [9, 16]]
    with pytest.raises(TypeError, match="data: a masked array, expected one without a mask"):
        Tensor(np.ma.array([1.0, 2.0], mask=[False, True]))


BACKWARDS = (np.s_[::-1], np.s_[:, ::-1], np.s_[::-2, ::-1])


@pytest.mark.parametrize("key", BACKWARDS)
def test_what_runs_backwards_in_memory_is_not_shared_but_copied(key):
    tensor = Tensor(np.arange(12.0).reshape(3, 4)[key])
    with pytest.raises(BufferError, match=r"runs backwards in memory .* copy it first$"):
        np.from_dlpack(tensor)
    assert np.from_dlpack(tensor, copy=True).tolist() == tensor.data.tolist()
    assert np.shares_memory(np.asarray(tensor), tensor.data)


def test_one_element_has_no_direction():
    assert np.from_dlpack(Tensor(np.arange(4.0)[:1][::-1])).tolist() == [0]


@pytest.mark.parametrize("array", [np.array(3.0), np.zeros((0, 3)), np.zeros((2, 0), np.int64),
                                   np.array(True)], ids=str)
def test_no_axes_or_no_elements(array):
    for tensor in (Tensor(array), Tensor(np.from_dlpack(Tensor(array)))):
        assert tensor.shape == array.shape and tensor.dtype == array.dtype
        assert np.array_equal(np.from_dlpack(tensor), array)


def test_a_read_only_array_stays_read_only():
    array = np.arange(4.0)
    array.flags.writeable = False
    theirs = np.from_dlpack(Tensor(array))
    assert np.shares_memory(theirs, array) and not theirs.flags.writeable
    with pytest.raises(BufferError, match="readonly"):
        Tensor(array).__dlpack__()  # of an old consumer, which could not be told


def test_the_keyword_arguments_of_dlpack():
    tensor = Tensor(np.arange(4.0))
    assert "versioned" in repr(tensor.__dlpack__(max_version=(1, 0)))
    assert "versioned" not in repr(tensor.__dlpack__())
    assert np.shares_memory(np.from_dlpack(tensor, device="cpu", copy=False), tensor.data)
    assert not np.shares_memory(np.from_dlpack(tensor, copy=True), tensor.data)
    with pytest.raises(BufferError, match="device"):
        tensor.__dlpack__(dl_device=(2, 0))
    with pytest.raises(TypeError, match="positional"):
        tensor.__dlpack__(None)


@pytest.mark.parametrize("take", [np.from_dlpack, np.asarray], ids=["dlpack", "array"])
def test_the_memory_outlives_the_tensor(take):
    array = np.full(1000, 7.0)
    alive = weakref.ref(array)
    taken = take(Tensor(array))
    del array
    gc.collect()
    assert alive() is not None and taken.tolist() == [7] * 1000
    del taken
    gc.collect()
    assert alive() is None  # and not longer than it must


class TestTorch:
    """With PyTorch itself."""

    @pytest.fixture
    def torch(self):
        return pytest.importorskip("torch")

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_a_tensor_of_a_torch_tensor_shares_its_memory(self, torch, dtype):
        theirs = torch.tensor([[0, 1, 1], [1, 0, 1]], dtype=getattr(torch, dtype))
        ours = Tensor(theirs)
        assert ours.data.ctypes.data == theirs.data_ptr()
        assert ours.dtype == dtype
        theirs[1, 2] = 0
        assert ours.data[1, 2] == 0
        ours.data[0, 0] = 1
        assert theirs[0, 0] == 1

    def test_the_memory_outlives_the_torch_tensor(self, torch):
        ours = Tensor(torch.full((1000,), 3.0))
        others = [torch.zeros(1000) for _ in range(20)]  # which take what has been freed
        assert ours.data.tolist() == [3.0] * 1000 and len(others) == 20

    def test_the_torch_tensor_outlives_ours(self, torch):
        array = np.full(1000, 7.0)
        alive = weakref.ref(array)
        theirs = torch.from_dlpack(Tensor(array))
        del array
        gc.collect()
        assert alive() is not None and theirs.tolist() == [7] * 1000
        del theirs
        gc.collect()
        assert alive() is None

    @pytest.mark.parametrize("key", BACKWARDS)
    def test_what_runs_backwards_does_not_end_the_process(self, torch, key):
        tensor = Tensor(np.arange(12.0).reshape(3, 4)[key])
        with pytest.raises(BufferError, match="runs backwards in memory"):
            torch.from_dlpack(tensor)
        assert torch.from_dlpack(tensor, copy=True).tolist() == tensor.data.tolist()

    @pytest.mark.parametrize("array", [np.array(3.0), np.zeros((0, 3)), np.array(True)], ids=str)
    def test_no_axes_or_no_elements(self, torch, array):
        theirs = torch.from_dlpack(Tensor(array))
        assert tuple(theirs.shape) == array.shape and np.array_equal(theirs.numpy(), array)
        assert Tensor(theirs).shape == array.shape

    def test_strides_are_kept(self, torch):
        theirs = torch.arange(12.0).reshape(3, 4).T[::2]
        ours = Tensor(theirs)
        assert ours.data.ctypes.data == theirs.data_ptr()
        assert ours.shape == (2, 3) and not ours.data.flags.c_contiguous
        assert ours.data.tolist() == theirs.tolist()
        assert (ours @ Tensor(np.eye(3, dtype=np.float32))).data.tolist() == theirs.tolist()

    def test_torch_shares_the_memory_of_a_tensor(self, torch):
        ours = Tensor(np.zeros((2, 3)), requires_grad=True)
        theirs = torch.from_dlpack(ours)
        assert theirs.data_ptr() == ours.data.ctypes.data and theirs.dtype == torch.float64
        theirs += 1
        assert ours.data.tolist() == [[1] * 3] * 2
        assert torch.asarray(ours).data_ptr() == ours.data.ctypes.data

    @pytest.mark.parametrize(("options", "reason"), [
        ({"requires_grad": True}, "require gradient, use tensor.detach()"),
        ({"dtype": "bfloat16"}, "Unsupported dtype"), ({"device": "meta"}, "meta")])
    def test_what_cannot_be_shared_is_named(self, torch, options, reason):
        options = {name: getattr(torch, str(value), value) for name, value in options.items()}
        with pytest.raises(TypeError, match="^data: the memory of a torch.Tensor of dtype .* "
                           f"cannot be shared: .*{re.escape(reason)}") as caught:
            Tensor(torch.ones(2, **options))
        assert "\n" not in str(caught.value)

    def test_no_numbers(self, torch):
        with pytest.raises(TypeError, match="expected an array of numbers, got .* complex64"):
            Tensor(torch.ones(2, dtype=torch.complex64))

    def test_torch_writing_before_backward_is_found(self, torch):
        theirs = torch.ones(5)
        weight = Tensor(np.ones(5, np.float32), requires_grad=True)
        loss = tl.sum(weight * Tensor(theirs))
        theirs.mul_(2)
        with pytest.raises(RuntimeError, match="changed in place before backward ran"):
            loss.backward()


@pytest.fixture
def cupy():
    module = pytest.importorskip("cupy")
    if not module.is_available():
        pytest.skip("no GPU")
    return module


def test_cupy_shares_the_memory_of_a_tensor(cupy):
    ours = Tensor(np.zeros(3, np.float32), device="cuda")
    for theirs in (cupy.from_dlpack(ours), cupy.asarray(ours)):
        assert theirs.data.ptr == ours.data.data.ptr
    with pytest.raises(ValueError, match="copy: False, but a tensor on cuda:0"):
        np.asarray(ours, copy=False)
    assert np.asarray(ours).tolist() == [0, 0, 0]


def test_a_torch_tensor_on_a_gpu_is_shared_with_cupy(cupy):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch without CUDA")
    theirs = torch.arange(4.0, device="cuda")
    ours = Tensor(theirs)
    assert ours.device == "cuda:0" and ours.data.data.ptr == theirs.data_ptr()
    assert torch.from_dlpack(ours).data_ptr() == theirs.data_ptr()
    assert torch.as_tensor(ours, device="cuda").data_ptr() == theirs.data_ptr()
