"""Arrows between the packages point one way, and importing the engine is light and quick."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("tensorlite", "recres") for path in (ROOT / package).rglob("*.py")
}
LIGHT_ENGINE = ("cupy", "cv2", "torch", "scipy", "matplotlib", "h5py")


def resolve(module: str, path: Path, statement: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """The absolute names of the modules that an import statement in `module` asks for."""
    if isinstance(statement, ast.Import):
        yield from (alias.name for alias in statement.names)
        return
    base = statement.module or ""
    if statement.level:
        package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
        above = package[: len(package) - statement.level + 1]
        base = ".".join([*above, *([base] if base else [])])
    yield base
    for alias in statement.names:
        if f"{base}.{alias.name}" in MODULES:
            yield f"{base}.{alias.name}"


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports(module: str, at_import_time: bool = False) -> set[str]:
    """What `module` imports, anywhere in it or only when it is imported itself."""
    path = MODULES[module]
    found: set[str] = set()
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.update(resolve(module, path, node))
        elif is_for_types_only(node):
            todo += node.orelse
        elif not (at_import_time and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            todo += ast.iter_child_nodes(node)
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def offences(importers: str, forbidden: tuple[str, ...], but: tuple[str, ...] = ()) -> list[str]:
    return sorted(f"{module} imports {name}" for module in MODULES if within(module, importers)
                  for name in imports(module)
                  if any(within(name, f) for f in forbidden) and name not in but)


def test_the_graph_is_read_as_it_should_be():
    assert "tensorlite.kernels" in imports("tensorlite.ops.elementwise")
    assert "tensorlite.tensor" in imports("tensorlite.autograd")
    assert "tensorlite.ops" in imports("tensorlite")
    assert "cupy" in imports("tensorlite.device")
    assert "cupy" not in imports("tensorlite.device", at_import_time=True)
    assert "tensorlite.autograd" not in imports("tensorlite.recording")  # for types only


def test_recres_never_imports_a_kernel():
    assert offences("recres", ("tensorlite.kernels", "tensorlite.ops")) == []


def test_kernels_never_import_tensor():
    """Nor anything else of the engine but `device`."""
    others = tuple(m for m in MODULES if within(m, "tensorlite") and m != "tensorlite"
                   and not within(m, "tensorlite.kernels") and m != "tensorlite.device")
    assert offences("tensorlite.kernels", others) == []
    assert [m for m in MODULES if within(m, "tensorlite.kernels")
            and "tensorlite" in imports(m)] == []


def test_tensorlite_never_imports_recres():
    assert offences("tensorlite", ("recres",)) == []


def test_ops_know_nothing_of_what_is_built_on_them():
    assert offences("tensorlite.ops", ("tensorlite.nn", "tensorlite.optim", "tensorlite.io")) == []


def test_importing_the_engine_loads_nothing_heavy_by_the_source():
    """Followed through the source: what `import tensorlite` runs mentions none of them."""
    seen: set[str] = set()
    todo = ["tensorlite"]
    while todo:
        module = todo.pop()
        if module in seen or module not in MODULES:
            seen.add(module)
            continue
        seen.add(module)
        for name in imports(module, at_import_time=True):
            parts = name.split(".")  # importing a.b.c runs a and a.b first
            todo += [".".join(parts[: i + 1]) for i in range(len(parts))]
    assert "tensorlite.kernels.cpu.convolution" in seen
    assert seen.isdisjoint(LIGHT_ENGINE)


def test_importing_the_engine_loads_nothing_heavy():
    code = (f"import sys, tensorlite; print([m for m in {LIGHT_ENGINE} if m in sys.modules])")
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, check=True,
                            capture_output=True)
    assert result.stdout.strip() == "[]"


def test_importing_the_engine_is_quick():
    """Under 0.3 s for a fresh interpreter, NumPy and all. Counted in processor time, since waiting
    for others who use the machine is not the import's, and with one BLAS thread, since the idle
    spinning of a second one is not either; the best of several."""
    code = "import time, tensorlite; print(time.process_time())"
    best = float("inf")
    for _ in range(10):
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, check=True,
                                capture_output=True,
                                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
        best = min(best, float(result.stdout))
        if best < 0.3:
            return
    pytest.fail(f"python -c 'import tensorlite' takes {best:.2f} s")


def test_the_heart_of_the_engine_fits_in_400_lines():
    lines = sum(len(MODULES[m].read_text().splitlines())
                for m in ("tensorlite.tensor", "tensorlite.autograd"))
    assert lines <= 400
