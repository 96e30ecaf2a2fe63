"""Networks as ONNX models: what they compute written as a graph of ONNX's operators.

    graph.py     a graph in the making
    networks.py  the networks of `recres.models` as graphs, for chunks and for streams
    session.py   running a model in ONNX Runtime, and comparing it with the network it is of
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from recres.errors import InputError


def require(name: str) -> Any:
    """The package `onnx` or `onnxruntime`; InputError, saying what to install, without it."""
    try:
        return import_module(name)
    except ImportError:
        raise InputError(f"{name} is not installed; install it with: "
                         "pip install 'recres[export]'") from None
