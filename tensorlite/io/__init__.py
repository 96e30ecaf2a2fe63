"""Arrays in and out of files: safetensors to write and read; PyTorch .pth, .npz, Keras .h5 to read.

A weights file comes from a stranger. Nothing in it is run, what it claims is checked against the
bytes that are there, and whatever is wrong with it is one `FormatError` of one line that starts
with the file's name. The layout helpers at the end are the only place where PyTorch's channel
orders meet ours.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import secrets
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from tensorlite.io import limits, torch_pickle
from tensorlite.io.archive import check_expansion, open_archive, read_member

__all__ = [
    "FormatError",
    "check_file_hash",
    "from_oi",
    "from_oihw",
    "load_arrays",
    "load_npz",
    "load_pth",
    "load_safetensors",
    "one_line",
    "save_safetensors",
    "to_oi",
    "to_oihw",
]

Arrays = dict[str, np.ndarray]

_SAFETENSORS_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "bfloat16",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}
_NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_LONGEST = 1000  # characters of a message
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.[a-z0-9]+$")


def one_line(text: str) -> str:
    """A message that quotes what came from outside: new lines and whatever else cannot be printed
    escaped, and cut in its middle where it is long."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 3 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class FormatError(ValueError):
    """A file that is not what it should be; one line, starting with the file's name."""

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


def load_arrays(path: str | os.PathLike[str]) -> Arrays:
    """Read every array of a .safetensors, .npz, .pth/.pt or .h5 file, by the names in the file.

    Names in an .h5 file become "LAYER/leaf" ("conv1_conv/kernel"). Half and bfloat16 arrays come as
    float32, other types as stored. Arrays may be read-only and may share memory, as tensors in a
    .pth file do: copy before writing. Raises FormatError; ImportError for .h5 without h5py.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return load_safetensors(path)[0]
    if suffix in (".h5", ".hdf5"):
        return _load_h5(path)
    if suffix == ".npz":
        return load_npz(path)
    if suffix not in (".pth", ".pt"):
        known = ".safetensors, .npz, .pth, .pt or .h5"
        raise FormatError(f"{path}: suffix {suffix!r}, expected {known}")
    return load_pth(path)[0]


def load_pth(path: str | os.PathLike[str]) -> tuple[Arrays, dict[str, str]]:
    """Read a .pth file as `load_arrays` does: (arrays by name, metadata). Of metadata there is what
    `recres.export` wrote, see `torch_pickle.read`. Raises FormatError."""
    path = Path(path)
    with _one_line(path):
        return torch_pickle.read(path.read_bytes())


def load_npz(path: str | os.PathLike[str], texts: bool = False) -> Arrays:
    """Read an .npz file of numbers and, if asked for, of texts. Raises FormatError."""
    path = Path(path)
    with _one_line(path):
        return _read_npz(path.read_bytes(), "biufU" if texts else "biuf")


def load_safetensors(path: str | os.PathLike[str]) -> tuple[Arrays, dict[str, str]]:
    """Read a safetensors file: (arrays by name, metadata). Half and bfloat16 come as float32.

    Raises FormatError.
    """
    import safetensors  # here, so that importing tensorlite stays quick

    path = Path(path)
    with _one_line(path):
        data = path.read_bytes()
        arrays = {
            name: _typed_array(name, tensor) for name, tensor in safetensors.deserialize(data)
        }
        # deserialize has validated the header, and leaves the metadata out
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return arrays, header.get("__metadata__") or {}


def save_safetensors(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write arrays and str → str metadata as a safetensors file, which appears whole or not at all.

    Raises TypeError on metadata or names that are not strings, and on a dtype that the format
    does not have (float, signed and unsigned integer, bool); ValueError on a name that is not free.
    """
    import safetensors.numpy

    path = Path(path)
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"metadata {key!r}: {value!r}, expected str → str")
    tidy = {}
    for name, array in arrays.items():
        if not isinstance(name, str):
            raise TypeError(f"arrays: the name {name!r}, expected a str")
        if name == "__metadata__":
            raise ValueError("arrays: the name '__metadata__', which the format keeps for itself")
        array = np.asarray(array)
        if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
            raise TypeError(f"arrays[{name!r}]: dtype {array.dtype}, expected float, int or bool")
        # safetensors writes the memory as it lies, whatever the strides say
        tidy[name] = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    # (save_file would deny everyone else to read it)
    write_bytes(path, safetensors.numpy.save(tidy, dict(metadata) if metadata else None))


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a file, which appears whole or not at all, and is on disk."""
    with replacing(path) as beside, beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    flush_folder(path.parent)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write a file under, which takes the place of `path` when the block
    ends and is removed when it fails: `path` appears whole or stays as it was."""
    # (on a shared disk writers on several machines may well have the same number)
    beside = path.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def check_file_hash(path: str | os.PathLike[str]) -> str | None:
    """Compare the file with the sha256 that its name carries, as in `resnet50-0676ba61.pth`.

    Returns the hexadecimal prefix that matched, or None where the name carries none (8 or more
    hexadecimal digits between the last dash and the suffix). Raises FormatError on a mismatch.
    """
    path = Path(path)
    found = _HASH_IN_NAME.search(path.name)
    if found is None:
        return None
    with _one_line(path), path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(found[1]):
        raise FormatError(
            f"{path}: sha256 begins {digest[: len(found[1])]}, its name promises {found[1]}: "
            "fetch it again (or rename it, if that is no hash)"
        )
    return found[1]


