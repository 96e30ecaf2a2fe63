"""PyTorch's .pth files without PyTorch, and without running anything that they ask for.

A .pth file is a pickle, and a pickle is a program: Python's unpickler imports and calls what it
names. This is an interpreter of our own for the few opcodes that a saved state dict uses. It
imports nothing and calls nothing: a name is one of a short list or an error, and what PyTorch
would rebuild by a call becomes a plain description (`_Tensor`), filled from the file's bytes
after its bounds are checked.

The two forms, as in torch/serialization.py: a zip archive with `NAME/data.pkl` and one member
`NAME/data/KEY` a storage; before PyTorch 1.6 five pickles in a row (magic number, protocol,
system, the object, the storages' keys) and then the storages.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorlite.io.archive import open_archive, read_member

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_MAX_DIMENSIONS = 32
ABOUT = "about"  # under which key a state dict's metadata says what the network is
# Larger integers can be chosen to have one hash, and a dict of these takes quadratic time.
_MOST_KEY = 2**60
_STORAGES = {
    "Float": "f4",
    "Double": "f8",
    "Half": "f2",
    "BFloat16": "bfloat16",
    "Long": "i8",
    "Int": "i4",
    "Short": "i2",
    "Char": "i1",
    "Byte": "u1",
    "Bool": "?",
}


@dataclass(frozen=True)
class _Global:
    """What the pickle would import: a name, never the thing."""

    name: str


@dataclass(frozen=True)
class _Storage:
    kind: str  # a value of _STORAGES
    key: str
    size: int  # elements


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: Any  # these three are as in the file; _view checks them
    shape: Any
    strides: Any  # elements


@dataclass(frozen=True)
class _Ignored:
    """A harmless object that is no tensor: it may stand in a checkpoint and is not looked at."""


_STORAGE_TYPES = {
    f"{module}.{kind}Storage": dtype
    for module in ("torch", "torch.cuda")
    for kind, dtype in _STORAGES.items()
}
_TENSORS = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}
_PARAMETERS = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
_IGNORED = {
    "argparse.Namespace",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "_codecs.encode",
    "torch.device",
}
_KNOWN = {
    *("collections.OrderedDict", "torch.Size"),
    *(*_STORAGE_TYPES, *_TENSORS, *_PARAMETERS, *_IGNORED),
}
_STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "net")
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
_FRESH: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_STORE = {"PUT", "BINPUT", "LONG_BINPUT"}
_FETCH = {"GET", "BINGET", "LONG_BINGET"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Dict(dict[Any, Any]):
    """An OrderedDict, and the attributes that the pickle gives it."""

    attributes: Any = None


def read(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of a .pth file's state dict, by name, as views of its storages; and what it says
    of itself: the texts by name that are `_metadata[""][ABOUT]` of the state dict.

    A checkpoint that nests its state dict is accepted, and "module." before every name
    (DataParallel) is dropped. Raises ValueError, or whatever damaged bytes make zipfile raise.
    """
    root, storage_bytes = _open_zip(data) if data[:2] == b"PK" else _open_legacy(data)
    tensors = _state_dict(root)
    storages: dict[_Storage, np.ndarray] = {}
    arrays = {}
    for name, tensor in tensors.items():
        if tensor.storage not in storages:
            storages[tensor.storage] = storage_bytes(tensor.storage)
        arrays[name] = _view(name, tensor, storages[tensor.storage])
    return arrays, _about(root)


def _about(root: Any) -> dict[str, str]:
    """The texts in the state dict at the top; none where they are not what they should be."""
    found = root.attributes if isinstance(root, _Dict) else None
    for key in ("_metadata", "", ABOUT):
        found = found.get(key) if isinstance(found, dict) else None
    return {key: value for key, value in found.items()
            if isinstance(key, str) and isinstance(value, str)} if isinstance(found, dict) else {}


def decode(data: bytes, kind: str) -> np.ndarray:
    """The numbers in `data` as a flat array; `kind` is a NumPy type (with byte order) or bfloat16.

    Half and bfloat16 become float32.
    """
    if kind.endswith("bfloat16"):  # the upper half of a float32
        order = kind.removesuffix("bfloat16") or "<"
        upper = np.frombuffer(data, f"{order}u2").astype(np.uint32)
        return (upper << 16).view(np.float32)
    flat = np.frombuffer(data, kind)
    if flat.dtype.kind == "b":
        return flat.view(np.uint8) != 0  # bytes other than 0 and 1 are no valid bool
    if flat.dtype.kind == "f" and flat.dtype.itemsize == 2:
        return flat.astype(np.float32)
    return flat.astype(flat.dtype.newbyteorder("="), copy=False)


