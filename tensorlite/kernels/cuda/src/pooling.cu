// Maximum, average and global average pooling, channels last. TYPE is the type in memory.
//
// A block is laid out as rows of lanes: a lane owns WIDTH neighbouring channels, which it loads and
// stores at once, and each row of lanes works on one pixel at a time. Gradients are gathered: a
// cell of the input looks at the windows that cover it, so nothing is added atomically.
#include "primitives.cuh"

typedef Accumulator<TYPE>::type A;

// WIDTH elements that lie side by side, moved as one word.
template <class T> struct __align__(sizeof(T) * WIDTH) Pack {
    T at[WIDTH];
};

template <class T> __device__ __forceinline__ Pack<T> load(const T* from) {
    return *reinterpret_cast<const Pack<T>*>(from);
}

__device__ __forceinline__ void load_wide(A to[WIDTH], const TYPE* from) {
    Pack<TYPE> pack = load(from);
#pragma unroll
    for (int k = 0; k < WIDTH; k++) to[k] = widen(pack.at[k]);
}

__device__ __forceinline__ void store_narrow(TYPE* to, const A from[WIDTH]) {
    Pack<TYPE> pack;
#pragma unroll
    for (int k = 0; k < WIDTH; k++) narrow(pack.at[k], from[k]);
    *reinterpret_cast<Pack<TYPE>*>(to) = pack;
}

// Where a thread stands in its block, and the first of its channels.
struct Place {
    int row, rows, channel;
    bool idle;
};

__device__ __forceinline__ Place place_of(int channels, int lanes) {
    Place p;
    p.row = threadIdx.x / lanes;
    p.rows = THREADS / lanes;
    p.channel = (blockIdx.y * lanes + threadIdx.x % lanes) * WIDTH;
    p.idle = p.row >= p.rows || p.channel >= channels;
    return p;
}

// How windows lie over images, as kernels take it.
#define WINDOWS                                                                                     \
    int height, int width, int out_height, int out_width, int kernel_height, int kernel_width,      \
        int stride_y, int stride_x, int pad_y, int pad_x

// The cells of an axis that are seen by a window that begins at `first`: its taps low..high - 1.
struct Taps {
    int first, low, high;
};

__device__ __forceinline__ Taps taps_of(int window, int size, int kernel, int stride, int pad) {
    Taps t;
    t.first = window * stride - pad;
    t.low = max(0, -t.first);
    t.high = min(kernel, size - t.first);
    return t;
}

// The windows of an axis that see a cell: low..high.
struct Seen {
    int low, high;
};

__device__ __forceinline__ Seen seen_by(int cell, int windows, int kernel, int stride, int pad) {
    int last = cell + pad, first = last - kernel + 1;
    Seen s;
    s.low = first > 0 ? (first + stride - 1) / stride : 0;
    s.high = min(windows - 1, last / stride);
    return s;
}

struct Pixel {
    int image, line, column;
};

__device__ __forceinline__ Pixel pixel_of(int index, int height, int width) {
    Pixel p;
    int line = index / width;
    p.column = index - line * width;
    p.image = line / height;
    p.line = line - p.image * height;
    return p;
}

// The number of a line's first pixel among those of all images.
__device__ __forceinline__ int64_t line_of(int image, int line, int height, int width) {
    return ((int64_t)image * height + line) * width;
}

// Whether a value takes the place of the best before it: NaN wins over numbers, the first of equals
// stays.
__device__ __forceinline__ bool beats(A value, A best) {
    return value > best || (value != value && best == best);
}

