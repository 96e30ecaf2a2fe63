"""How tensors are spelt: the operators and methods of `Tensor`, each a call of one op.

They are a class of their own only so that ``tensor.py`` can be about what a tensor is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

import tensorlite

from .device import parse_device
from .exchange import exported

if TYPE_CHECKING:
    from .tensor import Tensor

tl: Any = tensorlite  # (its functions want a Tensor; to a type checker, `self` is less than that)


class Operators:
    """The arithmetic of `Tensor`."""

    # NumPy must leave `array + tensor` to __radd__ instead of looping over elements.
    __array_ufunc__ = None
    __slots__ = ()

    def __add__(self, other: Any) -> Tensor:
        return tl.add(self, other)

    def __sub__(self, other: Any) -> Tensor:
        return tl.subtract(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return tl.subtract(other, self)

    def __mul__(self, other: Any) -> Tensor:
        return tl.multiply(self, other)

    def __truediv__(self, other: Any) -> Tensor:
        return tl.divide(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return tl.divide(other, self)

    def __pow__(self, other: Any) -> Tensor:
        return tl.power(self, other)

    def __rpow__(self, other: Any) -> Tensor:
        return tl.power(other, self)

    def __matmul__(self, other: Any) -> Tensor:
        return tl.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return tl.matmul(other, self)

    def __neg__(self) -> Tensor:
        return tl.negative(self)

    def __getitem__(self, key: Any) -> Tensor:
        return tl.index(self, key)

    __radd__, __rmul__ = __add__, __mul__

    def __iter__(self: Any) -> Iterator[Tensor]:
        if not self.ndim:  # (else the IndexError of the first element would read as the end)
            raise TypeError("a tensor of shape () has no elements to iterate over")
        return (self[i] for i in range(len(self)))

    def __array__(self: Any, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False and self.device != "cpu":
            raise ValueError(f"copy: False, but a tensor on {self.device} must be copied for NumPy")
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    # For np.from_dlpack, torch.from_dlpack and cupy.from_dlpack: the memory as it lies, on either
    # device; how it came about is not handed on. A write to it from outside is a write in place.

    def __dlpack__(self: Any, **options: Any) -> Any:
        return exported(self.data, **options)

    def __dlpack_device__(self: Any) -> tuple[int, int]:
        return self.data.__dlpack_device__()

    @property
    def __cuda_array_interface__(self: Any) -> dict[str, Any]:
        """The same for cupy.asarray and torch.as_tensor; AttributeError on the CPU."""
        return self.data.__cuda_array_interface__

    def __float__(self: Any) -> float:
        return float(self.item())

    def __bool__(self: Any) -> bool:
        return bool(self.item())

    def _repr_html_(self: Any) -> str:
        """What a notebook shows."""
        from .trace.notebook import tensor_html  # (which no one else needs)

        return tensor_html(self)

    def to(self: Any, device: str) -> Tensor:
        """This tensor when it is on `device`, otherwise a differentiable copy there."""
        return self if parse_device(device) == self.device else tl.ops.to_device(self, device)

    def exp(self) -> Tensor:
        return tl.exp(self)

    def log(self) -> Tensor:
        return tl.log(self)

    def tanh(self) -> Tensor:
        return tl.tanh(self)

    def sigmoid(self) -> Tensor:
        return tl.sigmoid(self)

    def relu(self) -> Tensor:
        return tl.relu(self)

    def sum(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Tensor:
        return tl.sum(self, axis, keepdims)

    def mean(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Tensor:
        return tl.mean(self, axis, keepdims)

    def max(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Tensor:
        return tl.max(self, axis, keepdims)

    def reshape(self, *shape: Any) -> Tensor:
        return tl.reshape(self, shape[0] if len(shape) == 1 else shape)

    def transpose(self, *axes: Any) -> Tensor:
        return tl.transpose(self, axes[0] if len(axes) == 1 else axes or None)
