"""The emulator: it computes what the device would, and finds the mistakes it is there to find."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tensorlite.kernels.cuda.compiler import kernel
from tests.cuda_on_cpu.emulator import (
    SCHEDULES,
    Emulator,
    EmulatorError,
    require_compiler,
    unset_memory,
)

HEAD = '#include "primitives.cuh"\n'


@pytest.fixture(autouse=True)
def _compiler() -> None:
    require_compiler()


def run(body: str, *arguments: Any, parameters: str = "const float* x, float* y", blocks: Any = 1,
        threads: int = 32, shared: int = 0, schedule: str = "forward", before: str = "",
        guard: bool = True, **macros: Any) -> None:
    """Run a kernel of which only the body is given, its lines counted from 1."""
    text = (f'{HEAD}{before}\nextern "C" __global__ __launch_bounds__(THREADS)\n'
            f"void planted({parameters}) {{\nint t = threadIdx.x;\n#line 1\n{body}\n}}\n")
    emulate = Emulator(schedule, guard, sources={"planted.cu": text})
    grid = blocks if isinstance(blocks, tuple) else (blocks,)
    emulate(kernel("planted.cu", "planted", threads=threads, **macros), grid, arguments, shared)


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def results(body: str, x: np.ndarray, like: np.ndarray, **options: Any) -> list[np.ndarray]:
    """What a kernel writes, in each schedule."""
    outputs = []
    for schedule in SCHEDULES:
        outputs.append(np.zeros_like(like))
        run(body, x, outputs[-1], schedule=schedule, **options)
    return outputs


# ---- right kernels -------------------------------------------------------------------------------

TILED = """
    __shared__ float a[16][17], b[16][17];
    int i = t / 16, j = t % 16, row = blockIdx.y * 16 + i, column = blockIdx.x * 16 + j;
    float sum = 0;
    for (int k = 0; k < inner; k += 16) {
        a[i][j] = row < rows && k + j < inner ? x[row * inner + k + j] : 0.0f;
        b[i][j] = k + i < inner && column < columns ? w[(k + i) * columns + column] : 0.0f;
        __syncthreads();
        for (int l = 0; l < 16; l++) sum += a[i][l] * b[l][j];
        AFTER
    }
    if (row < rows && column < columns) y[row * columns + column] = sum;