// y = the maximum of each window of x or, where scale is given, of x * scale + shift (then relu).
// `pixels` counts those of y.
extern "C" __global__ __launch_bounds__(THREADS, 4) void max_pool2d_forward(
    const TYPE* x, const A* scale, const A* shift, int relu, TYPE* y, int pixels, int channels, int lanes, WINDOWS) {
    Place p = place_of(channels, lanes);
    if (p.idle) return;
    A by[WIDTH], plus[WIDTH];
#pragma unroll
    for (int k = 0; k < WIDTH; k++) {
        by[k] = scale ? scale[p.channel + k] : A(1);
        plus[k] = scale ? shift[p.channel + k] : A(0);
    }
    for (int at = blockIdx.x * p.rows + p.row; at < pixels; at += gridDim.x * p.rows) {
        Pixel out = pixel_of(at, out_height, out_width);
        Taps i = taps_of(out.line, height, kernel_height, stride_y, pad_y);
        Taps j = taps_of(out.column, width, kernel_width, stride_x, pad_x);
        A best[WIDTH];
#pragma unroll
        for (int k = 0; k < WIDTH; k++) best[k] = A(-1e30f * 1e30f);  // -infinity
        for (int tap = i.low; tap < i.high; tap++) {
            int64_t line = line_of(out.image, i.first + tap, height, width) + j.first;
            for (int side = j.low; side < j.high; side++) {
                A cell[WIDTH];
                load_wide(cell, x + (line + side) * channels + p.channel);
#pragma unroll
                for (int k = 0; k < WIDTH; k++) {
                    A value = scale ? cell[k] * by[k] + plus[k] : cell[k];
                    if (beats(value, best[k])) best[k] = value;
                }
            }
        }
        if (relu) {
#pragma unroll
            for (int k = 0; k < WIDTH; k++) best[k] = best[k] > 0 || best[k] != best[k] ? best[k] : A(0);
        }
        store_narrow(y + (int64_t)at * channels + p.channel, best);
    }
}

// winners = for each window the number of its first maximal cell, or all ones where relu cut the
// maximum. Where scale is given, windows are of the activation of x: the cell that is largest before
// it wins (the smallest where scale is negative), and sums (gridDim.x, 2, channels) = each block's
// sums of the gradient that passes, and of it times (x - mean) at the winner.
extern "C" __global__ __launch_bounds__(THREADS, 2) void max_pool2d_winners(
    const TYPE* grad, const TYPE* x, const TYPE* y, const A* scale, const A* mean, int relu, uint16_t* winners, A* sums,
    int pixels, int channels, int lanes, WINDOWS) {
    __shared__ A all[2][THREADS * WIDTH];
    Place p = place_of(channels, lanes);
    A sign[WIDTH], centre[WIDTH], total[2][WIDTH];
#pragma unroll
    for (int k = 0; k < WIDTH; k++) {
        A by = scale && !p.idle ? scale[p.channel + k] : A(1);
        sign[k] = by > 0 ? A(1) : by < 0 ? A(-1) : A(0);
        centre[k] = scale && !p.idle ? mean[p.channel + k] : A(0);
        total[0][k] = total[1][k] = 0;
    }
    for (int at = blockIdx.x * p.rows + p.row; at < pixels && !p.idle; at += gridDim.x * p.rows) {
        Pixel out = pixel_of(at, out_height, out_width);
        Taps i = taps_of(out.line, height, kernel_height, stride_y, pad_y);
        Taps j = taps_of(out.column, width, kernel_width, stride_x, pad_x);
        A best[WIDTH], held[WIDTH];  // the maximum, and what x holds there
        int first[WIDTH];
#pragma unroll
        for (int k = 0; k < WIDTH; k++) {
            best[k] = held[k] = 0;
            first[k] = -1;
        }
        for (int tap = i.low; tap < i.high; tap++) {
            int64_t line = line_of(out.image, i.first + tap, height, width) + j.first;
#pragma unroll 1  // more would spill
            for (int side = j.low; side < j.high; side++) {
                A cell[WIDTH];
                load_wide(cell, x + (line + side) * channels + p.channel);
#pragma unroll
                for (int k = 0; k < WIDTH; k++) {
                    A value = cell[k] * sign[k];
                    if (first[k] < 0 || beats(value, best[k])) {
                        best[k] = value;
                        held[k] = cell[k];
                        first[k] = tap * kernel_width + side;
                    }
                }
            }
        }
        int64_t to = (int64_t)at * channels + p.channel;
        if (scale) {
            A above[WIDTH], g[WIDTH];
            load_wide(above, y + to);
            load_wide(g, grad + to);
#pragma unroll
            for (int k = 0; k < WIDTH; k++) {
                if (relu && !(above[k] > 0)) {
                    first[k] = -1;
                } else {
                    total[0][k] += g[k];
                    total[1][k] += g[k] * (held[k] - centre[k]);
                }
            }
        }
        Pack<uint16_t> pack;
#pragma unroll
        for (int k = 0; k < WIDTH; k++) pack.at[k] = (uint16_t)first[k];
        *reinterpret_cast<Pack<uint16_t>*>(winners + to) = pack;
    }
    if (!scale) return;
#pragma unroll
    for (int k = 0; k < WIDTH; k++) {
        all[0][threadIdx.x * WIDTH + k] = total[0][k];
        all[1][threadIdx.x * WIDTH + k] = total[1][k];
    }
    __syncthreads();
    int across = lanes * WIDTH;
    for (int c = threadIdx.x; c < across; c += THREADS) {
        int channel = blockIdx.y * across + c;
        if (channel >= channels) break;
        for (int which = 0; which < 2; which++) {
            A sum = 0;
            for (int row = 0; row < p.rows; row++) sum += all[which][row * across + c];
            sums[((int64_t)blockIdx.x * 2 + which) * channels + channel] = sum;
        }
    }
}

