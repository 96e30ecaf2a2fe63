"""Every primitive of src/primitives.cuh against what its comment says, bit by bit: run by the
emulator, and by the hardware where there is one. So the two are held beside each other as well.

Sums of products are exact here, whatever their order: the inputs are small integers. How a product
of other numbers rounds is compared up to the error that every kernel's test allows.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensorlite.device import require_cuda, to_device
from tensorlite.kernels.cuda import compiler
from tensorlite.kernels.cuda.launch import launch, running_on

SOURCE = "on_device.cu"
TEXT = (Path(__file__).parent / SOURCE).read_text(encoding="utf-8")
LANES = 32
LANE = np.arange(LANES)
ROW, COLUMN = LANE // 4, LANE % 4  # of a lane in a fragment

Run = Callable[..., list[np.ndarray]]


@pytest.fixture(scope="module", params=["emulator", "cuda:0"])
def run(request: pytest.FixtureRequest) -> Run:
    """run(name, *inputs, outputs=…): what a kernel of the source writes into zeros."""
    read = compiler.read_source
    patch = pytest.MonkeyPatch()
    patch.setattr(compiler, "read_source", lambda name: TEXT if name == SOURCE else read(name))
    request.addfinalizer(patch.undo)

    def launched(name: str, inputs: Any, outputs: Any, scalars: Any, shared: int) -> None:
        kernel = compiler.kernel(SOURCE, name, threads=LANES, least=80)
        launch(kernel, (1,), *inputs, *outputs, *scalars, shared=shared)

    def on_device(name: str, *inputs: np.ndarray, outputs: list[np.ndarray], scalars: Any = (),
                  shared: int = 0) -> list[np.ndarray]:
        there = [to_device(array, "cuda:0") for array in outputs]
        launched(name, [to_device(array, "cuda:0") for array in inputs], there, scalars, shared)
        return [to_device(array, "cpu") for array in there]

    def on_emulator(name: str, *inputs: np.ndarray, outputs: list[np.ndarray], scalars: Any = (),
                    shared: int = 0) -> list[np.ndarray]:
        from tests.cuda_on_cpu.emulator import Emulator

        with running_on(Emulator("shuffled")):
            launched(name, inputs, outputs, scalars, shared)
        return outputs

    if request.param == "emulator":
        if shutil.which("g++") is None:
            pytest.skip("g++ is not installed: no emulator")
        return on_emulator
    try:
        cupy = require_cuda("cuda:0")
    except RuntimeError as missing:
        pytest.skip(str(missing))
    if int(cupy.cuda.Device(0).compute_capability) < 80:
        pytest.skip("tensor cores of sm_80 and asynchronous copies are needed")
    return on_device


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    """Every number the same in every bit; of NaNs any is as good as another."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    bits = f"u{actual.dtype.itemsize}"
    differ = actual.view(bits) != expected.view(bits)
    if actual.dtype.kind == "f":
        differ &= ~(np.isnan(actual) & np.isnan(expected))
    where = np.flatnonzero(differ)
    assert where.size == 0, (
        f"{where.size} of {actual.size} differ, the first at {where[0]}: "
        f"{actual.flat[where[0]]!r}, expected {expected.flat[where[0]]!r}")


def test_numbers(run: Run):
    halves = np.arange(1 << 16, dtype=np.uint16)
    values = halves.view(np.float16).astype(np.float32)
    finite = np.sort(values[np.isfinite(values)])
    between = (finite[1:] + finite[:-1]) / 2  # ties
    rng = np.random.default_rng(0)
    floats = np.concatenate([
        values, between, np.nextafter(between, np.float32(np.inf)),
        np.nextafter(between, np.float32(-np.inf)),
        np.array([65519.996, 65520, 3.4028235e38, 1e-45, -0.0, np.inf, -np.inf], np.float32),
        rng.integers(0, 1 << 32, 1 << 16, dtype=np.uint32).view(np.float32)])
    halves = np.resize(halves, floats.size)
    widened, narrowed, rounded = run(
        "numbers", halves, floats, scalars=[np.int32(floats.size)],
        outputs=[np.zeros(floats.size, dtype) for dtype in (np.float32, np.uint16, np.uint32)])
    assert_same_bits(widened, halves.view(np.float16).astype(np.float32))
    with np.errstate(over="ignore", invalid="ignore"):
        assert_same_bits(narrowed.view(np.float16), floats.astype(np.float16))
    # The nearest number with 10 bits of fraction, ties away from zero; beyond the last, infinity.
    bits = floats.view(np.uint32)
    special = ~np.isfinite(floats)
    expected = np.where(special, bits, (bits + np.uint32(1 << 12)) & np.uint32(0xFFFFE000))
    assert_same_bits(rounded.view(np.float32), expected.astype(np.uint32).view(np.float32))