def _open_zip(data: bytes) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    archive = open_archive(data)
    members = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError("a zip archive without a PyTorch state dict (NAME/data.pkl)")
    folder = pickles[0].removesuffix("data.pkl")
    said = b"little"
    if f"{folder}byteorder" in members:
        said = read_member(archive, members[f"{folder}byteorder"]).strip()
    if said not in (b"little", b"big"):
        raise ValueError(f"byte order {_brief(said)}, expected 'little' or 'big'")
    order = "<" if said == b"little" else ">"

    def storage_bytes(storage: _Storage) -> np.ndarray:
        info = members.get(f"{folder}data/{storage.key}")
        if info is None:
            raise ValueError(f"the storage {_brief(storage.key)} is missing")
        _check_size(storage, info.file_size)
        return decode(read_member(archive, info), order + storage.kind)

    return _interpret(io.BytesIO(read_member(archive, members[pickles[0]]))), storage_bytes


def _open_legacy(data: bytes) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    stream = io.BytesIO(data)
    if _interpret(stream) != _LEGACY_MAGIC:
        raise ValueError("a pickle, but not one that torch.save wrote")
    _interpret(stream), _interpret(stream)  # protocol; the machine that wrote it
    used: dict[str, _Storage] = {}
    root = _interpret(stream, used)
    keys = _interpret(stream)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("the list of storages is damaged")
    # then each storage: its number of elements in 8 bytes, and these, little-endian on any machine
    position = stream.tell()
    places = {}
    for key in keys:
        if key not in used:
            raise ValueError(f"the storage {_brief(key)} belongs to no tensor")
        size = int.from_bytes(data[position : position + 8], "little", signed=True)
        start, position = position + 8, position + 8 + size * _itemsize(used[key].kind)
        if size < 0 or position > len(data):
            raise ValueError(f"the storage {_brief(key)} reaches past the end of the file")
        places[key] = (start, position)

    def storage_bytes(storage: _Storage) -> np.ndarray:
        if storage.key not in places:
            raise ValueError(f"the storage {_brief(storage.key)} is missing")
        start, stop = places[storage.key]
        _check_size(storage, stop - start)
        return decode(data[start:stop], "<" + storage.kind)

    return root, storage_bytes


