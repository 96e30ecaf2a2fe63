"""Tensor: an array, its gradient, and the node of the tape that made it.

How a gradient finds its way back is in ``autograd.py``, the arithmetic in ``ops``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .device import Array, device_of, to_device
from .exchange import as_array, numbers
from .operators import Operators


class Tensor(Operators):
    """An n-dimensional array that can be differentiated through.

    data: array, nested list or number. Arrays keep their dtype and are not copied, neither NumPy's
        and CuPy's nor those that come by DLPack, such as PyTorch's detached tensors; Python
        numbers and lists of floats become float32.
    requires_grad: whether ``backward`` leaves d(loss)/d(this) in ``.grad``: an array of the shape
        and dtype of ``.data``, added to what is there.
    device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``; by default where `data` is.

    Raises TypeError for data that is no array of numbers, or an integer tensor with a gradient.
    """

    __slots__ = ("__weakref__", "_data", "grad", "hooks", "name", "node", "requires_grad")

    def __init__(self, data: Any, requires_grad: bool = False, device: str | None = None,
                 dtype: Any = None) -> None:
        if isinstance(data, Tensor):
            data = data.data
        data = as_array(data, keep_double=dtype is not None)
        if dtype is not None:
            data = numbers(data).astype(dtype, copy=False)
        data = numbers(data, requires_grad)
        self._data = data if device is None else to_device(data, device)
        self.grad: Array | None = None
        self.requires_grad = requires_grad
        self.node: autograd.Node | None = None  # what made it; None for a leaf
        self.hooks: list[Callable[[Array], Array | None]] = []
        self.name: str | None = None

    @property
    def data(self) -> Array:
        """The array itself. Assign to it (``t.data -= step``) to update a parameter."""
        return self._data

    @data.setter
    def data(self, value: Array) -> None:
        if getattr(value, "shape", None) != self._data.shape:
            raise ValueError(f"data: expected an array of shape {self._data.shape}, "
                             f"got {getattr(value, 'shape', type(value).__name__)}")
        self._data = numbers(as_array(value), self.requires_grad)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._data.shape

    @property
    def dtype(self) -> np.dtype:
        return self._data.dtype

    @property
    def ndim(self) -> int:
        return self._data.ndim

    @property
    def size(self) -> int:
        return self._data.size

    @property
    def device(self) -> str:
        return device_of(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def __repr__(self) -> str:
        body = np.array2string(self.numpy(), separator=", ", threshold=64, prefix="Tensor(")
        device = "" if self.device == "cpu" else f", device={self.device!r}"
        made = f", node={self.node.name}" if self.node else ", requires_grad=True"
        return f"Tensor({body}, {self.dtype}{device}{made if self.requires_grad else ''})"

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array; shares memory when the tensor is on the CPU."""
        return to_device(self._data, "cpu")

    def item(self) -> float | int:
        """The value of a tensor of one element, as a Python number."""
        if self.size != 1:
            raise ValueError(f"item: expected a tensor of one element, got shape {self.shape}")
        return self.numpy().reshape(()).item()

    def detach(self) -> Tensor:
        """The same array as a tensor that nothing is differentiated through."""
        return Tensor(self._data)

    def backward(self, grad: Array | None = None, retain_graph: bool = False) -> None:
        """Add d(self)/d(leaf) to ``.grad`` of every leaf that requires it; see `autograd.walk`."""
        for _ in autograd.walk(self, grad, retain_graph, in_place=True):
            pass

    def register_hook(self, hook: Callable[[Array], Array | None]) -> Callable[[], None]:
        """Call ``hook(grad)`` once the gradient of this tensor is complete; what it returns, if
        anything, takes the gradient's place. Returns a function that removes the hook."""
        if not self.requires_grad:
            raise RuntimeError("register_hook: this tensor does not require a gradient")
        hooks = self.node.hooks if self.node else self.hooks
        hooks.append(hook)
        return lambda: hooks.remove(hook) if hook in hooks else None

    def retain_grad(self) -> None:
        """Keep the gradient of this intermediate result in ``.grad`` when backward passes it."""
        if self.node:
            self.register_hook(lambda grad: setattr(self, "grad", grad.copy()))

    def zero_grad(self) -> None:
        """Forget the gradient."""
        self.grad = None


# The tape is written in terms of Tensor: it comes after it.
from . import autograd  # noqa: E402
