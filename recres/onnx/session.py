"""Running a model in ONNX Runtime, on the CPU, and comparing it with the network that it is of."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

import tensorlite
from recres.errors import InputError
from recres.onnx import require
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


class Agreement(NamedTuple):
    """Of n logits of both: the largest difference, over the largest logit where that is more than
    one, and of how many the largest is of the same class."""

    n: int
    error: float
    same: int

    def __bool__(self) -> bool:
        return self.error <= TOLERANCE


def compare(ours: np.ndarray, theirs: np.ndarray) -> Agreement:
    """How far logits (n, classes) agree."""
    error = np.abs(ours - theirs).max() / max(1.0, np.abs(ours).max())
    return Agreement(len(ours), float(error), int((ours.argmax(1) == theirs.argmax(1)).sum()))
