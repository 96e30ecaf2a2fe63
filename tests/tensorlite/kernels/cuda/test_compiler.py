"""Every kernel compiles for every architecture, without a GPU; and what is compiled is kept."""

from __future__ import annotations

import fnmatch
import os
import tomllib
from importlib import resources
from pathlib import Path

import pytest

from tensorlite.kernels.cuda import __main__ as command
from tensorlite.kernels.cuda import all_kernels, compiler
from tensorlite.kernels.cuda.compiler import CompileError, compile_kernel, kernel, usage

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(autouse=True)
def nvrtc():
    try:
        compiler._nvrtc()
    except CompileError as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))


@pytest.mark.parametrize("arch", command.ARCHITECTURES)
def test_all_kernels_compile_and_hot_ones_do_not_spill(arch: int,
                                                       capsys: pytest.CaptureFixture[str]):
    assert command.main(["--arch", str(arch)]) == 0, capsys.readouterr().err
    table = capsys.readouterr().out
    able = [k for k in all_kernels() if arch >= k.least]
    assert f"{len(able)} compiled, 0 failed" in table
    assert all(str(k) in table for k in able)


def test_kernels_are_listed_once_and_some_are_hot():
    found = all_kernels()
    assert len(set(found)) == len(found)
    assert any(k.hot for k in found)
    assert {k.least for k in found} == {75, 80}


def test_every_source_is_used_and_ships_with_the_package():
    folder = resources.files("tensorlite.kernels.cuda") / "src"
    files = {entry.name for entry in folder.iterdir()}
    assert {k.source for k in all_kernels()} == {f for f in files if f.endswith(".cu")}
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["tensorlite.kernels.cuda"]
    assert all(any(fnmatch.fnmatch(f"src/{f}", p) for p in patterns) for f in files)


def test_all_assembly_is_in_the_primitives():
    folder = resources.files("tensorlite.kernels.cuda") / "src"
    with_assembly = {entry.name for entry in folder.iterdir() if "asm" in entry.read_text()}
    assert with_assembly == {"primitives.cuh"}


def test_an_older_architecture_is_refused():
    young = kernel("elementwise.cu", "affine", TYPE="float", least=80)
    with pytest.raises(CompileError, match="needs compute capability 8.0, the device has 7.5"):
        compile_kernel(young, 75)


def test_a_compiled_kernel_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = next(k for k in all_kernels() if k.source == "elementwise.cu")
    path = compile_kernel(first, 90, tmp_path)
    assert path.read_bytes()[:4] == b"\x7fELF"
    assert usage(first, 90, tmp_path).registers > 0
    monkeypatch.setattr(compiler, "_compile", lambda *_: pytest.fail("compiled again"))
    assert compile_kernel(first, 90, tmp_path) == path
    monkeypatch.undo()
    assert compile_kernel(first, 80, tmp_path) != path
    monkeypatch.setattr(compiler, "headers", lambda: {"primitives.cuh": "// another"})
    monkeypatch.setattr(compiler, "_compile", lambda *_: (b"code", "log"))
    assert compile_kernel(first, 90, tmp_path) != path
    assert not list(tmp_path.glob(".*"))


def test_a_mistake_is_reported_with_its_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(compiler, "read_source", lambda name: "\n\nint x = ;\n")
    with pytest.raises(CompileError, match=r"broken\.cu\(3\): error"):
        compile_kernel(kernel("broken.cu", "f"), 90, tmp_path)


def test_without_nvrtc_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    compiler._nvrtc.cache_clear()
    monkeypatch.setattr(compiler, "_candidates", lambda: ["/nowhere/libnvrtc.so.0"])
    with pytest.raises(CompileError, match="pip install nvidia-cuda-nvrtc"):
        compiler._nvrtc()


def test_the_command_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str]):
    for arguments, words in ((["--arch", "ninety"], "'ninety'"), (["--only", "zzz"], "zzz")):
        with pytest.raises(SystemExit) as stop:
            command.main(arguments)
        assert stop.value.code == 2
        assert words in capsys.readouterr().err
    assert command.main(["--list"]) == 0
    assert f"{len(all_kernels())} kernels" in capsys.readouterr().out
