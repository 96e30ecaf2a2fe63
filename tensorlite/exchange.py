"""What a `Tensor` is made of: the array behind whatever it was given, shared where it can be.

Arrays of other libraries come by DLPack, the protocol by which one hands another its memory as it
lies; the other way round, the methods are in ``operators.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .device import Array, is_on_gpu, require_cuda

ON_CUDA = (2, 13)  # DLPack's numbers of memory on a CUDA device, and of memory managed by CUDA


def as_array(data: Any, keep_double: bool = False) -> Array:
    """`data` as a NumPy or CuPy array: itself, its memory (of what has ``__dlpack__``), or a copy.

    keep_double: Python floats become float64, not float32. TypeError for what cannot be shared;
    whether there are numbers in the array is for the caller to look at.
    """
    if isinstance(data, np.ndarray) or is_on_gpu(data):
        return data
    if hasattr(data, "__dlpack__"):
        return _shared(data)
    if not hasattr(data, "dtype"):
        data = np.asarray(data)
        return data.astype(np.float32) if data.dtype == np.float64 and not keep_double else data
    return np.asarray(data) if isinstance(data, np.generic) else data


def _shared(data: Any) -> Array:
    try:
        kind, number = data.__dlpack_device__()
        if kind in ON_CUDA:
            return require_cuda(f"cuda:{number}").from_dlpack(data)
        return np.from_dlpack(data)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        made = f"{type(data).__module__}.{type(data).__qualname__}"
        raise TypeError(f"data: the memory of a {made} of dtype {getattr(data, 'dtype', None)} "
                        f"cannot be shared: {' '.join(str(error).split())}") from None
