// The arithmetic of a batch norm on vectors of a value a channel, a thread a channel: a dozen small
// operations, forwards and backwards, in a launch each.
#include "primitives.cuh"

__device__ __forceinline__ int channel_of_thread() { return blockIdx.x * THREADS + threadIdx.x; }

// out (4, channels): mean, 1 / sqrt(var + eps), scale, shift. By mean and m2, the sum of squared
// deviations, of `count` values, towards which the running statistics then move; or by those, if
// m2 is null.
extern "C" __global__ __launch_bounds__(THREADS) void norm_vectors(
    const TYPE* mean, const TYPE* m2, const TYPE* gamma, const TYPE* beta, TYPE* running_mean,
    TYPE* running_var, TYPE count, TYPE momentum, TYPE eps, TYPE* out, int channels) {
    int c = channel_of_thread();
    if (c >= channels) return;
    TYPE centre, variance;
    if (m2) {
        centre = mean[c];
        variance = m2[c] / count;
        running_mean[c] += momentum * (centre - running_mean[c]);
        running_var[c] += momentum * (m2[c] / (count - 1) - running_var[c]);
    } else {
        centre = running_mean[c];
        variance = running_var[c];
    }
    TYPE inverse = 1 / sqrt(variance + eps), scale = gamma[c] * inverse;
    out[c] = centre;
    out[channels + c] = inverse;
    out[2 * channels + c] = scale;
    out[3 * channels + c] = beta[c] - centre * scale;
}

// out (3, channels): the gradient to gamma, and the slope and offset of the gradient to the norm's
// input, scale * grad + slope * z + offset. sum and centred: of grad and of grad * (z - mean).
extern "C" __global__ __launch_bounds__(THREADS) void norm_grad_vectors(
    const TYPE* sum, const TYPE* centred, const TYPE* mean, const TYPE* inverse, const TYPE* scale,
    TYPE count, TYPE* out, int channels) {
    int c = channel_of_thread();
    if (c >= channels) return;
    TYPE dgamma = centred[c] * inverse[c];
    TYPE slope = -scale[c] * inverse[c] * dgamma / count;
    out[c] = dgamma;
    out[channels + c] = slope;
    out[2 * channels + c] = -scale[c] * sum[c] / count - slope * mean[c];
}
