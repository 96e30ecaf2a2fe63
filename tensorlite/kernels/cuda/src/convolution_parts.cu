// What convolutions need beside their products: weights as the gradient to the input reads them,
// and the sum of the parts of a gradient to the weights.
#include "primitives.cuh"

typedef Accumulator<TYPE>::type A;

const int SIDE = 32;  // of the square that a block turns

// out (taps_y * taps_x, outer_all, groups * inner_all) from weight (_, kernel_x, inner,
// groups * outer): the taps first + i * step along each axis, with input and output channels
// exchanged, and channels of zeros up to outer_all and inner_all. blockIdx.z counts groups and,
// quickest, taps.
extern "C" __global__ __launch_bounds__(THREADS) void exchange_channels(
    const TYPE* __restrict__ weight, TYPE* __restrict__ out, int kernel_x, int inner, int outer,
    int inner_all, int outer_all, int groups, int taps_y, int taps_x, int first_y, int first_x,
    int step_y, int step_x) {
    __shared__ TYPE square[SIDE][SIDE + 1];
    int group = blockIdx.z / (taps_y * taps_x), tap = blockIdx.z % (taps_y * taps_x);
    int y = first_y + tap / taps_x * step_y, x = first_x + tap % taps_x * step_x;
    int lane = threadIdx.x % SIDE, outer0 = blockIdx.x * SIDE, inner0 = blockIdx.y * SIDE;
    for (int i = threadIdx.x / SIDE; i < SIDE; i += THREADS / SIDE) {
        int c = inner0 + i, d = outer0 + lane;
        int64_t row = ((int64_t)y * kernel_x + x) * inner + c;
        TYPE value = {};
        if (c < inner && d < outer) value = weight[(row * groups + group) * outer + d];
        square[i][lane] = value;
    }
    __syncthreads();
    for (int i = threadIdx.x / SIDE; i < SIDE; i += THREADS / SIDE) {
        int d = outer0 + i, c = inner0 + lane;
        int64_t row = (int64_t)tap * outer_all + d;
        if (c < inner_all && d < outer_all)
            out[(row * groups + group) * inner_all + c] = square[lane][i];
    }
}

// out[i] = the sum of parts[p][i] over p, in order.
extern "C" __global__ __launch_bounds__(THREADS) void add_parts(
    const A* __restrict__ parts, A* __restrict__ out, int count, int64_t size) {
    int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < size; i += step) {
        A sum = parts[i];
        for (int p = 1; p < count; p++) sum += parts[p * size + i];
        out[i] = sum;
    }
}
