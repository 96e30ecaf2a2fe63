"""Where in a program an op was applied: its source line, the module of the model, the names of its
tensors. All is read from the call stack at the moment of the op.
"""

from __future__ import annotations

import inspect
import linecache
import os
import sys
import weakref
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

from tensorlite.nn.module import Module
from tensorlite.tensor import Tensor

ENGINE = str(Path(__file__).resolve().parents[1]) + os.sep
LOOKED_AT = 64  # items of a list among which a tensor's name is looked for


class Origin(NamedTuple):
    """Where an op was applied. `caller`: the program's frame, to look for names in."""

    module: str | None
    module_type: str | None
    source: dict[str, Any] | None
    caller: FrameType | None


class Model:
    """The names of the parts of the model whose outermost module is `root`."""

    def __init__(self, root: Module) -> None:
        self.modules = {id(m): path for path, m in root.named_modules()}
        self.types = {path: type(m).__name__ for path, m in root.named_modules()}
        self.parameters: weakref.WeakKeyDictionary[Tensor, str] = weakref.WeakKeyDictionary()
        self.parameters.update((p, name) for name, p in root.named_parameters())


class Models:
    """The models met so far."""

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[Module, Model] = weakref.WeakKeyDictionary()

    def of(self, root: Module) -> Model:
        """What there is to know of the model of `root`."""
        if root not in self._known:
            self._known[root] = Model(root)
        return self._known[root]

    def name(self, tensor: Tensor) -> str | None:
        """The name of a parameter of any of the models."""
        names = (model.parameters.get(tensor) for model in self._known.values())
        return next((name for name in names if name is not None), None)


def find(inputs: tuple[Tensor | None, ...], models: Models) -> Origin:
    """Where the op being applied to `inputs` was asked for."""
    caller: FrameType | None = None
    stack: list[Module] = []
    within = 0  # how many of them, from the innermost, are in a call of a module
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if caller is None and not code.co_filename.startswith(ENGINE):
            caller = frame
        if code.co_argcount:
            first = frame.f_locals.get(code.co_varnames[0])
            if isinstance(first, Module):
                stack.append(first)
                if _is_method(type(first), code):  # not a function ``fit(model, …)``
                    within = len(stack)
        frame = frame.f_back
    path = kind = None
    if stack:
        model = models.of(stack[-1])
        path = next((model.modules[id(m)] for m in stack[:within] if id(m) in model.modules), None)
        for tensor in inputs:  # the layer that holds the weights, where that is further in
            name = "" if tensor is None else model.parameters.get(tensor, "")
            owner = name.rpartition(".")[0]
            if owner and path is not None and (not path or owner.startswith(path + ".")):
                path = owner
        kind = None if path is None else model.types.get(path)
    return Origin(path, kind, None if caller is None else source_of(caller), caller)


def _is_method(kind: type[Module], code: CodeType) -> bool:
    method = inspect.unwrap(getattr(kind, code.co_name, find))
    return getattr(method, "__code__", None) is code


def source_of(frame: FrameType) -> dict[str, Any] | None:
    """The line that a frame is at."""
    file, line = frame.f_code.co_filename, frame.f_lineno
    text = linecache.getline(file, line, frame.f_globals).strip()
    if not text:
        return None
    function = frame.f_code.co_name
    return {"file": file, "line": line, "text": text,
            "function": "" if function == "<module>" else function}


def shown(file: str) -> str:
    """A file's path as the page shows it: from here, or from the folder that its package is in."""
    path = Path(file)
    for base in (Path.cwd(), *(Path(p) for p in sys.path if p)):
        if path.is_relative_to(base):
            return path.relative_to(base).as_posix()
    return path.name


def variable(tensor: Tensor, frame: FrameType | None, outward: bool = False) -> str | None:
    """The name of the variable, or list item, of `frame` that holds `tensor`; with `outward`, of
    the outermost of the frames that called it where one does."""
    found = None
    while frame is not None:
        found = _variable(tensor, frame) or found
        frame = frame.f_back if outward else None
    return found


def _variable(tensor: Tensor, frame: FrameType) -> str | None:
    if frame.f_code.co_filename.startswith(ENGINE):
        return None
    for name, value in frame.f_locals.items():
        if name.startswith("_"):
            continue
        if value is tensor:
            return name
        if isinstance(value, list | tuple):
            for i, item in enumerate(value[:LOOKED_AT]):
                if item is tensor:
                    return f"{name}[{i}]"
    return None


def let_go() -> None:
    """Have the frames of the stack forget what they no longer hold: `f_locals`, once asked for,
    keeps what it saw until it is asked for again (before Python 3.13)."""
    frame = inspect.currentframe()
    while frame is not None:
        frame.f_locals  # noqa: B018
        frame = frame.f_back


def caller() -> FrameType | None:
    """The innermost frame of the program itself."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith(ENGINE):
        frame = frame.f_back
    return frame
