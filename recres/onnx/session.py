"""Running a model in ONNX Runtime, on the CPU, and comparing it with the network that it is of."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import numpy as np

import tensorlite
from recres.errors import InputError
from recres.onnx import require
from recres.onnx.graph import LEAST_OPSET, Graph, newest_opset
from recres.onnx.networks import NEXT, STATE

TOLERANCE = 1e-4  # of logits, over the largest of them where that is more than one


class Session:
    """A model (serialised) ready to run, with as many threads as tensorlite has.

    InputError without ONNX Runtime, or where this one cannot run the model.
    """

    def __init__(self, model: bytes) -> None:
        runtime = require("onnxruntime")
        self.version: str = runtime.__version__
        options = runtime.SessionOptions()
        options.intra_op_num_threads = tensorlite.get_num_threads()
        options.log_severity_level = 3  # errors, which are raised
        try:
            self._session = runtime.InferenceSession(model, options,
                                                     providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no class in common but this
            raise InputError(f"ONNX Runtime {self.version} cannot run the model (an older --opset "
                             f"may help): {' '.join(str(error).split())[:200]}") from None
        self._states: dict[str, Any] = {}

    def chunks(self, chunks: np.ndarray) -> np.ndarray:
        """Logits (B, classes) of chunks (B, T, H, W, C)."""
        return self._session.run(["logits"], {"input": chunks})[0]

    def push(self, frames: np.ndarray) -> np.ndarray:
        """Logits (B, classes) of the windows that frames (B, H, W, C) of B videos complete; of a
        video's first T - 1 frames they mean nothing."""
        if not self._states:
            self._states = {item.name: np.zeros((len(frames), *item.shape[1:]), np.float32)
                            for item in self._session.get_inputs() if item.name != "input"}
        names = [item.name for item in self._session.get_outputs()]
        results = dict(zip(names, self._session.run(names, {"input": frames, **self._states}),
                           strict=True))
        self._states = {name: results[NEXT + name.removeprefix(STATE)] for name in self._states}
        return results["logits"]

    def reset(self) -> None:
        """A new video begins."""
        self._states = {}


def runnable_opset() -> int:
    """The newest opset that the installed ONNX knows and the installed ONNX Runtime, which often is
    a step behind, runs."""
    for opset in range(newest_opset(), LEAST_OPSET, -1):
        graph = Graph(opset)
        graph.output("same", graph.input("input", [1]), [1])
        with contextlib.suppress(InputError):
            Session(graph.model("nothing", {}).SerializeToString())
            return opset
    return LEAST_OPSET


class Agreement(NamedTuple):
    """Of n answers of both: the largest difference of logits, the largest logit, and of how many
    the largest is of the same class."""

    n: int
    error: float
    largest: float
    same: int

    def __bool__(self) -> bool:
        return self.error <= TOLERANCE * max(1, self.largest)


def compare(ours: np.ndarray, theirs: np.ndarray) -> Agreement:
    """How far logits (n, classes) agree."""
    with np.errstate(invalid="ignore"):  # infinity minus itself is no agreement
        error, largest = np.abs(ours - theirs).max(), np.abs(ours).max()
    return Agreement(len(ours), float(error), float(largest),
                     int((ours.argmax(1) == theirs.argmax(1)).sum()))
