// The second halves of reductions: what blocks left behind, one row of partial results each, is
// put together in the order of the blocks, in float64. TYPE is that of the results.
//
// A block takes 8 channels and 32 lanes; a lane every 32nd row.
#include "primitives.cuh"

const int CHANNELS = 8, LANES = THREADS / CHANNELS;

// The sum over lanes of each channel's `value`, for all threads.
__device__ __forceinline__ double total_of(double value, double* pool) {
    int t = threadIdx.x;
    __syncthreads();
    pool[t] = value;
    __syncthreads();
    for (int half = LANES / 2; half > 0; half /= 2) {
        if (t < half * CHANNELS) pool[t] += pool[t + half * CHANNELS];
        __syncthreads();
    }
    return pool[t % CHANNELS];
}

// out[c] = sum over r of partials[r][c]; partials is (rows, channels).
extern "C" __global__ __launch_bounds__(THREADS) void merge_sums(
    const TYPE* partials, TYPE* out, int rows, int channels) {
    __shared__ double pool[THREADS];
    int c = blockIdx.x * CHANNELS + threadIdx.x % CHANNELS, lane = threadIdx.x / CHANNELS;
    double sum = 0;
    if (c < channels)
        for (int r = lane; r < rows; r += LANES) sum += partials[(int64_t)r * channels + c];
    sum = total_of(sum, pool);
    if (lane == 0 && c < channels) out[c] = (TYPE)sum;
}

// Moments of `count` values a channel, of which row r of `partials` tells the mean and the sum of
// squared deviations of the r-th `span` (Chan et al. for many parts at once). partials is
// (rows, 2, channels), out (2, channels).
extern "C" __global__ __launch_bounds__(THREADS) void merge_moments(
    const double* partials, TYPE* out, int rows, int channels, int64_t count, int64_t span) {
    __shared__ double pool[THREADS];
    int c = blockIdx.x * CHANNELS + threadIdx.x % CHANNELS, lane = threadIdx.x / CHANNELS;
    double sum = 0, squares = 0;
    if (c < channels)
        for (int r = lane; r < rows; r += LANES) {
            double here = (double)min(span, count - r * span);
            sum += here * partials[(int64_t)r * 2 * channels + c];
        }
    double mean = total_of(sum, pool) / (double)count;
    if (c < channels)
        for (int r = lane; r < rows; r += LANES) {
            const double* part = partials + (int64_t)r * 2 * channels + c;
            double here = (double)min(span, count - r * span), apart = part[0] - mean;
            squares += part[channels] + here * apart * apart;
        }
    squares = total_of(squares, pool);
    if (lane == 0 && c < channels) {
        out[c] = (TYPE)mean;
        out[channels + c] = (TYPE)squares;
    }
}