// dx = for each cell of the input, the sum of grad over the windows that it won. `pixels` counts
// those of dx.
extern "C" __global__ __launch_bounds__(THREADS, 4) void max_pool2d_backward(
    const TYPE* grad, const uint16_t* winners, TYPE* dx, int pixels, int channels, int lanes, WINDOWS) {
    Place p = place_of(channels, lanes);
    if (p.idle) return;
    for (int at = blockIdx.x * p.rows + p.row; at < pixels; at += gridDim.x * p.rows) {
        Pixel in = pixel_of(at, height, width);
        Seen i = seen_by(in.line, out_height, kernel_height, stride_y, pad_y);
        Seen j = seen_by(in.column, out_width, kernel_width, stride_x, pad_x);
        A sum[WIDTH];
#pragma unroll
        for (int k = 0; k < WIDTH; k++) sum[k] = 0;
        for (int oy = i.low; oy <= i.high; oy++) {
            int taps = (in.line + pad_y - oy * stride_y) * kernel_width;
            for (int ox = j.low; ox <= j.high; ox++) {
                int tap = taps + in.column + pad_x - ox * stride_x;
                int64_t from = (line_of(in.image, oy, out_height, out_width) + ox) * channels + p.channel;
                Pack<uint16_t> winner = load(winners + from);
                A g[WIDTH];
                load_wide(g, grad + from);
#pragma unroll
                for (int k = 0; k < WIDTH; k++) sum[k] += winner.at[k] == (uint16_t)tap ? g[k] : A(0);
            }
        }
        store_narrow(dx + (int64_t)at * channels + p.channel, sum);
    }
}

// y = the mean of each window, cells in the padding counted as zeros.
extern "C" __global__ __launch_bounds__(THREADS, 4) void avg_pool2d_forward(const TYPE* x, TYPE* y, int pixels,
                                                                        int channels, int lanes, WINDOWS) {
    Place p = place_of(channels, lanes);
    if (p.idle) return;
    A share = A(1) / (kernel_height * kernel_width);
    for (int at = blockIdx.x * p.rows + p.row; at < pixels; at += gridDim.x * p.rows) {
        Pixel out = pixel_of(at, out_height, out_width);
        Taps i = taps_of(out.line, height, kernel_height, stride_y, pad_y);
        Taps j = taps_of(out.column, width, kernel_width, stride_x, pad_x);
        A sum[WIDTH];
#pragma unroll
        for (int k = 0; k < WIDTH; k++) sum[k] = 0;
        for (int tap = i.low; tap < i.high; tap++) {
            int64_t line = line_of(out.image, i.first + tap, height, width) + j.first;
            for (int side = j.low; side < j.high; side++) {
                A cell[WIDTH];
                load_wide(cell, x + (line + side) * channels + p.channel);
#pragma unroll
                for (int k = 0; k < WIDTH; k++) sum[k] += cell[k];
            }
        }
#pragma unroll
        for (int k = 0; k < WIDTH; k++) sum[k] *= share;
        store_narrow(y + (int64_t)at * channels + p.channel, sum);
    }
}

