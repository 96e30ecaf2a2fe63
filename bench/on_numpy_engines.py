"""Other engines that have nothing but NumPy underneath: the convolution rows of each."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import numpy as np

from bench.rows import Row

Run = Callable[[], dict[str, Any]]


class Engine:
    """What `bench.sides` asks of a side, for one of the engines below."""

    def __init__(self, name: str) -> None:
        importlib.import_module(name)
        self.name = name

    def about(self) -> str:
        return f"{self.name} {version(self.name)}"

    def build(self, row: Row, variant: str, threads: int,
              arrays: Iterator[tuple[str, np.ndarray]]) -> Run:
        """Forward and backward of a convolution; the BLAS alone has threads."""
        given = dict(arrays)
        return mygrad_conv(row, given) if self.name == "mygrad" else autograd_conv(
            row, variant, given)

    def to_numpy(self, name: str, value: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(value)


def mygrad_conv(row: Row, given: dict[str, np.ndarray]) -> Run:
    """MyGrad's own layer, which is channels first."""
    import mygrad
    from mygrad.nnet.layers import conv_nd

    mygrad.turn_memory_guarding_off()  # as its documentation advises for speed
    x = mygrad.tensor(np.ascontiguousarray(given["x"].transpose(0, 3, 1, 2)))
    weight = mygrad.tensor(np.ascontiguousarray(given["weight"].transpose(3, 2, 0, 1)))
    grad = np.ascontiguousarray(given["grad"].transpose(0, 3, 1, 2))

    def run() -> dict[str, Any]:
        x.null_grad()
        weight.null_grad()
        y = conv_nd(x, weight, stride=row.options["stride"], padding=row.options["padding"])
        y.backward(grad)
        assert x.grad is not None and weight.grad is not None
        return {"y": y.data.transpose(0, 2, 3, 1), "grad.x": x.grad.transpose(0, 2, 3, 1),
                "grad.weight": weight.grad.transpose(2, 3, 1, 0)}

    return run


def autograd_conv(row: Row, variant: str, given: dict[str, np.ndarray]) -> Run:
    """autograd has no convolution but `scipy.signal`'s, which is forty times slower than this: for
    each pixel of the output, its window of the image as a row of a matrix, and a product.

    The gradient is autograd's own affair; in the variant "by hand", that of the matrix to the image
    is given to it, written in NumPy.
    """
    import autograd.numpy as anp
    from autograd import make_vjp
    from autograd.extend import defvjp, primitive

    x, weight, grad = (given[name] for name in ("x", "weight", "grad"))
    stride, padding = row.options["stride"], row.options["padding"]
    (n, height, width, channels), kernel, (h, w, cout) = x.shape, len(weight), grad.shape[1:]
    border = ((0, 0), (padding, padding), (padding, padding), (0, 0))

    def windows(image: Any) -> list[Any]:
        """For each place in the kernel, the pixels of a padded image that it meets."""
        return [image[:, i : i + stride * h : stride, j : j + stride * w : stride]
                for i in range(kernel) for j in range(kernel)]

    def im2col(x: Any) -> Any:
        columns = anp.concatenate(windows(anp.pad(x, border, "constant")), axis=3)
        return anp.reshape(columns, (-1, kernel * kernel * channels))

    def col2im(columns: np.ndarray) -> np.ndarray:
        padded = np.zeros((n, height + 2 * padding, width + 2 * padding, channels), x.dtype)
        parts = np.split(columns.reshape(n, h, w, -1), kernel * kernel, axis=3)
        for window, part in zip(windows(padded), parts, strict=True):
            window += part
        return padded[:, padding : padding + height, padding : padding + width]

    if variant == "by hand":
        im2col = primitive(im2col)
        defvjp(im2col, lambda ans, x: col2im)

    def convolution(inputs: tuple[Any, Any]) -> Any:
        product = anp.dot(im2col(inputs[0]), anp.reshape(inputs[1], (-1, cout)))
        return anp.reshape(product, grad.shape)

    def run() -> dict[str, Any]:
        vjp, y = make_vjp(convolution)((x, weight))
        dx, dweight = vjp(grad)
        return {"y": y, "grad.x": dx, "grad.weight": dweight}

    return run
