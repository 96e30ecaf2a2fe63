// Batch norm's moments, and the sums and the formula of its backward. See rows.cuh for the layouts.
#include "primitives.cuh"
#include "rows.cuh"

// Rows that a thread centres on their own mean at a time: 32 values in registers.
const int TILE = WIDTH == 8 ? 4 : 8;

// Add `more` values to n others of which mean and m2 tell, after Chan et al.: share is more's part
// of them all. Means are double, so that one far from zero costs no digits.
__device__ __forceinline__ void merge(double& mean, A& m2, A n, double mean_more, A m2_more,
                                      A share) {
    double apart = mean_more - mean;
    mean += apart * share;
    m2 += m2_more + (A)apart * (A)apart * (n * share);
}

// Of each run of `span` rows of x, the mean and the sum of squared deviations: partials is
// (gridDim.x, 2, channels).
extern "C" __global__ __launch_bounds__(THREADS) void moments(
    const Vector* __restrict__ x, double* __restrict__ partials, int64_t rows, int groups,
    int columns, int64_t span) {
    __shared__ double means[WIDTH * THREADS];
    __shared__ A squares[WIDTH * THREADS], counts[THREADS];
    Block block(columns);
    int64_t first = blockIdx.x * span, stop = min(first + span, rows);
    bool inside = block.group < groups;
    double mean[WIDTH] = {};
    A m2[WIDTH] = {}, n = 0;
    if (inside) {
        int64_t stride = (int64_t)block.lanes * groups;
        const Vector* from = x + (first + block.lane) * groups + block.group;
        int left = (int)((stop - first - block.lane + block.lanes - 1) / block.lanes);
        for (; left > 0; left -= TILE, from += TILE * stride) {
            int here = min(TILE, left);
            Vector tile[TILE];
#pragma unroll
            for (int i = 0; i < TILE; i++)
                if (i < here) tile[i] = from[i * stride];
            A part = A(1) / here, share = here / (n + here);
#pragma unroll
            for (int e = 0; e < WIDTH; e++) {
                A sum = 0, error = 0, square = 0;
#pragma unroll
                for (int i = 0; i < TILE; i++)
                    if (i < here) sum += widen(tile[i].at[e]);
                A centre = sum * part;
#pragma unroll
                for (int i = 0; i < TILE; i++)
                    if (i < here) {
                        A apart = widen(tile[i].at[e]) - centre;
                        error += apart;
                        square += apart * apart;
                    }
                // The deviations' own sum corrects for the rounding of their centre (eq. 1.7).
                merge(mean[e], m2[e], n, (double)centre + error * part,
                      square - error * error * part, share);
            }
            n += here;
        }
    }
    int t = threadIdx.x;
    counts[t] = n;
#pragma unroll
    for (int e = 0; e < WIDTH; e++) {
        means[e * THREADS + t] = mean[e];
        squares[e * THREADS + t] = m2[e];
    }
    __syncthreads();
    for (int half = block.lanes / 2; half > 0; half /= 2) {
        int other = t + half * block.columns;
        if (block.lane < half && counts[other] > 0) {
            A all = counts[t] + counts[other], share = counts[other] / all;
#pragma unroll
            for (int e = 0; e < WIDTH; e++)
                merge(means[e * THREADS + t], squares[e * THREADS + t], counts[t],
                      means[e * THREADS + other], squares[e * THREADS + other], share);
            counts[t] = all;
        }
        __syncthreads();
    }
    if (block.lane == 0 && inside) {
        int channels = groups * WIDTH;
        double* out = partials + (int64_t)blockIdx.x * 2 * channels + block.group * WIDTH;
#pragma unroll
        for (int e = 0; e < WIDTH; e++) {
            out[e] = means[e * THREADS + t];
            out[channels + e] = squares[e * THREADS + t];
        }
    }
}

// Of each run of `span` rows, the sums of grad and of grad * (x - mean): partials is
// (gridDim.x, 2, channels).
extern "C" __global__ __launch_bounds__(THREADS) void grad_sums(
    const Vector* __restrict__ grad, const Vector* __restrict__ x, const A* __restrict__ mean,
    A* __restrict__ partials, int64_t rows, int groups, int columns, int64_t span) {
    __shared__ A pool[WIDTH * THREADS];
    Block block(columns);
    int64_t first = blockIdx.x * span, stop = min(first + span, rows);
    bool inside = block.group < groups;
    A sum[WIDTH] = {}, centred[WIDTH] = {}, centre[WIDTH];
    if (inside) {
        load_channels(centre, mean, block.group * WIDTH);
#pragma unroll 4
        for (int64_t row = first + block.lane; row < stop; row += block.lanes) {
            Vector g = grad[row * groups + block.group], v = x[row * groups + block.group];
#pragma unroll
            for (int e = 0; e < WIDTH; e++) {
                sum[e] += widen(g.at[e]);
                centred[e] += widen(g.at[e]) * (widen(v.at[e]) - centre[e]);
            }
        }
    }
    int channels = groups * WIDTH;
    A* out = partials + (int64_t)blockIdx.x * 2 * channels + block.group * WIDTH;
    sum_lanes(sum, pool, block, out, inside);
    sum_lanes(centred, pool, block, out + channels, inside);
}

// dx = scale * grad + slope * x + offset per channel. count vectors in all.
extern "C" __global__ __launch_bounds__(THREADS) void norm_backward(
    const Vector* __restrict__ grad, const Vector* __restrict__ x, const A* __restrict__ scale,
    const A* __restrict__ slope, const A* __restrict__ offset, Vector* __restrict__ dx,
    int64_t count, int groups) {
    Flat flat;
    if (flat.start >= count) return;
    A a[WIDTH], b[WIDTH], c[WIDTH];
    int channel = flat.channel(groups);
    load_channels(a, scale, channel);
    load_channels(b, slope, channel);
    load_channels(c, offset, channel);
    for (int64_t i = flat.start; i < count; i += flat.step) {
        Vector g = grad[i], v = x[i], out;
#pragma unroll
        for (int e = 0; e < WIDTH; e++)
            narrow(out.at[e], fma(a[e], widen(g.at[e]), fma(b[e], widen(v.at[e]), c[e])));
        dx[i] = out;
    }
}