"""


def tiled_product(after: str, schedule: str) -> float:
    """The greatest error of a tiled product."""
    x, w = numbers(33, 50), numbers(50, 20)
    y = np.zeros((33, 20), np.float32)
    run(TILED, x, w, y, *np.array(y.shape + x.shape[1:], np.int32), blocks=(2, 3), threads=256,
        parameters="const float* x, const float* w, float* y, int rows, int columns, int inner",
        schedule=schedule, AFTER=after)
    return np.abs(y - x.astype(np.float64) @ w).max()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_tiled_product(schedule: str) -> None:
    assert tiled_product("__syncthreads();", schedule) < 1e-5


def test_tiled_product_without_its_second_barrier() -> None:
    errors = [tiled_product("", schedule) for schedule in SCHEDULES]
    assert max(errors) > 1e-2


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sum_by_shuffles_and_barriers(schedule: str) -> None:
    x, y = numbers(3, 256), np.zeros(3, np.float32)
    run("""
        __shared__ float sums[THREADS / 32];
        float sum = x[blockIdx.x * THREADS + t];
        for (int by = 16; by; by /= 2) sum += __shfl_xor_sync(~0u, sum, by);
        if (t % 32 == 0) sums[t / 32] = sum;
        __syncthreads();
        if (t < 32) {
            sum = t < THREADS / 32 ? sums[t] : 0.0f;
            for (int by = 16; by; by /= 2) sum += __shfl_down_sync(~0u, sum, by);
            if (t == 0) y[blockIdx.x] = sum;
        }
    """, x, y, blocks=3, threads=256, schedule=schedule)
    np.testing.assert_allclose(y, x.sum(1, dtype=np.float64), atol=1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_a_warp_does_together(schedule: str) -> None:
    y = np.zeros((9, 32), np.int32)
    run("""
        y[t] = __shfl_sync(~0u, t, 5);
        y[32 + t] = __shfl_sync(~0u, t, 3, 8);
        y[64 + t] = __shfl_up_sync(~0u, t, 2, 16);
        y[96 + t] = __shfl_down_sync(~0u, t, 3);
        y[128 + t] = __shfl_xor_sync(~0u, t, 9);
        y[160 + t] = __ballot_sync(~0u, t % 3 == 0);
        y[192 + t] = __any_sync(~0u, t == 7);
        y[224 + t] = __all_sync(~0u, t == 7);
        unsigned half = t < 16 ? 0xffffu : 0xffff0000u;
        y[256 + t] = __shfl_xor_sync(half, t, 4) + 100 * __all_sync(half, t < 16);
    """, y, parameters="int* y", schedule=schedule)
    t = np.arange(32)
    np.testing.assert_array_equal(y, [
        np.full(32, 5), t // 8 * 8 + 3, np.where(t % 16 < 2, t, t - 2), np.where(t > 28, t, t + 3),
        t ^ 9, np.full(32, sum(1 << i for i in range(0, 32, 3))),
        np.ones(32), np.zeros(32), (t ^ 4) + 100 * (t < 16)])


def test_indices_and_grid() -> None:
    y = np.zeros((4, 3, 2, 64), np.int32)
    run("""
        int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
        y[block * blockDim.x + t] = blockIdx.x + 10 * blockIdx.y + 100 * blockIdx.z + 1000 * t;
    """, y, parameters="int* y", blocks=(2, 3, 4), threads=64)
    z, row, x, t = np.indices(y.shape)
    np.testing.assert_array_equal(y, x + 10 * row + 100 * z + 1000 * t)


def test_mathematics_keeps_the_type() -> None:
    x, y = np.array([0.3], np.float32), np.zeros((2, 8))
    run("""
        if (t) return;
        float a = x[0];
        double b = a;
        y[0] = exp(a), y[1] = tanh(a), y[2] = log(a), y[3] = rsqrt(a), y[4] = fma(a, a, a);
        y[5] = max(a, __int_as_float(0x7fc00000)), y[6] = fabs(-a), y[7] = isnan(a);
        y[8] = exp(b), y[9] = tanh(b), y[10] = log(b), y[11] = rsqrt(b), y[12] = fma(b, b, b);
        y[13] = min(b, 1.0), y[14] = fabs(-b), y[15] = isnan(b - b);
    """, x, y, parameters="const float* x, double* y")
    b = np.float64(x[0])
    exact = [np.exp(b), np.tanh(b), np.log(b), 1 / np.sqrt(b), b * b + b, b, b, 0]
    np.testing.assert_allclose(y[0], exact, rtol=3e-7)
    np.testing.assert_allclose(y[1], exact, rtol=1e-15)
    assert abs(y[0, 0] - exact[0]) > 1e-12  # a float's exp, not a double's


def test_atomic_operations_on_integers() -> None:
    y = np.zeros(3, np.int32)
    run("atomicAdd(y, 2); atomicMax(y + 1, t); atomicCAS(y + 2, 0, t + 1);", y,
        parameters="int* y", threads=64)
    np.testing.assert_array_equal(y, [128, 63, 1])


# ---- numbers -------------------------------------------------------------------------------------


def test_widen_all_halves() -> None:
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    y = np.empty(x.shape, np.float32)
    run("int i = blockIdx.x * THREADS + t; y[i] = widen(x[i]);", x, y,
        parameters="const half16* x, float* y", blocks=64, threads=1024)
    np.testing.assert_array_equal(y, x.astype(np.float32))
    np.testing.assert_array_equal(np.signbit(y), np.signbit(x))


def test_narrow_halves_ties_and_their_neighbours() -> None:
    halves = np.arange(0x7C01, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves[-1] = 65536  # where the next number would be
    ties = (halves[1:] + halves[:-1]) / 2
    x = np.concatenate([halves, ties, [np.inf, 1e38, 1e-30, 1e-45]]).astype(np.float32)
    x = np.concatenate([x, np.nextafter(x, np.float32(0)), np.nextafter(x, np.float32(np.inf))])
    x = np.concatenate([x, -x, [np.nan]]).astype(np.float32)
    y = np.empty(x.shape, np.float16)
    run("int i = blockIdx.x * THREADS + t; if (i < count) narrow(y[i], x[i]);", x, y,
        np.int32(x.size), parameters="const float* x, half16* y, int count",
        blocks=-(-x.size // 1024), threads=1024)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(y, x.astype(np.float16))
    np.testing.assert_array_equal(np.signbit(y[:-1]), np.signbit(x[:-1]))
    assert y[-1:].view(np.uint16) == 0x7FFF


def tf32(x: np.ndarray) -> np.ndarray:
    """x rounded to 10 bits of fraction, ties away from zero, by way of exact float64."""
    fraction, exponent = np.frexp(x.astype(np.float64))
    whole = np.trunc(np.abs(fraction) * 2**11 + 0.5)
    return np.ldexp(np.copysign(whole, fraction), exponent - 11).astype(np.float32)


def test_to_tf32() -> None:
    x = np.concatenate([numbers(1000), 1 + np.arange(64) / 2**12, -1 - np.arange(64) / 2**12,
                        [0, -0.0, np.inf, -np.inf, 3e38, 2.0**-126]]).astype(np.float32)
    y = np.empty(x.size, np.uint32)
    run("int i = blockIdx.x * THREADS + t; if (i < count) y[i] = to_tf32(x[i]);", x, y,
        np.int32(x.size), parameters="const float* x, uint32_t* y, int count", blocks=40)
    with np.errstate(invalid="ignore"):
        wanted = np.where(np.isinf(x), x, tf32(x))
    np.testing.assert_array_equal(y.view(np.float32), wanted)
    # 1 + 2^-12 is below the tie, 1 + 2^-11 is the tie and goes up.
    np.testing.assert_array_equal(y[1001:1003], [0x3F800000, 0x3F802000])


# ---- tensor cores --------------------------------------------------------------------------------

TF32_PRODUCT = """
    int g = t / 4, q = t % 4;
    uint32_t fa[4], fb[2];
    float fc[4];
    for (int i = 0; i < 4; i++) {
        fa[i] = to_tf32(a[(g + 8 * (i % 2)) * 8 + q + 4 * (i / 2)]);
        fc[i] = c[(g + 8 * (i / 2)) * 8 + 2 * q + i % 2];
    }
    for (int i = 0; i < 2; i++) fb[i] = to_tf32(b[(q + 4 * i) * 8 + g]);
    SPOIL
    mma_tf32(fc, fa, fb);
    for (int i = 0; i < 4; i++) c[(g + 8 * (i / 2)) * 8 + 2 * q + i % 2] = fc[i];
