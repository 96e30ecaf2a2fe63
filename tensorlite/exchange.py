"""What a `Tensor` is made of: the array behind whatever it was given, shared where it can be.

Arrays of other libraries come by DLPack, the protocol by which one hands another its memory as it
lies; the other way round, the methods are in ``operators.py``. What else may be made of an array is
refused here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .device import Array, is_on_gpu, require_cuda

ON_CUDA = (2, 13)  # DLPack's numbers of memory on a CUDA device, and of memory managed by CUDA


def as_array(data: Any, keep_double: bool = False) -> Array:
    """`data` as a NumPy or CuPy array: itself, its memory (of what has ``__dlpack__``), or a copy.

    A `numpy.matrix`, for which `*` is another product, becomes a plain array. keep_double: Python
    floats become float64, not float32. TypeError for what cannot be shared, or would lose its mask;
    whether there are numbers in the array is for `numbers` to say.
    """
    if type(data) is np.ndarray or is_on_gpu(data):
        return data
    if isinstance(data, np.ma.MaskedArray):
        raise TypeError("data: a masked array, expected one without a mask (`filled` makes it)")
    if isinstance(data, np.ndarray):
        return np.asarray(data) if isinstance(data, np.matrix) else data
    if hasattr(data, "__dlpack__"):
        return _shared(data)
    if not hasattr(data, "dtype"):
        data = np.asarray(data)
        return data.astype(np.float32) if data.dtype == np.float64 and not keep_double else data
    return np.asarray(data) if hasattr(data, "__array__") else data


def numbers(data: Array, requires_grad: bool = False) -> Array:
    """`data` itself; TypeError if it is no array of real numbers, or of none that can have the
    gradient which it requires: rounded to integers that would be zero or wrong."""
    if not hasattr(data, "ndim") or getattr(data.dtype, "kind", "?") not in "biuf":
        raise TypeError(f"data: expected an array of numbers, got {type(data).__name__} "
                        f"of dtype {getattr(data, 'dtype', None)}")
    if requires_grad and data.dtype.kind != "f":
        raise TypeError(f"requires_grad: only a floating-point tensor can have a gradient, "
                        f"this one is {data.dtype}")
    return data


def exported(array: Array, copy: bool | None = None, **options: Any) -> Any:
    """`array` as a capsule of DLPack; `options` and errors as of its own ``__dlpack__``.

    BufferError where its strides are negative, unless `copy`: PyTorch ends the process on those.
    """
    if any(step < 0 and n > 1 for n, step in zip(array.shape, array.strides, strict=True)):
        if not copy:
            raise BufferError(f"a tensor of shape {array.shape} runs backwards in memory (strides "
                              f"{array.strides}), which not every library can share; copy it first")
        array, copy = array.copy(), None  # in order; the capsule keeps it
    return array.__dlpack__(**options if copy is None else {"copy": copy, **options})


def _shared(data: Any) -> Array:
    try:
        kind, number = data.__dlpack_device__()
        if kind in ON_CUDA:
            return require_cuda(f"cuda:{number}").from_dlpack(data)
        return np.from_dlpack(data)
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError) as error:
        made = f"{type(data).__module__}.{type(data).__qualname__}"
        raise TypeError(f"data: the memory of a {made} of dtype {getattr(data, 'dtype', None)} "
                        f"cannot be shared: {' '.join(str(error).split())}") from None
