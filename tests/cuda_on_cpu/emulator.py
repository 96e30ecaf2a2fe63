"""Runs the CUDA kernels of this project on the CPU: see README.md.

A kernel is compiled by g++ with cuda.h and primitives.h in place of the device's instructions, into
a library of its own, kept on disk. `Emulator` stands in for CuPy where `launch.running_on` puts it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensorlite.io import replacing
from tensorlite.kernels.cuda import compiler
from tensorlite.kernels.cuda.compiler import Kernel
from tests.cuda_on_cpu import memory

SCHEDULES = ("forward", "reverse", "shuffled")
STATIC_SHARED, ALL_SHARED = 48 << 10, 227 << 10  # bytes a block may have
MOST_THREADS = 1024
MOST_BLOCKS = (2**31 - 1, 65535, 65535)

HERE = Path(__file__).parent
COMMON = ("-std=c++17", "-fPIC", "-shared", "-w", "-g1", "-gdwarf-4", "-fmax-errors=3")
# A kernel's library holds nothing but it: its variables without a value are its shared memory.
CHECKS = "alignment,bounds-strict,signed-integer-overflow,shift-exponent"
KERNEL_OPTIONS = ("-O2", "-nostartfiles", "-fvisibility=hidden", "-fno-gnu-unique",
                  "-fno-strict-aliasing", f"-fsanitize={CHECKS}", "-fno-sanitize-recover=all")


class EmulatorError(RuntimeError):
    """The kernel, or its launch, is wrong."""


class Emulator:
    """A `launch.Runner`. schedule: the order in which threads run. guard: give kernels copies of
    arrays between inaccessible pages. sources: texts to use in place of files of ``src/``."""

    def __init__(self, schedule: str = "forward", guard: bool = True,
                 sources: Mapping[str, str] | None = None) -> None:
        self._schedule = SCHEDULES.index(schedule)
        self._guard = guard
        self._sources = dict(sources or {})

    def __call__(self, kernel: Kernel, grid: tuple[int, ...], arguments: Sequence[Any],
                 shared: int) -> None:
        library = _library(kernel, self._sources.get(kernel.source))
        grid = (*grid, *(3 - len(grid)) * (1,))
        _check_launch(kernel, grid, shared, library.static_bytes)
        _check_arguments(kernel, library.parameters, arguments)
        arrays = {i: a for i, a in enumerate(arguments) if isinstance(a, np.ndarray)}
        copies = memory.copy_guarded(arrays) if self._guard else {}
        try:
            values = [_value(argument, copies.get(i)) for i, argument in enumerate(arguments)]
            self._run(kernel, library, grid, values, shared)
            written = {}
            for i, copy in copies.items():
                if not copy.edges_are_whole():
                    raise EmulatorError(f"{kernel}: wrote outside argument {i}, "
                                        f"an array of {arrays[i].shape}")
                if not library.parameters[i].constant:
                    written[copy.start] = copy
            for copy in written.values():
                copy.copy_back()
        finally:
            for copy in set(copies.values()):
                copy.release()

    def _run(self, kernel: Kernel, library: _Library, grid: tuple[int, ...],
             values: list[Any], shared: int) -> None:
        machine = _machine()
        addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        well = machine.emulator_run((ctypes.c_uint * 3)(*grid), kernel.threads,
                                    ctypes.c_size_t(shared), self._schedule, library.call,
                                    addresses, library.static_start,
                                    ctypes.c_size_t(library.static_bytes))
        if not well:
            raise EmulatorError(f"{kernel}: {machine.emulator_message().decode()}{_fault_line()}")


@contextlib.contextmanager
def unset_memory() -> Iterator[None]:
    """Inside, what np.empty and np.empty_like return is full of NaN and, for integers, of the
    greatest number: a kernel that does not write all of its result, or adds to it, is seen."""

    def filled(make: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        def empty(*arguments: Any, **options: Any) -> np.ndarray:
            array = make(*arguments, **options)
            if array.dtype.kind in "iu":
                array.fill(np.iinfo(array.dtype).max)
            elif array.dtype.kind == "f":
                array.fill(np.nan)
            return array
        return empty

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "empty", filled(np.empty))
        patch.setattr(np, "empty_like", filled(np.empty_like))
        yield


class _Parameter(ctypes.Structure):
    """`entry::Parameter`."""

    _fields_ = [("kind", ctypes.c_char), ("bytes", ctypes.c_ubyte), ("pointer", ctypes.c_ubyte),
                ("constant", ctypes.c_ubyte)]

    def takes(self, dtype: np.dtype) -> bool:
        return self.kind == b"*" or (dtype.kind.encode(), dtype.itemsize) == (self.kind, self.bytes)

    def __str__(self) -> str:
        if self.kind == b"*":
            return "an array"
        kind = {b"i": "int", b"u": "uint", b"f": "float", b"b": "bool"}[self.kind]
        name = kind if kind == "bool" else f"{kind}{8 * self.bytes}"
        return f"an array of {name}" if self.pointer else name


class _Library:
    """A compiled kernel."""

    def __init__(self, path: Path) -> None:
        library = ctypes.PyDLL(str(path))
        self.call = library.emulator_call
        first = ctypes.POINTER(_Parameter)()
        count = library.emulator_parameters(ctypes.byref(first))
        self.parameters = first[:count]
        self.static_start = ctypes.c_void_p()
        library.emulator_static_shared.restype = ctypes.c_size_t
        self.static_bytes = library.emulator_static_shared(ctypes.byref(self.static_start))


def _check_launch(kernel: Kernel, grid: tuple[int, ...], shared: int, static: int) -> None:
    if not 1 <= kernel.threads <= MOST_THREADS:
        raise EmulatorError(f"{kernel}: a block has 1 to {MOST_THREADS} threads, "
                            f"not {kernel.threads}")
    if len(grid) != 3 or not all(1 <= n <= most for n, most in zip(grid, MOST_BLOCKS, strict=True)):
        raise EmulatorError(f"{kernel}: a grid has 1 to {MOST_BLOCKS} blocks, not {grid}")
    if static > STATIC_SHARED:
        raise EmulatorError(f"{kernel}: {static} bytes of static shared memory, "
                            f"at most {STATIC_SHARED}")
    if shared + static > ALL_SHARED:
        raise EmulatorError(f"{kernel}: {shared} bytes of dynamic and {static} of static shared "
                            f"memory, at most {ALL_SHARED}")


def _check_arguments(kernel: Kernel, parameters: list[_Parameter],
                     arguments: Sequence[Any]) -> None:
    if len(arguments) != len(parameters):
        raise EmulatorError(f"{kernel}: takes {len(parameters)} arguments, got {len(arguments)}")
    for i, (parameter, given) in enumerate(zip(parameters, arguments, strict=True)):
        if given is None and parameter.pointer:
            continue
        kind = np.ndarray if parameter.pointer else np.generic
        if not isinstance(given, kind) or not parameter.takes(given.dtype):
            got = given.dtype if isinstance(given, np.ndarray) else type(given).__name__
            array = "an array of " if isinstance(given, np.ndarray) else ""
            raise EmulatorError(f"{kernel}: argument {i} is {parameter}, got {array}{got}")
        if parameter.pointer and not given.flags.c_contiguous:
            raise EmulatorError(f"{kernel}: argument {i} is not contiguous")
        if parameter.pointer and not parameter.constant and not given.flags.writeable:
            raise EmulatorError(f"{kernel}: argument {i} may be written, got a read-only array")


def _value(argument: Any, copy: memory.GuardedCopy | None) -> Any:
    """What a parameter is given, in memory of its own."""
    if argument is None:
        return ctypes.c_void_p(0)
    if isinstance(argument, np.generic):
        return ctypes.create_string_buffer(argument.tobytes())
    start = memory.address(argument)
    return ctypes.c_void_p(copy.place(start) if copy else start)


def _fault_line() -> str:
    """The source line of the instruction that faulted, if addr2line can tell."""
    machine, offset = _machine(), ctypes.c_size_t()
    file, program = machine.emulator_fault(ctypes.byref(offset)), shutil.which("addr2line")
    if not file or not program:
        return ""
    told = subprocess.run([program, "-i", "-e", file.decode(), hex(offset.value)],
                          capture_output=True, text=True).stdout
    places = [line.rpartition("/")[2].split(" ")[0] for line in told.splitlines()]
    # Functions inlined into one another, the inner ones first: ours say nothing.
    for place in places:
        if place[:1] != "?" and place.partition(":")[0] not in _own_texts(".h"):
            return f", {place}"
    return ""


@functools.cache
def _machine() -> ctypes.PyDLL:
    """The library that kernels' libraries lean on. PyDLL: one launch at a time."""
    texts = _own_texts(".h") | _own_texts(".cpp")
    path = _built("machine", texts, ("machine.cpp", "primitives.cpp"), ("-O2", "-ldl"))
    machine = ctypes.PyDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    machine.emulator_message.restype = ctypes.c_char_p
    machine.emulator_fault.restype = ctypes.c_char_p
    return machine


