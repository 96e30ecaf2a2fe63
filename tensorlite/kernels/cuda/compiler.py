"""Compiling the CUDA sources: NVRTC through ctypes, and its results kept on disk.

NVRTC is a library, not a program: it needs neither a driver nor a GPU, so every kernel can be
compiled, for any architecture, on any machine. It comes with CuPy or alone
(``pip install nvidia-cuda-nvrtc``). We compile to machine code for one architecture, never to PTX,
and hand CuPy the result: then inline assembly has been checked, and the same source, options and
architecture are the same bits everywhere.
"""

from __future__ import annotations

import ctypes
import functools
import glob
import hashlib
import os
import re
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import NamedTuple

OPTIONS = ("-std=c++17", "-default-device", "--extra-device-vectorization", "-Xptxas=-v")


class CompileError(RuntimeError):
    """NVRTC is missing, or refused a source."""


@dataclass(frozen=True)
class Kernel:
    """An ``extern "C"`` function of a source in ``src/``, with the macros that it is compiled with.

    threads: of a block, also the macro THREADS. least: the compute capability it needs, times ten.
    hot: it may not spill registers.
    """

    source: str
    name: str
    macros: tuple[tuple[str, str | int], ...] = ()
    threads: int = 256
    least: int = 75
    hot: bool = False

    def __str__(self) -> str:
        chosen = ", ".join(f"{name} {value}" for name, value in self.macros)
        return f"{self.name} ({chosen})" if chosen else self.name

    @property
    def definitions(self) -> tuple[str, ...]:
        """The macros as compilers take them: NAME=value."""
        return (f"THREADS={self.threads}", *(f"{name}={value}" for name, value in self.macros))


def kernel(source: str, name: str, threads: int = 256, least: int = 75, hot: bool = False,
           **macros: str | int) -> Kernel:
    """`Kernel` with its macros as keywords."""
    return Kernel(source, name, tuple(macros.items()), threads, least, hot)


class Usage(NamedTuple):
    """What the assembler says of a kernel: registers a thread, bytes of static shared memory a
    block, and bytes of registers spilled a thread."""

    registers: int
    shared: int
    spills: int


def read_source(name: str) -> str:
    """The text of a file of ``src/``, also from an installed package."""
    return (resources.files(__package__) / "src" / name).read_text(encoding="utf-8")


def headers() -> dict[str, str]:
    """All headers of ``src/`` by name."""
    folder = resources.files(__package__) / "src"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".cuh"))
    return {name: read_source(name) for name in names}


def compile_kernel(kernel: Kernel, arch: int, cache: Path | None = None) -> Path:
    """The machine code of a kernel for an architecture (80 for sm_80), in a file.

    It is compiled once: the file is named by everything that it depends on. What the assembler said
    lies beside it. Raises CompileError, with the compiler's own words, where that fails.
    """
    if arch < kernel.least:
        raise CompileError(f"{kernel}: needs compute capability {kernel.least / 10}, "
                           f"the device has {arch / 10}")
    text = f"{read_source(kernel.source)}\n"
    options = (f"-arch=sm_{arch}", *OPTIONS, *(f"-D{d}" for d in kernel.definitions))
    key = hashlib.sha256()
    for part in (text, *(t for pair in headers().items() for t in pair), *options, kernel.name,
                 _version()):
        key.update(part.encode() + b"\0")
    folder = cache_folder() if cache is None else cache
    path = folder / f"{kernel.name}-sm_{arch}-{key.hexdigest()[:24]}.cubin"
    if not path.exists():
        code, log = _compile(text, kernel.source, options)
        folder.mkdir(parents=True, exist_ok=True)
        _write(path.with_suffix(".log"), log.encode())
        _write(path, code)
    return path


def usage(kernel: Kernel, arch: int, cache: Path | None = None) -> Usage:
    """Registers, shared memory and spills of a kernel, as the assembler reports them."""
    log = compile_kernel(kernel, arch, cache).with_suffix(".log").read_text(encoding="utf-8")
    entry = log.partition(f"Compiling entry function '{kernel.name}'")[2]
    entry = entry.partition("Compiling entry function")[0]

    def number(pattern: str) -> int:
        match = re.search(pattern, entry)
        return int(match[1]) if match else 0

    spills = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
    return Usage(number(r"Used (\d+) registers"), number(r"(\d+) bytes smem"), spills)


def cache_folder() -> Path:
    """Where compiled kernels are kept: $TENSORLITE_CACHE, or the user's cache folder."""
    chosen = os.environ.get("TENSORLITE_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tensorlite"


def _write(path: Path, content: bytes) -> None:
    """Write beside and rename, so that other processes see all of a file or nothing."""
    beside = path.with_name(f".{os.getpid()}-{threading.get_ident()}-{path.name}")
    beside.write_bytes(content)
    os.replace(beside, path)


def _candidates() -> Iterable[str]:
    """Where NVRTC may lie: in a wheel beside us, in a toolkit, or on the loader's path."""
    for base in sys.path:
        for folder in ("cu13", "cuda_nvrtc", "cu12"):
            yield from sorted(glob.glob(f"{base}/nvidia/{folder}/lib/libnvrtc.so.*"))
    home = os.environ.get("CUDA_PATH", "/usr/local/cuda")
    yield from sorted(glob.glob(f"{home}/lib64/libnvrtc.so.*"))
    yield from ("libnvrtc.so.13", "libnvrtc.so.12")


@functools.cache
def _nvrtc() -> ctypes.CDLL:
    for path in _candidates():
        if ".alt." in path:
            continue
        try:
            for builtins in glob.glob(f"{os.path.dirname(path)}/libnvrtc-builtins.so.*"):
                ctypes.CDLL(builtins, mode=ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(path)
        except OSError:
            continue
    raise CompileError("NVRTC, the CUDA compiler library, is not installed; install it with: "
                       "pip install nvidia-cuda-nvrtc")


@functools.cache
def _version() -> str:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _nvrtc().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"NVRTC {major.value}.{minor.value}"


def _compile(text: str, name: str, options: tuple[str, ...]) -> tuple[bytes, str]:
    """The machine code, and the log."""
    nvrtc, program = _nvrtc(), ctypes.c_void_p()
    included = headers()
    texts = (ctypes.c_char_p * len(included))(*(t.encode() for t in included.values()))
    names = (ctypes.c_char_p * len(included))(*(n.encode() for n in included))
    code = nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), name.encode(),
                                    len(included), texts, names)
    if code:
        raise CompileError(f"{name}: NVRTC could not start ({_error(code)})")
    try:
        given = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
        code = nvrtc.nvrtcCompileProgram(program, len(options), given)
        log = _text(program, "ProgramLog").decode(errors="replace").rstrip("\0")
        if code:
            raise CompileError(f"{name}: {_error(code)} with {' '.join(options)}\n{log}")
        return _text(program, "CUBIN"), log
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _text(program: ctypes.c_void_p, what: str) -> bytes:
    nvrtc, size = _nvrtc(), ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{what}")(program, buffer)
    return buffer.raw


def _error(code: int) -> str:
    describe = _nvrtc().nvrtcGetErrorString
    describe.restype = ctypes.c_char_p
    return describe(code).decode()