"""


def tf32_product_error(spoil: str, schedule: str = "forward") -> float:
    a, b, c = numbers(16, 8), numbers(8, 8) - 1, numbers(16, 8) + 1
    exact = c + tf32(a).astype(np.float64) @ tf32(b)
    run(TF32_PRODUCT, a, b, c, parameters="const float* a, const float* b, float* c",
        schedule=schedule, SPOIL=spoil)
    return np.abs(c - exact).max()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_mma_tf32(schedule: str) -> None:
    assert tf32_product_error("", schedule) < 1e-5


def test_mma_tf32_with_fragments_swapped() -> None:
    assert tf32_product_error("uint32_t kept = fa[1]; fa[1] = fa[2]; fa[2] = kept;") > 0.1
    assert tf32_product_error("uint32_t kept = fb[0]; fb[0] = fb[1]; fb[1] = kept;") > 0.1


def test_mma_tf32_reads_19_bits() -> None:
    assert tf32_product_error("for (int i = 0; i < 4; i++) fa[i] |= 0x1fff;") < 1e-5


HALF_PRODUCT = """
    __shared__ __align__(16) half16 a[16 * 24], b[16 * 24];
    for (int i = t; i < 256; i += 32) {
        a[i / 16 * 24 + i % 16] = x[i];
        b[i / 16 * 24 + i % 16] = w[i];
    }
    __syncwarp();
    // a has its rows in memory, b its columns (w is transposed) or, where ROWS, its rows.
    uint32_t fa[4], fb[4];
    load_matrices(fa, &a[t % 16 * 24 + t / 16 * 8]);
    if (ROWS)
        load_transposed(fb, &b[t % 16 * 24 + t / 16 * 8]);
    else
        load_matrices(fb, &b[(t % 8 + t / 16 * 8) * 24 + t / 8 % 2 * 8]);
    for (int n = 0; n < 2; n++) {
        float c[4] = {1, 1, 1, 1};
        mma_half(c, fa, fb + 2 * n);
        for (int i = 0; i < 4; i++)
            y[(t / 4 + 8 * (i / 2)) * 16 + 8 * n + 2 * (t % 4) + i % 2] = c[i];
    }
