// Convolution, and the gradient to its input, as a product of matrices that are never formed: the
// gathered input, (output pixels, taps * channels), and the weights as they lie. A block makes a
// tile of TILE_M pixels x TILE_N output channels, and finishes it while it is in shared memory.
//
// blockIdx.x counts tiles, those of one run of pixels side by side so that they share what they
// gather in the L2 cache; blockIdx.z is the group.
#include "primitives.cuh"
#include "convolution.cuh"

const int ACROSS_TILE = TILE_N / 4;            // threads that finish a row, four channels each
const int TOGETHER = THREADS / ACROSS_TILE;    // rows that are finished at a time
const int TOTAL_PITCH = TILE_N + 8;            // of the tile in shared memory: no bank conflicts
typedef Run<A, 4> Four;

// Four values of a vector from channel c on, `other` where it has none.
__device__ __forceinline__ Four channels_of(const A* vector, int c, int channels, A other) {
    Four four;
#pragma unroll
    for (int e = 0; e < 4; e++) four.at[e] = vector && c + e < channels ? vector[c + e] : other;
    return four;
}

// Four values of an array of which the first `count` exist; together where `whole`.
__device__ __forceinline__ Four load_four(const TYPE* from, int count, bool whole) {
    Four four;
    Run<TYPE, 4> run;
    if (whole) {
        run = load_run<TYPE, 4>(from);
#pragma unroll
        for (int e = 0; e < 4; e++) four.at[e] = widen(run.at[e]);
    } else {
#pragma unroll
        for (int e = 0; e < 4; e++) four.at[e] = e < count ? widen(from[e]) : A(0);
    }
    return four;
}

__device__ __forceinline__ void store_four(TYPE* to, const Run<TYPE, 4>& run, int count, bool whole) {
    if (whole) {
        store_run(to, run);
    } else {
#pragma unroll
        for (int e = 0; e < 4; e++)
            if (e < count) to[e] = run.at[e];
    }
}

// Sums of what the threads that finish different rows hold of this thread's column of the tile, in
// order; threads below TILE_N get theirs. pool is (TOGETHER, TILE_N).
__device__ __forceinline__ A sum_rows(const Four& mine, A* pool) {
    __syncthreads();
    store_run(pool + threadIdx.x * 4, mine);
    __syncthreads();
    A sum = 0;
    if (threadIdx.x < TILE_N)
        for (int i = 0; i < TOGETHER; i++) sum += pool[i * TILE_N + threadIdx.x];
    return sum;
}