@functools.cache
def _library(kernel: Kernel, text: str | None) -> _Library:
    _machine()
    source = compiler.read_source(kernel.source) if text is None else text
    # The macros come after our headers, so that no name of ours can be one of them.
    macros = "".join("#define {} {}\n".format(*d.split("=", 1)) for d in kernel.definitions)
    whole = (f'#include "entry.h"\n{macros}#include "{kernel.source}"\n'
             f"EMULATOR_ENTRY({kernel.name})\n")
    texts = {**_own_texts(".h"), **compiler.headers(), kernel.source: source, "whole.cpp": whole}
    return _Library(_built(kernel.name, texts, ("whole.cpp",), KERNEL_OPTIONS))


@functools.cache
def _own_texts(suffix: str) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8")
            for path in sorted(HERE.iterdir()) if path.suffix == suffix}


def _built(name: str, texts: dict[str, str], compiled: tuple[str, ...],
           options: tuple[str, ...]) -> Path:
    """The library made of the files `compiled` among `texts`, from the cache if it is there."""
    command = [_compiler(), *COMMON, *_instructions(), *compiled, *options]
    key = hashlib.sha256()
    for part in (*command, _version(), *(text for pair in texts.items() for text in pair)):
        key.update(part.encode() + b"\0")
    folder = compiler.cache_folder() / "on_cpu"
    path = folder / f"{name}-{key.hexdigest()[:24]}.so"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as beside, replacing(path) as unfinished:
        for file, text in texts.items():
            Path(beside, file).write_text(text, encoding="utf-8")
        done = subprocess.run([*command, "-o", str(unfinished.absolute())], cwd=beside,
                              capture_output=True, text=True)
        if done.returncode:
            raise EmulatorError(f"{name}: g++ failed\n{done.stderr}")
    return path


def _compiler() -> str:
    found = shutil.which("g++")
    if found is None:
        raise EmulatorError("g++ is not installed")
    return found


def require_compiler() -> None:
    """Skip the test that asks where there is no g++; where CI runs, fail it."""
    if sys.platform != "linux":
        pytest.skip("the CUDA kernels' emulator needs Linux")
    if shutil.which("g++") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("g++ is not installed: the CUDA kernels would go untested")
        pytest.skip("g++ is not installed: the CUDA kernels' emulator needs it")


@functools.cache
def _version() -> str:
    return subprocess.run([_compiler(), "--version"], capture_output=True, text=True).stdout


@functools.cache
def _instructions() -> tuple[str, ...]:
    """Let the compiler use this processor's vectors and fused products, where it is a PC's."""
    if platform.machine() == "x86_64" and "avx2" in Path("/proc/cpuinfo").read_text():
        return ("-march=x86-64-v3",)
    return ()