"""


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("rows", [0, 1])
def test_mma_half_and_matrices_from_shared_memory(rows: int, schedule: str) -> None:
    x, w = numbers(16, 16).astype(np.float16), (numbers(16, 16) - 1).astype(np.float16)
    y = np.empty((16, 16), np.float32)
    run(HALF_PRODUCT, x, w, y, parameters="const half16* x, const half16* w, float* y",
        schedule=schedule, ROWS=rows)
    exact = 1 + x.astype(np.float64) @ (w if rows else w.T).astype(np.float64)
    np.testing.assert_allclose(y, exact, atol=1e-5)


def test_fragments_of_load_matrices() -> None:
    x = np.arange(4 * 8 * 8, dtype=np.uint16).reshape(4, 8, 8)
    y = np.empty((2, 32, 4, 2), np.uint16)
    run("""
        DYNAMIC_SHARED(uint16_t, all);
        for (int i = t; i < 256; i += 32) all[i] = x[i];
        __syncwarp();
        uint32_t* to = reinterpret_cast<uint32_t*>(y);
        load_matrices(to + 4 * t, all + 8 * t);
        load_transposed(to + 128 + 4 * t, all + 8 * t);
    """, x, y, parameters="const uint16_t* x, uint16_t* y", shared=512)
    for lane in range(32):
        rows, columns = [lane // 4] * 2, [lane % 4 * 2, lane % 4 * 2 + 1]
        np.testing.assert_array_equal(y[0, lane], x[:, rows, columns])
        np.testing.assert_array_equal(y[1, lane], x[:, columns, rows])


def test_a_row_that_is_not_aligned() -> None:
    with pytest.raises(EmulatorError, match="row of lane 1 starts at no multiple of 16"):
        run("__shared__ __align__(16) float a[32 * 5]; uint32_t r[4]; load_matrices(r, a + 5 * t);",
            parameters="")


# ---- asynchronous copies -------------------------------------------------------------------------

COPIES = """
    __shared__ __align__(16) float a[2][128];
    copy_async16(&a[0][4 * t], x + 4 * t, true);
    copy_commit();
    for (int i = 0; i < 4; i++) copy_async4(&a[1][4 * t + i], x + 4 * t + i, i % 2);
    copy_commit();
    WAIT
    for (int i = 0; i < 4; i++) {
        y[4 * t + i] = a[0][4 * t + i];
        y[128 + 4 * t + i] = a[1][4 * t + i];
    }
