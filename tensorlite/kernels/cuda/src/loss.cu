// The cross-entropy of a classifier: a warp a row of logits. TYPE is the type of the logits in
// memory, LABEL that of the labels.
#include "primitives.cuh"

typedef Accumulator<TYPE>::type A;

const unsigned ALL = 0xffffffffu;

__device__ __forceinline__ A largest_of_warp(A x) {
    for (int step = 16; step; step /= 2) {
        A other = __shfl_xor_sync(ALL, x, step);
        x = other > x ? other : x;
    }
    return x;
}

__device__ __forceinline__ A sum_of_warp(A x) {
    for (int step = 16; step; step /= 2) x += __shfl_xor_sync(ALL, x, step);
    return x;
}

// losses = -log softmax(logits)[label] of each row, norms (rows, 2) = its maximum and the logarithm
// of the sum of e^(logit - maximum): kept apart, because their sum would round away what the
// logarithm adds to a large maximum. A label that is no class has a loss of NaN.
extern "C" __global__ __launch_bounds__(THREADS) void softmax_cross_entropy_forward(
    const TYPE* logits, const LABEL* labels, A* losses, A* norms, int rows, int classes) {
    int row = blockIdx.x * (THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const TYPE* x = logits + (int64_t)row * classes;
    A largest = widen(x[0]);
    for (int c = lane; c < classes; c += 32) {
        A value = widen(x[c]);
        largest = value > largest ? value : largest;
    }
    largest = largest_of_warp(largest);
    A sum = 0;
    for (int c = lane; c < classes; c += 32) sum += exp(widen(x[c]) - largest);
    sum = log(sum_of_warp(sum));
    if (lane == 0) {
        LABEL label = labels[row];
        bool known = label >= 0 && label < classes;
        losses[row] = known ? sum - (widen(x[label]) - largest) : A(__int_as_float(0x7fffffff));
        norms[2 * (int64_t)row] = largest;
        norms[2 * (int64_t)row + 1] = sum;
    }
}

// dx = share * grad * (softmax(logits) - onehot(label)), where grad has an element for `each` row or
// one for all of them.
extern "C" __global__ __launch_bounds__(THREADS) void softmax_cross_entropy_backward(
    const A* grad, int each, A share, const TYPE* logits, const LABEL* labels, const A* norms, TYPE* dx, int rows,
    int classes) {
    int row = blockIdx.x * (THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const TYPE* x = logits + (int64_t)row * classes;
    TYPE* to = dx + (int64_t)row * classes;
    A largest = norms[2 * (int64_t)row], sum = norms[2 * (int64_t)row + 1];
    A g = grad[each ? row : 0] * share;
    LABEL label = labels[row];
    for (int c = lane; c < classes; c += 32) {
        A p = exp(widen(x[c]) - largest - sum);
        narrow(to[c], g * (c == label ? p - 1 : p));
    }
}
