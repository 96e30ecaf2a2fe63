"""An ONNX graph in the making: what adds a node or a constant gives the name of its result.

Inputs and outputs are float32 and have any number of videos as their first axis, "batch".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import tensorlite
from recres.errors import InputError
from recres.onnx import require

MOST_BYTES = 2**31 - 2**20  # a file of protobuf has less than 2 GiB; some of it is the graph
LEAST_OPSET = 18  # of earlier ones ReduceMean takes its axes in another way


def newest_opset() -> int:
    """The newest opset that the installed ONNX knows."""
    return require("onnx").defs.onnx_opset_version()


class Graph:
    """Nodes, constants, inputs and outputs. opset: the version of ONNX's operators (default: the
    newest that the installed ONNX knows); InputError for one that cannot be written."""

    def __init__(self, opset: int | None = None) -> None:
        self._onnx = require("onnx")
        self.opset = newest_opset() if opset is None else opset
        if not LEAST_OPSET <= self.opset <= newest_opset():
            raise InputError(f"--opset {opset}: expected {LEAST_OPSET} to {newest_opset()}")
        self._nodes: list[Any] = []
        self._constants: dict[str, np.ndarray] = {}
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._names: set[str] = set()

    def input(self, name: str, shape: Sequence[int]) -> str:
        """An input (batch, *shape)."""
        self._inputs.append(self._signature(name, shape))
        return self._unique(name)

    def output(self, name: str, value: str, shape: Sequence[int]) -> None:
        """Let `value`, of shape (batch, *shape), be an output."""
        self._nodes.append(self._onnx.helper.make_node("Identity", [value], [name], name=name))
        self._outputs.append(self._signature(name, shape))

    def constant(self, name: str, array: np.ndarray) -> str:
        """A constant; of equal ones under one name there is one."""
        if name not in self._constants:
            if name in self._names:
                raise ValueError(f"name: {name!r} is no constant")
            self._names.add(name)
            self._constants[name] = array
        elif not np.array_equal(self._constants[name], array):
            raise ValueError(f"name: there is another constant {name!r}")
        return name

    def integers(self, *values: int) -> str:
        """A constant vector of integers."""
        return self.constant("integers." + "_".join(map(str, values)), np.array(values, np.int64))

    def node(self, kind: str, name: str, *inputs: str, **attributes: Any) -> str:
        """An operator's result; `name` says where in the network it is."""
        result = self._unique(f"{name}/{kind}")
        self._nodes.append(self._onnx.helper.make_node(kind, inputs, [result], name=result,
                                                       **attributes))
        return result

    def reshape(self, name: str, x: str, *shape: int) -> str:
        """x as (-1, *shape)."""
        return self.node("Reshape", name, x, self.integers(-1, *shape))

    def slice(self, name: str, x: str, start: int, stop: int) -> str:
        """x[:, start:stop]."""
        return self.node("Slice", name, x, self.integers(start), self.integers(stop),
                         self.integers(1))

    def zero_first(self, name: str, x: str, ndim: int) -> str:
        """x with zeros put in front along its second axis."""
        return self.node("Pad", name, x, self.integers(*(axis == 1 for axis in range(2 * ndim))))

    def gather(self, name: str, x: str, places: Sequence[int]) -> str:
        """x[:, places]."""
        return self.node("Gather", name, x, self.integers(*places), axis=1)

    def model(self, name: str, about: Mapping[str, str]) -> Any:
        """The whole as an `onnx.ModelProto`; `about` becomes its metadata. InputError where it has
        more weights than one file can hold."""
        size = sum(array.nbytes for array in self._constants.values())
        if size > MOST_BYTES:
            raise InputError(f"{size / 1e9:.1f} GB of weights, and an ONNX file holds 2 GB; "
                             ".safetensors holds them alone")
        helper = self._onnx.helper
        constants = [self._onnx.numpy_helper.from_array(array, key)
                     for key, array in self._constants.items()]
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, constants)
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="recres",
                                  producer_version=tensorlite.__version__,
                                  ir_version=helper.find_min_ir_version_for(opsets))
        helper.set_model_props(model, dict(about))
        return model

    def _signature(self, name: str, shape: Sequence[int]) -> Any:
        return self._onnx.helper.make_tensor_value_info(name, self._onnx.TensorProto.FLOAT,
                                                        ["batch", *shape])

    def _unique(self, name: str) -> str:
        free, number = name, 2
        while free in self._names:
            free, number = f"{name}.{number}", number + 1
        self._names.add(free)
        return free
