// Conversion between the types of floating-point numbers: SOURCE to TARGET, WIDTH at a time.
#include "primitives.cuh"

struct alignas(WIDTH * sizeof(SOURCE)) From {
    SOURCE at[WIDTH];
};
struct alignas(WIDTH * sizeof(TARGET)) To {
    TARGET at[WIDTH];
};

template <class T, class S> __device__ __forceinline__ void convert(T& y, S x) {
    narrow(y, (typename Accumulator<T>::type)widen(x));
}

// By way of float32 a double would be rounded twice. Where float32 is not exact, take of the two
// beside x the one whose last bit is set: it is no half nor midway between two, so that what is
// rounded next lies on the side of it that x does.
__device__ __forceinline__ void convert(half16& y, double x) {
    union {
        float value;
        uint32_t bits;
    } odd;
    odd.value = (float)x;
    if (odd.value != x && odd.bits % 2 == 0) odd.bits += (odd.value < x) == (x > 0) ? 1 : -1;
    narrow(y, odd.value);
}

// count vectors in all.
extern "C" __global__ __launch_bounds__(THREADS) void cast(const From* __restrict__ x,
                                                           To* __restrict__ y, int64_t count) {
    int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < count; i += step) {
        From from = x[i];
        To to;
#pragma unroll
        for (int e = 0; e < WIDTH; e++) convert(to.at[e], from.at[e]);
        y[i] = to;
    }
}
