// Kernels that do nothing but call primitives, so that a device and the emulator can be held beside
// what each primitive is said to do. One warp each.
#include "primitives.cuh"

// Conversions of n numbers, element by element.
extern "C" __global__ __launch_bounds__(THREADS) void numbers(
    const uint16_t* halves, const float* floats, float* widened, uint16_t* narrowed,
    uint32_t* rounded, int n) {
    for (int i = threadIdx.x; i < n; i += THREADS) {
        half16 x = {halves[i]}, y;
        widened[i] = widen(x);
        narrow(y, floats[i]);
        narrowed[i] = y.bits;
        rounded[i] = to_tf32(floats[i]);
    }
}

// Each lane copies 16 and 4 bytes, three groups in flight; only lanes of the mask want theirs.
extern "C" __global__ __launch_bounds__(THREADS) void copies(const uint32_t* from, uint32_t* to,
                                                             uint32_t mask) {
    DYNAMIC_SHARED(uint32_t, shared);
    int lane = threadIdx.x;
    bool wanted = mask >> lane & 1;
    for (int i = lane; i < 3 * 160; i += THREADS) shared[i] = 0xdeadbeefu;
    __syncthreads();
    for (int group = 0; group < 3; group++) {
        copy_async16(shared + 160 * group + 4 * lane, from + 160 * group + 4 * lane, wanted);
        copy_async4(shared + 160 * group + 128 + lane, from + 160 * group + 128 + lane, wanted);
        copy_commit();
    }
    copy_wait<2>();
    __syncthreads();
    for (int i = lane; i < 160; i += THREADS) to[i] = shared[i];
    copy_wait<1>();
    __syncthreads();
    for (int i = lane; i < 160; i += THREADS) to[160 + i] = shared[160 + i];
    copy_wait<0>();
    __syncthreads();
    for (int i = lane; i < 160; i += THREADS) to[320 + i] = shared[320 + i];
}

// Four 8 x 8 matrices, rows 16 bytes long and 48 apart, as both loads see them.
extern "C" __global__ __launch_bounds__(THREADS) void matrices(const uint16_t* from,
                                                               uint32_t* straight,
                                                               uint32_t* transposed) {
    __shared__ __align__(16) uint16_t shared[32 * 24];
    int lane = threadIdx.x;
    for (int i = lane; i < 32 * 24; i += THREADS) shared[i] = from[i];
    __syncthreads();
    uint32_t r[4];
    load_matrices(r, shared + 24 * lane);
    for (int i = 0; i < 4; i++) straight[4 * lane + i] = r[i];
    load_transposed(r, shared + 24 * lane);
    for (int i = 0; i < 4; i++) transposed[4 * lane + i] = r[i];
}

// Products of given fragments, added to given ones.
extern "C" __global__ __launch_bounds__(THREADS) void products(
    const uint32_t* a, const uint32_t* b, const uint32_t* a_half, const uint32_t* b_half,
    const float* c, float* tf32, float* half) {
    int lane = threadIdx.x;
    uint32_t x[4], y[2];
    float sum[4];
    for (int i = 0; i < 4; i++) x[i] = a[4 * lane + i], sum[i] = c[4 * lane + i];
    for (int i = 0; i < 2; i++) y[i] = b[2 * lane + i];
    mma_tf32(sum, x, y);
    for (int i = 0; i < 4; i++) tf32[4 * lane + i] = sum[i];
    for (int i = 0; i < 4; i++) x[i] = a_half[4 * lane + i], sum[i] = c[4 * lane + i];
    for (int i = 0; i < 2; i++) y[i] = b_half[2 * lane + i];
    mma_half(sum, x, y);
    for (int i = 0; i < 4; i++) half[4 * lane + i] = sum[i];
}

// What lanes tell each other: from lane ^ 5, from 3 below, from 2 above, and who is odd in `from`.
extern "C" __global__ __launch_bounds__(THREADS) void lanes(const uint32_t* from, uint32_t* to) {
    int lane = threadIdx.x;
    uint32_t x = from[lane];
    to[4 * lane] = __shfl_xor_sync(0xffffffffu, x, 5);
    to[4 * lane + 1] = __shfl_up_sync(0xffffffffu, x, 3);
    to[4 * lane + 2] = __shfl_down_sync(0xffffffffu, x, 2);
    to[4 * lane + 3] = __ballot_sync(0xffffffffu, x & 1);
}
