"""Array in, array out: the arithmetic of the ops, once for each kind of device.

``of(array)`` is the module whose functions work on `array`: `kernels.cpu` for NumPy, `kernels.cuda`
for CuPy. Both have the same names and signatures; the records they exchange are in `contract.py`.
Nothing in here knows of tensors or tapes.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from ..device import Array


def of(array: Array) -> ModuleType:
    """The kernels for the device that `array` is on."""
    if isinstance(array, np.ndarray):
        from . import cpu

        return cpu
    from . import cuda

    return cuda