@pytest.mark.parametrize("mask", [0xFFFFFFFF, 0, 0x5AA5_0FF1])
def test_asynchronous_copies(run: Run, mask: int):
    given = np.random.default_rng(0).integers(0, 1 << 32, (3, 160), dtype=np.uint32)
    (copied,) = run("copies", given, outputs=[np.zeros_like(given)], scalars=[np.uint32(mask)],
                    shared=given.nbytes)
    wanted = (mask >> LANE & 1).astype(np.uint32)
    assert_same_bits(copied, given * np.concatenate([np.repeat(wanted, 4), wanted]))


def test_matrices(run: Run):
    rows = np.random.default_rng(0).integers(0, 1 << 16, (LANES, 24), dtype=np.uint16)
    straight, transposed = run(
        "matrices", rows, outputs=[np.zeros((LANES, 4), np.uint32) for _ in range(2)])
    four = rows[:, :8].reshape(4, 8, 8)

    def pairs(matrix: np.ndarray) -> np.ndarray:
        low, high = matrix[ROW, 2 * COLUMN], matrix[ROW, 2 * COLUMN + 1]
        return low.astype(np.uint32) | high.astype(np.uint32) << 16

    assert_same_bits(straight, np.stack([pairs(matrix) for matrix in four], axis=1))
    assert_same_bits(transposed, np.stack([pairs(matrix.T) for matrix in four], axis=1))


def fragments(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Matrices 16 x k and k x 8 as the lanes hold them for `mma_tf32` or `mma_half`."""
    if a.dtype == np.float32:
        x = [a[ROW + 8 * (i % 2), COLUMN + 4 * (i // 2)] for i in range(4)]
        y = [b[COLUMN + 4 * i, ROW] for i in range(2)]
        return np.stack(x, 1).view(np.uint32), np.stack(y, 1).view(np.uint32)
    x = [np.stack([a[ROW + 8 * (i % 2), 2 * COLUMN + 8 * (i // 2) + j] for j in range(2)], 1)
         for i in range(4)]
    y = [np.stack([b[2 * COLUMN + 8 * i + j, ROW] for j in range(2)], 1) for i in range(2)]
    return tuple(np.concatenate(parts, 1).view(np.uint32) for parts in (x, y))


def sums(c: np.ndarray) -> np.ndarray:
    """A 16 x 8 matrix as the lanes hold it."""
    return np.stack([c[ROW + 8 * (i // 2), 2 * COLUMN + i % 2] for i in range(4)], 1)


def multiply(run: Run, a: np.ndarray, b: np.ndarray, a_half: np.ndarray, b_half: np.ndarray,
             c: np.ndarray) -> list[np.ndarray]:
    given = [*fragments(a, b), *fragments(a_half, b_half), sums(c)]
    return run("products", *map(np.ascontiguousarray, given),
               outputs=[np.zeros((LANES, 4), np.float32) for _ in range(2)])


def test_products_that_are_exact(run: Run):
    rng = np.random.default_rng(0)
    a, b, c = (rng.integers(-1000, 1001, shape).astype(np.float32)
               for shape in ((16, 8), (8, 8), (16, 8)))
    a_half, b_half = (rng.integers(-1000, 1001, shape).astype(np.float16)
                      for shape in ((16, 16), (16, 8)))
    tf32, half = multiply(run, a, b, a_half, b_half, c)
    assert_same_bits(tf32, sums(a @ b + c))
    assert_same_bits(half, sums(a_half.astype(np.float32) @ b_half.astype(np.float32) + c))


def test_products_that_round(run: Run):
    rng = np.random.default_rng(1)
    a, b, a_half, b_half, c = (rng.standard_normal(shape).astype(np.float32) for shape in (
        (16, 8), (8, 8), (16, 16), (16, 8), (16, 8)))
    a, b = (((x.view(np.uint32) + np.uint32(1 << 12)) & np.uint32(0xFFFFE000)).view(np.float32)
            for x in (a, b))
    a_half, b_half = a_half.astype(np.float16), b_half.astype(np.float16)
    for found, x, y in zip(multiply(run, a, b, a_half, b_half, c), (a, a_half), (b, b_half),
                           strict=True):
        x, y = x.astype(np.float64), y.astype(np.float64)
        allowed = 1e-6 * (abs(x) @ abs(y) + abs(c))
        assert np.all(abs(found - sums(x @ y + c)) <= sums(allowed))


def test_lanes(run: Run):
    given = np.random.default_rng(0).integers(0, 1 << 32, LANES, dtype=np.uint32)
    (found,) = run("lanes", given, outputs=[np.zeros((LANES, 4), np.uint32)])
    ballot = np.bitwise_or.reduce((given & 1) << LANE.astype(np.uint32))
    expected = [given[LANE ^ 5], given[np.where(LANE >= 3, LANE - 3, LANE)],
                given[np.where(LANE < 30, LANE + 2, LANE)], np.full(LANES, ballot, np.uint32)]
    assert_same_bits(found, np.stack(expected, 1))