// y = the correlation of x with weight, (taps * channels, weight_pitch). There, and in x, every group
// has as many channels as fill whole runs; `channels` counts those of x, `outputs` those of y.
//
// Output pixel p is number (image, row, column) of (_, rows, columns) and is written at line
// row * step_y + first_y, column * step_x + first_x of an image of out_height lines; pixels of y are
// out_pitch apart. `aligned` says that this, outputs and y are multiples of four elements.
//
// Forward, what follows is: + bias; `moments` (tiles, 2, out_pitch) gets mean and sum of squared
// deviations of the tile's pixels; * scale + shift + other; relu. Each may be null.
//
// With `masked`, y is a gradient and `other` the z whose activation (scale, shift, relu) x was: it is
// zeroed where the relu cut, and `sums` (tiles, 2, out_pitch) gets its sums and those of its products
// with z - mean.
extern "C" __global__ __launch_bounds__(THREADS, RESIDENT) void correlate(
    const TYPE* __restrict__ x, const TYPE* __restrict__ weight, TYPE* __restrict__ y,
    const A* __restrict__ in_scale, const A* __restrict__ in_shift, int in_relu,
    const A* __restrict__ bias, const A* __restrict__ scale, const A* __restrict__ shift,
    const TYPE* __restrict__ other, int relu, int masked, const A* __restrict__ mean,
    double* __restrict__ moments, A* __restrict__ sums,
    int height, int width, int in_pitch, int channels,
    int kernel_y, int kernel_x, int stride_y, int stride_x, int offset_y, int offset_x,
    int dilation_y, int dilation_x,
    int pixels, int rows, int columns, int outputs, int weight_pitch, int out_pitch, int aligned,
    int out_height, int out_width, int step_y, int step_x, int first_y, int first_x) {
    DYNAMIC_SHARED(Operand, shared);
    __shared__ Place places[TILE_M];
    __shared__ int64_t targets[TILE_M];  // the first element of the tile's pixels in y
    const int thread = threadIdx.x, group = blockIdx.z, tiles = (outputs + TILE_N - 1) / TILE_N;
    const int tile = blockIdx.x / tiles, n0 = blockIdx.x % tiles * TILE_N, m0 = tile * TILE_M;
    const int count = min(TILE_M, pixels - m0);
    Input in = {x + group * channels, height, width, in_pitch, channels, kernel_y, kernel_x,
                stride_y, stride_x, offset_y, offset_x, dilation_y, dilation_x,
                in_scale + group * channels, in_shift + group * channels, in_relu};
    weight += group * (weight_pitch / (int)gridDim.z);

    for (int i = thread; i < TILE_M; i += THREADS) {
        int line = (m0 + i) / columns, column = m0 + i - line * columns;
        int image = line / rows, row = line - image * rows;
        places[i] = i < count ? place_of(in, image, row, column) : nowhere();
        int64_t out_line = (int64_t)image * out_height + row * step_y + first_y;
        targets[i] = (out_line * out_width + column * step_x + first_x) * out_pitch + group * outputs;
    }
    __syncthreads();

    const int depth = in.depth();
    Mover<TILE_M, TILE_K, Layout<METHOD != PLAIN>::LEFT_PITCH, METHOD == PLAIN> left;
    Mover<TILE_K, TILE_N, Layout<METHOD != PLAIN>::RIGHT_PITCH> right;
    Tap next(in, left.column()), due = next, step(in, TILE_K);
    const int n = n0 + right.column();
    Totals totals;
    accumulate<METHOD != PLAIN>(
        totals, shared, (depth + TILE_K - 1) / TILE_K,
        [&](int k, Operand* a, Operand* b) {
            left.begin(a, Gather(in, places, next));
            next.advance(in, step);
            Lines lines = {weight + (int64_t)k * TILE_K * weight_pitch + n, weight_pitch,
                           n < outputs ? depth - k * TILE_K : 0, weight};
            right.begin(b, lines);
        },
        [&](int k, Operand* a, Operand* b) {
#if PROLOGUE
            left.finish(a, [&](int line) { return due.sees(in, places[line]); },
                        Activation(in, due.c));
            due.advance(in, step);
#else
            left.finish(a);
#endif
            right.finish(b);
        });

    // The tile goes to shared memory; from there each thread finishes four channels of some rows.
    A* tile_totals = reinterpret_cast<A*>(shared);
    A* pool = tile_totals + TILE_M * TOTAL_PITCH;  // two of (TOGETHER, TILE_N)
    totals.each_pair([&](int row, int column, A first, A second) {
        Run<A, 2> pair = {{first, second}};
        store_run(tile_totals + row * TOTAL_PITCH + column, pair);
    });
    __syncthreads();

    const int column = thread % ACROSS_TILE * 4, c = n0 + column, live = outputs - c;
    const int own = group * outputs + n0 + thread;  // the channel that this thread sums up
    const bool sums_up = thread < TILE_N && n0 + thread < outputs;
    const bool whole = aligned && live >= 4;
    const int of_group = group * outputs, all = of_group + outputs;
    Four added = channels_of(bias, of_group + c, all, 0);
    if (moments) {
        // Of values as they are stored. The deviations' own sum corrects both for the rounding of
        // the mean.
        Four sum = {};
        for (int i = thread / ACROSS_TILE; i < count; i += TOGETHER) {
            Four value = load_run<A, 4>(tile_totals + i * TOTAL_PITCH + column);
#pragma unroll
            for (int e = 0; e < 4; e++) {
                TYPE stored;
                narrow(stored, value.at[e] + added.at[e]);
                sum.at[e] += value.at[e] = widen(stored);
            }
            store_run(tile_totals + i * TOTAL_PITCH + column, value);
        }
        added = Four();
        A* centres = pool + TOGETHER * TILE_N;
        A centre = sum_rows(sum, pool) / count;
        if (thread < TILE_N) centres[thread] = centre;
        __syncthreads();
        Four middle = load_run<A, 4>(centres + column), apart = {}, squares = {};
        for (int i = thread / ACROSS_TILE; i < count; i += TOGETHER) {
            Four value = load_run<A, 4>(tile_totals + i * TOTAL_PITCH + column);
#pragma unroll
            for (int e = 0; e < 4; e++) {
                A deviation = value.at[e] - middle.at[e];
                apart.at[e] += deviation;
                squares.at[e] += deviation * deviation;
            }
        }
        A error = sum_rows(apart, pool) / count, square = sum_rows(squares, pool);
        if (sums_up) {
            moments[(int64_t)tile * 2 * out_pitch + own] = (double)centre + error;
            moments[((int64_t)tile * 2 + 1) * out_pitch + own] = square - count * error * error;
        }
    }

    const Four factor = channels_of(scale, of_group + c, all, 1);
    const Four term = channels_of(shift, of_group + c, all, 0);
    const Four middle = channels_of(mean, of_group + c, all, 0);
    Four sum = {}, products = {};
    if (live > 0) {
        for (int i = thread / ACROSS_TILE; i < count; i += TOGETHER) {
            Four value = load_run<A, 4>(tile_totals + i * TOTAL_PITCH + column);
            Run<TYPE, 4> stored;
            Four beside = {};
            if (other) beside = load_four(other + targets[i] + c, live, whole);
#pragma unroll
            for (int e = 0; e < 4; e++) {
                A v = value.at[e] + added.at[e];
                if (masked) {
                    v = relu && !(beside.at[e] * factor.at[e] + term.at[e] > 0) ? A(0) : v;
                    narrow(stored.at[e], v);
                    v = widen(stored.at[e]);
                    sum.at[e] += v;
                    products.at[e] += v * (beside.at[e] - middle.at[e]);
                } else {
                    v = v * factor.at[e] + term.at[e] + beside.at[e];
                    narrow(stored.at[e], relu && v < 0 ? A(0) : v);
                }
            }
            store_four(y + targets[i] + c, stored, live, whole);
        }
    }
    if (sums) {
        A grad = sum_rows(sum, pool), centred = sum_rows(products, pool);
        if (sums_up) {
            sums[(int64_t)tile * 2 * out_pitch + own] = grad;
            sums[((int64_t)tile * 2 + 1) * out_pitch + own] = centred;
        }
    }
}