def from_oihw(weight: np.ndarray) -> np.ndarray:
    """Convolution weight (C_out, C_in, kh, kw), as in PyTorch, to (kh, kw, C_in, C_out)."""
    return _permuted(weight, (2, 3, 1, 0), "(C_out, C_in, kh, kw)")


def to_oihw(weight: np.ndarray) -> np.ndarray:
    """Convolution weight (kh, kw, C_in, C_out) to (C_out, C_in, kh, kw), as in PyTorch."""
    return _permuted(weight, (3, 2, 0, 1), "(kh, kw, C_in, C_out)")


def from_oi(weight: np.ndarray) -> np.ndarray:
    """Linear weight (out, in), as in PyTorch, to (in, out)."""
    return _permuted(weight, (1, 0), "(out, in)")


def to_oi(weight: np.ndarray) -> np.ndarray:
    """Linear weight (in, out) to (out, in), as in PyTorch."""
    return _permuted(weight, (1, 0), "(in, out)")


def _permuted(weight: np.ndarray, order: tuple[int, ...], expected: str) -> np.ndarray:
    if weight.ndim != len(order):
        raise ValueError(f"weight: shape {weight.shape}, expected {expected}")
    return np.ascontiguousarray(weight.transpose(order))


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Turn whatever reading a file raises into a FormatError of one line.

    Catches every Exception: on damaged bytes zipfile, zlib, json, NumPy and HDF5 raise a dozen
    kinds, MemoryError and RecursionError among them, and none of these is the caller's mistake.
    """
    if not path.is_file():  # a folder, a pipe (which would never end), nothing at all
        raise FormatError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    if not (size := path.stat().st_size):
        raise FormatError(f"{path}: the file is empty")
    if size > limits.FILE_BYTES:
        raise FormatError(f"{path}: {size} bytes, more than the {limits.FILE_BYTES} of "
                          "tensorlite.io.limits.FILE_BYTES")
    try:
        yield
    except Exception as error:
        text = str(error) if isinstance(error, (ValueError, OSError)) else ""
        text = " ".join((text or f"damaged or not in its format ({error!r})").split())[:300]
        raise FormatError(f"{path}: cannot be read: {text}") from error


def _typed_array(name: str, tensor: Mapping) -> np.ndarray:
    if tensor["dtype"] not in _SAFETENSORS_TYPES:
        raise ValueError(f"{name!r} has the type {tensor['dtype']}, which is not read here")
    flat = torch_pickle.decode(tensor["data"], _SAFETENSORS_TYPES[tensor["dtype"]])
    return flat.reshape(tensor["shape"])


def _read_npz(data: bytes, kinds: str) -> Arrays:
    archive = open_archive(data)
    arrays: Arrays = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name in arrays:
            raise ValueError(f"the array {name!r} is there twice")
        arrays[name] = _read_npy(archive, info, kinds)
    return arrays


def _read_npy(archive: zipfile.ZipFile, info: zipfile.ZipInfo, kinds: str) -> np.ndarray:
    member = read_member(archive, info)
    stream = io.BytesIO(member)
    version = np.lib.format.read_magic(stream)
    if version not in _NPY_HEADERS:
        raise ValueError(f"{info.filename!r} has the unknown .npy version {version}")
    shape, fortran, dtype = _NPY_HEADERS[version](stream)
    if dtype.kind not in kinds:  # before a byte of it is looked at: objects are pickles
        expected = "numbers or texts" if "U" in kinds else "numbers"
        raise ValueError(f"{info.filename!r} has the type {dtype}, expected {expected}")
    if not dtype.itemsize:  # empty texts: any number of them in no bytes
        raise ValueError(f"{info.filename!r} has elements of no size")
    if min(shape, default=0) < 0:  # which np.ndarray takes for "as many as there are"
        raise ValueError(f"{info.filename!r} claims the shape {shape}")
    start = stream.tell()
    array: np.ndarray = np.ndarray(shape, dtype, member, start, order="F" if fortran else "C")
    if array.nbytes != len(member) - start:
        raise ValueError(f"{info.filename!r} does not hold the {shape} numbers that it claims")
    if dtype.kind == "U":  # NumPy crashes on texts of numbers that are no characters
        codes = np.frombuffer(member, dtype.byteorder.replace("|", "=") + "u4", offset=start)
        if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
            raise ValueError(f"{info.filename!r} has texts that are none")
    return array.astype(np.float32) if dtype == np.float16 else array


def _load_h5(path: Path) -> Arrays:
    try:
        import h5py
    except ImportError:
        raise ImportError(f"{path}: reading .h5 needs h5py; pip install h5py") from None
    datasets: dict[str, h5py.Dataset] = {}

    def collect(full_name: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "biuf":
            if item.external or item.is_virtual:
                raise ValueError(f"{full_name!r} keeps its data in another file")
            # Keras repeats the layer ("conv1/conv1/kernel:0") and may nest all in "model_weights"
            parts = full_name.removeprefix("model_weights/").removesuffix(":0").split("/")
            parts = [part for i, part in enumerate(parts) if i == 0 or part != parts[i - 1]]
            datasets["/".join(parts)] = item

    with _one_line(path), h5py.File(path, "r") as file:
        file.visititems(collect)  # follows no link out of the file
        check_expansion(sum(item.nbytes for item in datasets.values()), path.stat().st_size)
        return {
            name: item.astype(np.float32)[()] if item.dtype == np.float16 else item[()]
            for name, item in datasets.items()
        }


def flush_folder(path: Path) -> None:
    """Make the names in a folder, new or renamed, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