def _interpret(stream: io.BytesIO, used: dict[str, _Storage] | None = None) -> Any:
    """What one pickle describes; `used` gathers the storages it speaks of.

    Time and memory are linear in the bytes read: no opcode copies what it did not take from the
    stack, and only strings and numbers become keys (the hash of a tuple of tuples is exponential).
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    argument: Any
    for opcode, argument, _ in pickletools.genops(stream):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case name if name in _LITERALS:
                stack.append(argument)
            case name if name in _FRESH:
                stack.append(_FRESH[name]())
            case name if name in _STORE:
                if argument >= _MOST_KEY:
                    raise ValueError("its pickle has a place that is none")
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case name if name in _FETCH:
                stack.append(memo[argument])
            case "MARK":
                marks.append(len(stack))
            case "POP":
                stack.pop()
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case name if name in _TUPLES:
                items = [stack.pop() for _ in range(_TUPLES[name])]
                stack.append(tuple(reversed(items)))
            case "APPEND":
                item = stack.pop()
                _as(list, stack[-1]).append(item)
            case "APPENDS":
                items = since_mark()
                _as(list, stack[-1]).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set(stack[-1], key, value)
            case "SETITEMS":
                items = since_mark()
                for key, value in zip(items[::2], items[1::2], strict=True):
                    _set(stack[-1], key, value)
            case "GLOBAL":
                stack.append(_global(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                attribute, module = _as(str, stack.pop()), _as(str, stack.pop())
                stack.append(_global(f"{module}.{attribute}"))
            case "REDUCE" | "NEWOBJ":
                arguments, function = _as(tuple, stack.pop()), _as(_Global, stack.pop())
                stack.append(_rebuild(function.name, arguments))
            case "BUILD":  # attributes, as OrderedDict's _metadata
                attributes = stack.pop()
                if isinstance(stack[-1], _Dict):
                    stack[-1].attributes = attributes
                elif not isinstance(stack[-1], dict):
                    _as(_Ignored, stack[-1])
            case "BINPERSID":
                storage = _storage(_as(tuple, stack.pop()))
                stack.append(storage)
                if used is not None:
                    used[storage.key] = storage
            case "STOP":
                return stack.pop()
            case name:
                raise ValueError(
                    f"refused: its pickle uses {name} {_brief(argument)}, no part of a state dict"
                )
    raise AssertionError("genops ends with STOP or raises")


def _global(name: str) -> _Global:
    if name not in _KNOWN:
        raise ValueError(
            f"refused: it asks for {_brief(name)}, no part of a state dict; nothing was run"
        )
    return _Global(name)


def _rebuild(name: str, arguments: tuple[Any, ...]) -> Any:
    """The description of what calling `name` on `arguments` would have built."""
    if name in _TENSORS and len(arguments) >= 4:
        return _Tensor(_as(_Storage, arguments[0]), *arguments[1:4])
    if name in _PARAMETERS and arguments:
        return _as(_Tensor, arguments[0])
    if name == "torch.Size" and len(arguments) == 1:
        return _as(tuple, arguments[0])
    if name == "collections.OrderedDict":
        ordered = _Dict()
        if arguments:  # from Python 2: one list of [key, value]
            pairs = _as(list, arguments[0])
            for pair in pairs:
                key, value = _as(list, pair)
                _set(ordered, key, value)
            pairs.clear()  # else one list named over and over would cost its length each time
        return ordered
    if name in _IGNORED:
        return _Ignored()
    raise ValueError(f"refused: it calls {name} with {len(arguments)} arguments")


def _storage(identity: tuple[Any, ...]) -> _Storage:
    """The storage that a persistent id names: ("storage", type, key, device, size[, view])."""
    if len(identity) not in (5, 6) or identity[0] != "storage" or identity[5:] not in ((), (None,)):
        raise ValueError("a reference to something other than a whole storage")
    _, kind, key, _, size = identity[:5]
    if _as(_Global, kind).name not in _STORAGE_TYPES or _as(int, size) < 0:
        raise ValueError(f"a storage of {_brief(size)} elements of the type {kind.name}")
    return _Storage(_STORAGE_TYPES[kind.name], _as(str, key), size)


def _state_dict(root: Any) -> dict[str, _Tensor]:
    """The named tensors of a checkpoint, at its top or under a customary key."""
    top = _as(dict, root)
    for candidate in (top, *(top.get(key) for key in _STATE_DICT_KEYS)):
        if isinstance(candidate, dict):
            tensors = {
                name: value
                for name, value in candidate.items()
                if isinstance(name, str) and isinstance(value, _Tensor)
            }
            if tensors:
                if all(name.startswith("module.") for name in tensors):
                    return {name.removeprefix("module."): t for name, t in tensors.items()}
                return tensors
    raise ValueError(f"no tensors, neither at the top nor under {', '.join(_STATE_DICT_KEYS)}")


def _view(name: str, tensor: _Tensor, flat: np.ndarray) -> np.ndarray:
    """The tensor as a read-only view of its storage, with the strides it had.

    Raises ValueError where it would reach outside the storage, or repeats elements (stride 0):
    what is a byte in the file must not become a terabyte in a copy.
    """
    shape, strides = _as(tuple, tensor.shape), _as(tuple, tensor.strides)
    if len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"{_brief(name)} has {len(shape)} dimensions and {len(strides)} strides")
    if any(type(n) is not int or n < 0 for n in (tensor.offset, *shape, *strides)):
        raise ValueError(f"{_brief(name)} has an offset, size or stride that is no natural number")
    if 0 in shape:
        return np.zeros(shape, flat.dtype)
    reach = tensor.offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if reach >= flat.size or math.prod(shape) > flat.size:
        raise ValueError(f"{_brief(name)} reaches outside its storage of {flat.size} elements")
    steps = [step * flat.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(flat[tensor.offset :], shape, steps, writeable=False)


def _as(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        expected = kind.__name__.strip("_").lower()
        raise ValueError(f"its pickle has a {type(value).__name__} where a {expected} belongs")
    return value


def _set(target: Any, key: Any, value: Any) -> None:
    if not isinstance(key, (str, int, float, type(None))):
        raise ValueError(f"its pickle has a {type(key).__name__} for a key")
    if isinstance(key, int) and abs(key) >= _MOST_KEY:
        raise ValueError("its pickle has a key of many digits")
    _as(dict, target)[key] = value


def _check_size(storage: _Storage, size: int) -> None:
    if storage.size * _itemsize(storage.kind) != size:
        raise ValueError(f"the storage {_brief(storage.key)} has {size} bytes, not what it claims")


def _itemsize(kind: str) -> int:
    return 2 if kind == "bfloat16" else np.dtype(kind).itemsize


def _brief(value: Any) -> str:
    return ascii(value)[:80]
