"""Matrix products: what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import Tensor


def ones(*shape: int, dtype: type = np.float64) -> Tensor:
    return Tensor(np.ones(shape, dtype))


@pytest.mark.parametrize(("a", "b"), [
    ((2, 3), (2, 3)), ((3,), (2,)), ((2, 3), (2,)), ((), (2, 3)), ((3,), ()),
    ((2, 1, 3), (3, 3, 1)),
])
def test_matmul_of_shapes_that_do_not_fit(a, b):
    with pytest.raises(ValueError) as caught:
        tl.matmul(ones(*a), ones(*b))
    assert str(caught.value) == f"matmul: shapes {a} and {b} do not fit together"


def test_linear_errors():
    with pytest.raises(ValueError, match=r"linear: expected x \(..., C_in\) and weight "
                                         r"\(C_in, C_out\), got x \(2, 3\) and weight \(2, 3\)"):
        tl.linear(ones(2, 3), ones(2, 3))
    with pytest.raises(ValueError, match=r"got x \(\) and weight \(1, 1\)"):
        tl.linear(ones(), ones(1, 1))
    with pytest.raises(ValueError, match=r"^bias: expected shape \(4,\), got \(3,\)"):
        tl.linear(ones(2, 3), ones(3, 4), ones(3))
    with pytest.raises(TypeError, match="^weight: expected the dtype float64 of x, got float32"):
        tl.linear(ones(2, 3), ones(3, 4, dtype=np.float32))
    with pytest.raises(TypeError, match="^x: expected a floating-point tensor, got int64"):
        tl.linear(Tensor([[1, 2]]), ones(2, 1))