// dx = the sum of grad over the windows that see a cell, divided by the cells of a window.
extern "C" __global__ __launch_bounds__(THREADS, 3) void avg_pool2d_backward(const TYPE* grad, TYPE* dx, int pixels,
                                                                         int channels, int lanes, WINDOWS) {
    Place p = place_of(channels, lanes);
    if (p.idle) return;
    A share = A(1) / (kernel_height * kernel_width);
    for (int at = blockIdx.x * p.rows + p.row; at < pixels; at += gridDim.x * p.rows) {
        Pixel in = pixel_of(at, height, width);
        Seen i = seen_by(in.line, out_height, kernel_height, stride_y, pad_y);
        Seen j = seen_by(in.column, out_width, kernel_width, stride_x, pad_x);
        A sum[WIDTH];
#pragma unroll
        for (int k = 0; k < WIDTH; k++) sum[k] = 0;
        for (int oy = i.low; oy <= i.high; oy++) {
            int64_t line = line_of(in.image, oy, out_height, out_width);
            for (int ox = j.low; ox <= j.high; ox++) {
                A g[WIDTH];
                load_wide(g, grad + (line + ox) * channels + p.channel);
#pragma unroll
                for (int k = 0; k < WIDTH; k++) sum[k] += g[k];
            }
        }
#pragma unroll
        for (int k = 0; k < WIDTH; k++) sum[k] *= share;
        store_narrow(dx + (int64_t)at * channels + p.channel, sum);
    }
}

// y (images, channels) = the mean over an image's `area` pixels. A block an image, its rows of lanes
// a share of the pixels each.
extern "C" __global__ __launch_bounds__(THREADS) void global_avg_pool_forward(const TYPE* x, TYPE* y, int channels,
                                                                             int lanes, int area) {
    __shared__ A all[THREADS * WIDTH];
    Place p = place_of(channels, lanes);
    A sum[WIDTH];
#pragma unroll
    for (int k = 0; k < WIDTH; k++) sum[k] = 0;
    const TYPE* image = x + (int64_t)blockIdx.x * area * channels + p.channel;
    for (int pixel = p.row; pixel < area && !p.idle; pixel += p.rows) {
        A cell[WIDTH];
        load_wide(cell, image + (int64_t)pixel * channels);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) sum[k] += cell[k];
    }
#pragma unroll
    for (int k = 0; k < WIDTH; k++) all[threadIdx.x * WIDTH + k] = sum[k];
    __syncthreads();
    int across = lanes * WIDTH;
    for (int c = threadIdx.x; c < across; c += THREADS) {
        int channel = blockIdx.y * across + c;
        if (channel >= channels) break;
        A mean = 0;
        for (int row = 0; row < p.rows; row++) mean += all[row * across + c];
        narrow(y[(int64_t)blockIdx.x * channels + channel], mean / area);
    }
}

// dx = grad / area at each of an image's pixels.
extern "C" __global__ __launch_bounds__(THREADS, 4) void global_avg_pool_backward(
    const TYPE* grad, TYPE* dx, int pixels, int channels, int lanes, int area) {
    Place p = place_of(channels, lanes);
    if (p.idle) return;
    for (int at = blockIdx.x * p.rows + p.row; at < pixels; at += gridDim.x * p.rows) {
        A g[WIDTH];
        load_wide(g, grad + (int64_t)(at / area) * channels + p.channel);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) g[k] /= area;
        store_narrow(dx + (int64_t)at * channels + p.channel, g);
    }
}
