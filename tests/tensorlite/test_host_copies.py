"""No op looks at the values of an array on a device: that would make the host wait for it.

Arrays that refuse to become Python numbers stand for a device's; the kernels run on the emulator.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlite import Tensor

from .campaign import examples
from .conftest import emulated
from .op_cases import CASES, OpCase


class OnDevice(np.ndarray):
    """An array whose values cannot be read."""

    def _refuse(self, *_):
        raise AssertionError("a copy to the host")

    __bool__ = __int__ = __float__ = __complex__ = __index__ = __contains__ = _refuse
    item = tolist = __iter__ = __str__ = __repr__ = __format__ = _refuse


def on_device(array: np.ndarray) -> np.ndarray:
    return np.array(array).view(OnDevice)


def test_what_stands_for_a_device_refuses():
    x = on_device(np.ones(1))
    for read in (bool, int, float, list, str, lambda x: x.item()):
        with pytest.raises(AssertionError, match="a copy to the host"):
            read(x)
    assert type(x + x) is type(np.sqrt(x)) is type(x[0:1]) is OnDevice


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
@examples(5)
@given(data=st.data())
def test_no_op_copies_to_the_host(case: OpCase, data: st.DataObject):
    call = data.draw(case.calls)
    tensors = [Tensor(on_device(a), requires_grad=True) for a in call.inputs]
    with emulated():
        output = call.run(*tensors)
        output.backward(on_device(np.ones(output.shape)))
    assert all(isinstance(t.data, OnDevice) for t in tensors)
    assert all(t.grad.shape == t.shape for t in tensors)