"""


def copied(wait: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, y = numbers(128), np.zeros((2, 128), np.float32)
    run(COPIES, x, y, WAIT=wait)
    return x, y[0], y[1]


def test_copies_that_were_waited_for() -> None:
    x, whole, half = copied("copy_wait<0>();")
    np.testing.assert_array_equal(whole, x)
    np.testing.assert_array_equal(half, x * (np.arange(128) % 2))


def test_copies_that_were_not_waited_for() -> None:
    x, whole, half = copied("copy_wait<1>();")
    np.testing.assert_array_equal(whole, x)
    assert np.isnan(half).all()
    assert np.isnan(copied("__syncthreads();")[1]).all()


def test_a_group_that_was_not_closed() -> None:
    x, y = numbers(32), np.zeros(32, np.float32)
    run("__shared__ float a[32]; copy_async4(a + t, x + t, true); copy_wait<0>(); y[t] = a[t];", x,
        y)
    assert np.isnan(y).all()


def test_copies_that_are_not_aligned() -> None:
    shared = "__shared__ __align__(16) float a[256]; "
    with pytest.raises(EmulatorError, match="to an address that is no multiple of 16, planted.cu"):
        run(shared + "copy_async16(a + t, x, true);", numbers(4), numbers(1))
    with pytest.raises(EmulatorError, match="from an address that is no multiple of 16"):
        run(shared + "copy_async16(a + 4 * t, x + 1, true);", numbers(8), numbers(1))


def test_a_copy_from_outside() -> None:
    with pytest.raises(EmulatorError, match="outside all arrays.*thread 1"):
        run("__shared__ float a[32]; copy_async4(a + t, x + t, t > 0);", numbers(0), numbers(1))
    run("__shared__ float a[32]; copy_async4(a + t, x + t, false);", numbers(0), numbers(1))


# ---- memory --------------------------------------------------------------------------------------


def test_reading_outside_an_array() -> None:
    where = r"planted: access outside all arrays.*block \(1, 0, 0\), thread 16, planted.cu:3"
    with pytest.raises(EmulatorError, match=where):
        run("int i = blockIdx.x * THREADS + t;\n\ny[i] = x[i];", numbers(48), numbers(64), blocks=2)


def test_writing_outside_an_array() -> None:
    y = np.zeros(48, np.float32)
    with pytest.raises(EmulatorError, match="access outside all arrays.*thread 48"):
        run("y[t] = 1;", numbers(1), y, threads=64)
    run("y[t] = 1;", numbers(1), y, threads=32)  # the emulator works on
    np.testing.assert_array_equal(y, np.arange(48) < 32)


@pytest.mark.parametrize("index", [-1, -900, 5, 6, 7])
def test_writing_where_nothing_faults(index: int) -> None:
    with pytest.raises(EmulatorError, match=r"wrote outside argument 1, an array of \(5,\)"):
        run(f"if (t == 0) y[{index}] = 0;", numbers(1), numbers(5))


def test_reading_where_nothing_faults() -> None:
    y = np.zeros(4, np.float32)
    run("if (t < 4) y[t] = x[t - 1];", numbers(3), y)
    assert np.isnan(y[0])
    run("if (t < 4) y[t] = x[t];", numbers(3), y)
    assert np.isnan(y[3])


def test_a_null_pointer() -> None:
    run("if (x) y[t] = 1;", None, numbers(32))
    with pytest.raises(EmulatorError, match="through a null pointer.*planted.cu:1"):
        run("y[t] = x[t];", None, numbers(32))


def test_vectors_must_be_aligned() -> None:
    body = "reinterpret_cast<float4*>(y)[t] = reinterpret_cast<const float4*>(x)[t];"
    x, y = numbers(132), np.zeros(128, np.float32)
    run(body, x[4:], y)
    np.testing.assert_array_equal(y, x[4:])
    with pytest.raises(EmulatorError, match="is no multiple of 16, planted.cu:1"):
        run(body, x[1:129], y)


def test_views_and_arrays_that_overlap() -> None:
    whole = np.arange(96, dtype=np.float32)
    before = whole.copy()
    run("y[t] = x[t] + 1;", whole[32:64], whole[64:])
    np.testing.assert_array_equal(whole[64:], before[32:64] + 1)
    np.testing.assert_array_equal(whole[:64], before[:64])
    run("y[t] = 2 * x[t];", whole[:32], whole[:32])
    np.testing.assert_array_equal(whole[:32], 2 * before[:32])
    a, b = whole[:64], whole[32:]  # both are written, and share the middle
    run("x[t] = -1; x[t + 32] = -2; y[t + 32] = -3;", a, b, parameters="float* x, float* y")
    np.testing.assert_array_equal(whole, np.repeat([-1, -2, -3], 32))


def test_a_table_of_addresses() -> None:
    arrays = [numbers(8), numbers(8) + 1]
    wanted = [2 * a for a in arrays]
    table = np.array([a.ctypes.data for a in arrays], np.uint64)
    run("if (t < 8) reinterpret_cast<float*>(x[blockIdx.x])[t] *= 2;", table,
        parameters="const uint64_t* x", blocks=2)
    np.testing.assert_array_equal(arrays, wanted)


def test_unset_memory() -> None:
    x = numbers(40)
    with unset_memory():
        part, count = np.empty_like(x), np.empty((), np.int64)
    run("if (t != 7) y[t] = 2 * x[t];", x, part)
    np.testing.assert_array_equal(np.isnan(part), np.isin(np.arange(40), [7, *range(32, 40)]))
    assert count == 2**63 - 1


def test_without_guards() -> None:
    x, y = numbers(32), np.zeros(32, np.float32)
    run("y[t] = x[t];", x, y, guard=False)
    np.testing.assert_array_equal(x, y)


# ---- shared memory -------------------------------------------------------------------------------


def test_shared_memory_starts_as_nan_in_each_block() -> None:
    body = """
        __shared__ float a[32];
        DYNAMIC_SHARED(float, b);
        y[64 * blockIdx.x + t] = a[t];
        y[64 * blockIdx.x + 32 + t] = b[t];
        a[t] = b[t] = 1;
    """
    y = np.zeros(128, np.float32)
    run(body, numbers(1), y, blocks=2, shared=128)
    assert np.isnan(y).all()


def test_dynamic_shared_memory_has_an_end() -> None:
    body = "DYNAMIC_SHARED(float, a); a[t] = 1; y[t] = a[t];"
    run(body, numbers(1), numbers(32), shared=128)
    with pytest.raises(EmulatorError, match="beyond dynamic shared memory.*thread 28"):
        run(body, numbers(1), numbers(32), shared=112)


def test_an_index_outside_a_static_array() -> None:
    with pytest.raises(EmulatorError, match="index 30 is outside its array, planted.cu:1"):
        run("__shared__ float a[2][30]; a[0][t] = 1; y[t] = a[0][t];", numbers(1), numbers(32))


def test_shared_memory_of_functions_and_templates() -> None:
    functions = """
        template <class T> __device__ T turned(T value) {
            __shared__ T all[32];
            all[threadIdx.x] = value;
            __syncthreads();
            return all[31 - threadIdx.x];
        }
    """
    x, y = numbers(32), np.zeros(32, np.float32)
    for schedule in SCHEDULES:
        run("y[t] = turned(x[t]) + (float)turned((double)x[t]);", x, y, before=functions,
            schedule=schedule)
        np.testing.assert_array_equal(y, 2 * x[::-1])


# ---- waiting for one another ---------------------------------------------------------------------


def test_a_missing_barrier() -> None:
    body = """
        __shared__ float a[64];
        a[t] = x[t];
        BARRIER
        y[t] = a[t ^ 32];
    """
    x = numbers(64)
    for y in results(body, x, x, threads=64, BARRIER="__syncthreads();"):
        np.testing.assert_array_equal(y, x[np.arange(64) ^ 32])
    for y in results(body, x, x, threads=64, BARRIER="__syncwarp();"):
        assert np.isnan(y).any()


def test_a_missing_barrier_of_a_warp() -> None:
    body = "__shared__ float a[64]; a[t] = 0; __syncwarp(); a[t] = x[t]; BARRIER y[t] = a[t / 2];"
    x = numbers(32)
    right = results(body, x, x, BARRIER="__syncwarp();")
    assert all((y == x[np.arange(32) // 2]).all() for y in right)
    wrong = results(body, x, x, BARRIER="")
    assert any((y != right[0]).any() for y in wrong)


def test_a_barrier_that_some_threads_pass_by() -> None:
    with pytest.raises(EmulatorError, match="waits for thread 20, which has returned"):
        run("if (t < 20) __syncthreads();", threads=64, parameters="")
    with pytest.raises(EmulatorError, match="which is at another one, of line 2, planted.cu:1"):
        run("if (t < 20) __syncthreads();\nelse __syncthreads();", threads=64, parameters="")


def test_a_shuffle_from_a_lane_that_takes_no_part() -> None:
    with pytest.raises(EmulatorError, match="lane 0 reads a value of lane 16, which takes no part"):
        run("if (t < 16) y[t] = __shfl_xor_sync(0xffffu, x[t], 16);", numbers(32), numbers(32))
    with pytest.raises(EmulatorError, match="_xor_sync waits for lane 16, which has returned"):
        run("if (t < 16) y[t] = __shfl_xor_sync(~0u, x[t], 1);", numbers(32), numbers(32))
    with pytest.raises(EmulatorError, match="lanes 0000ffff called by lane 16"):
        run("y[t] = __shfl_xor_sync(0xffffu, x[t], 1);", numbers(32), numbers(32))
    with pytest.raises(EmulatorError, match="_ballot_sync waits for lane 8, which is at __syncthr"):
        run("if (t < 8) __ballot_sync(~0u, 1); else __syncthreads();", parameters="")
    with pytest.raises(EmulatorError, match="lane . is at __syncwarp of lanes ffffffff, line 1"):
        run("if (t < 8) __syncwarp();\nelse __any_sync(~0u, 1);", parameters="")


def test_blocks_that_read_what_others_write() -> None:
    body = "y[blockIdx.x] = x[blockIdx.x] + (blockIdx.x ? y[blockIdx.x - 1] : 0.0f);"
    x = numbers(24)
    sums = results(body, x, x, blocks=24, threads=1)
    np.testing.assert_allclose(sums[0], np.cumsum(x), rtol=1e-4)
    assert np.abs(sums[1] - sums[0]).max() > 0.1
    assert np.abs(sums[2] - sums[0]).max() > 0.1


def test_each_block_runs_once() -> None:
    body = "y[(blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x] += 1;"
    for y in results(body, numbers(1), numbers(24), blocks=(2, 3, 4), threads=1):
        np.testing.assert_array_equal(y, np.ones(24))


# ---- arithmetic that the device does differently -------------------------------------------------


@pytest.mark.parametrize("expression, error", [
    ("10 / n", "integer division by zero"), ("1 << (n + 32)", "shifted by 32 bits"),
    ("(n + 65536) * 65536", "integer overflow"), ("n + 0x7fffffff + 1", "integer overflow")])
def test_undefined_arithmetic(expression: str, error: str) -> None:
    with pytest.raises(EmulatorError, match=f"{error}.*thread 0"):
        run(f"y[t] = {expression};", np.int32(0), np.zeros(32, np.int32),
            parameters="int n, int* y")


# ---- launches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameters, argument, error", [
    ("int n", 3, "argument 0 is int32, got int"),
    ("int n", np.int64(3), "argument 0 is int32, got int64"),
    ("int n", np.uint32(3), "argument 0 is int32, got uint32"),
    ("int64_t n", np.int32(3), "argument 0 is int64, got int32"),
    ("float n", np.float64(3), "argument 0 is float32, got float64"),
    ("double n", np.float32(3), "argument 0 is float64, got float32"),
    ("float n", None, "argument 0 is float32, got NoneType"),
    ("float n", np.zeros((), np.float32), "argument 0 is float32, got an array of float32"),
    ("const float* n", np.float32(3), "argument 0 is an array of float32, got float32"),
    ("const float* n", np.zeros(3), "argument 0 is an array of float32, got an array of float64"),
    ("half16* n", np.zeros(3, np.int16), "is an array of float16, got an array of int16"),
    ("int* n", np.zeros((3, 3), np.int32).T, "argument 0 is not contiguous"),
    ("int* n", np.broadcast_to(np.int32(1), 1), "argument 0 may be written, got a read-only"),
])
def test_arguments_of_the_wrong_type(parameters: str, argument: Any, error: str) -> None:
    with pytest.raises(EmulatorError, match=error):
        run("", argument, parameters=parameters)


def test_arguments_of_the_right_type() -> None:
    y = np.zeros(8)
    run("""
        y[0] = a, y[1] = b, y[2] = c, y[3] = d, y[4] = e, y[5] = f, y[6] = g[0], y[7] = h[0].y;
    """, y, np.int32(-1), np.int64(-2), np.uint32(3), np.float32(0.5), np.float64(0.25),
        np.bool_(True), np.full(1, 7, np.uint8), np.full(2, 8, np.float32), threads=1,
        parameters="double* y, int a, int64_t b, unsigned c, float d, double e, bool f, "
        "const uint8_t* g, const float2* h")
    np.testing.assert_array_equal(y, [-1, -2, 3, 0.5, 0.25, 1, 7, 8])


def test_the_number_of_arguments() -> None:
    with pytest.raises(EmulatorError, match="takes 2 arguments, got 1"):
        run("", numbers(1))


def test_what_no_device_can_launch() -> None:
    with pytest.raises(EmulatorError, match="1 to 1024 threads, not 1056"):
        run("", parameters="", threads=1056)
    with pytest.raises(EmulatorError, match="a grid has 1 to"):
        run("", parameters="", blocks=(1, 65536))
    static = "__shared__ float a[LENGTH]; a[t] = 1; y[t] = a[31 - t];"
    run(static, numbers(1), numbers(32), LENGTH=12288)
    with pytest.raises(EmulatorError, match="bytes of static shared memory, at most 49152"):
        run(static, numbers(1), numbers(32), LENGTH=12289)
    with pytest.raises(EmulatorError, match="232449 bytes of dynamic and 0 of static"):
        run("", parameters="", shared=(227 << 10) + 1)


def test_too_many_local_variables() -> None:
    with pytest.raises(EmulatorError, match="more than 64 KB of local variables"):
        run("volatile float a[20000]; for (int i = 20000; i--;) a[i] = i; y[t] = a[t];",
            numbers(1), numbers(32))


def test_a_source_that_does_not_compile() -> None:
    with pytest.raises(EmulatorError, match=r"(?s)g\+\+ failed.*planted.cu:1.*nonsense"):
        run("nonsense;", parameters="")
