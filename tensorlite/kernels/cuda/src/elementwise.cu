// Elementwise kernels, sums over rows, and the temporal skip. See rows.cuh for the layouts.
#include "primitives.cuh"
#include "rows.cuh"

// y = x * scale + shift per channel, then relu if asked. count vectors in all.
extern "C" __global__ __launch_bounds__(THREADS) void affine(
    const Vector* __restrict__ x, const A* __restrict__ scale, const A* __restrict__ shift,
    Vector* __restrict__ y, int64_t count, int groups, int relu) {
    Flat flat;
    if (flat.start >= count) return;
    A a[WIDTH], b[WIDTH];
    int channel = flat.channel(groups);
    load_channels(a, scale, channel);
    load_channels(b, shift, channel);
    for (int64_t i = flat.start; i < count; i += flat.step) {
        Vector v = x[i], out;
#pragma unroll
        for (int e = 0; e < WIDTH; e++) {
            A value = fma(widen(v.at[e]), a[e], b[e]);
            narrow(out.at[e], relu ? rectify(value) : value);
        }
        y[i] = out;
    }
}

// y = max(x, 0); NaN stays NaN.
extern "C" __global__ __launch_bounds__(THREADS) void relu_forward(
    const Vector* __restrict__ x, Vector* __restrict__ y, int64_t count) {
    Flat flat;
    for (int64_t i = flat.start; i < count; i += flat.step) {
        Vector v = x[i], out;
#pragma unroll
        for (int e = 0; e < WIDTH; e++) narrow(out.at[e], rectify(widen(v.at[e])));
        y[i] = out;
    }
}

// dx = grad where y > 0, else 0.
extern "C" __global__ __launch_bounds__(THREADS) void relu_backward(
    const Vector* __restrict__ grad, const Vector* __restrict__ y, Vector* __restrict__ dx,
    int64_t count) {
    Flat flat;
    for (int64_t i = flat.start; i < count; i += flat.step) {
        Vector g = grad[i], v = y[i];
#pragma unroll
        for (int e = 0; e < WIDTH; e++)
            if (!(widen(v.at[e]) > 0)) g.at[e] = TYPE();
        dx[i] = g;
    }
}

// total += piece.
extern "C" __global__ __launch_bounds__(THREADS) void accumulate(Vector* total, const Vector* piece,
                                                                 int64_t count) {
    Flat flat;
    for (int64_t i = flat.start; i < count; i += flat.step) {
        Vector sum = total[i], more = piece[i];
#pragma unroll
        for (int e = 0; e < WIDTH; e++) narrow(sum.at[e], widen(sum.at[e]) + widen(more.at[e]));
        total[i] = sum;
    }
}

// The sum of each run of `span` rows: partials is (gridDim.x, channels).
extern "C" __global__ __launch_bounds__(THREADS) void column_sums(
    const Vector* __restrict__ x, A* __restrict__ partials, int64_t rows, int groups, int columns,
    int64_t span) {
    __shared__ A pool[WIDTH * THREADS];
    Block block(columns);
    int64_t first = blockIdx.x * span, stop = min(first + span, rows);
    bool inside = block.group < groups;
    A sum[WIDTH] = {};
    if (inside) {
#pragma unroll 8
        for (int64_t row = first + block.lane; row < stop; row += block.lanes) {
            Vector v = x[row * groups + block.group];
#pragma unroll
            for (int e = 0; e < WIDTH; e++) sum[e] += widen(v.at[e]);
        }
    }
    A* out = partials + ((int64_t)blockIdx.x * groups + block.group) * WIDTH;
    sum_lanes(sum, pool, block, out, inside);
}

// The temporal skip. A block takes one of `pieces` pieces of a frame of y (or of its gradient) of
// `size` vectors. Of the `frames` frames of a chunk, y has the last y_frames, x the first x_frames.
struct Frame {
    int64_t of_y, of_x;  // where the frame starts in y, and the one before it in x
    int time;
    __device__ Frame(int size, int pieces, int frames, int y_frames, int x_frames) {
        int frame = blockIdx.x / pieces, chunk = frame / y_frames;
        time = frame - chunk * y_frames + frames - y_frames;
        of_y = (int64_t)frame * size;
        of_x = ((int64_t)chunk * x_frames + time - 1) * size;
    }
};

// out_t = y_t + x_{t-1}, x_{-1} = 0.
extern "C" __global__ __launch_bounds__(THREADS) void temporal_skip_forward(
    const Vector* __restrict__ y, const Vector* __restrict__ x, Vector* __restrict__ out, int size,
    int pieces, int frames, int y_frames, int x_frames) {
    Frame frame(size, pieces, frames, y_frames, x_frames);
    for (int i = blockIdx.x % pieces * THREADS + threadIdx.x; i < size; i += pieces * THREADS) {
        Vector sum = y[frame.of_y + i];
        if (frame.time > 0) {
            Vector early = x[frame.of_x + i];
#pragma unroll
            for (int e = 0; e < WIDTH; e++)
                narrow(sum.at[e], widen(sum.at[e]) + widen(early.at[e]));
        }
        out[frame.of_y + i] = sum;
    }
}

// dy_t = grad_t, dx_{t-1} = grad_t, and zero for the last frame of a chunk, if x has it.
extern "C" __global__ __launch_bounds__(THREADS) void temporal_skip_backward(
    const Vector* __restrict__ grad, Vector* __restrict__ dy, Vector* __restrict__ dx, int size,
    int pieces, int frames, int y_frames, int x_frames) {
    Frame frame(size, pieces, frames, y_frames, x_frames);
    for (int i = blockIdx.x % pieces * THREADS + threadIdx.x; i < size; i += pieces * THREADS) {
        Vector g = grad[frame.of_y + i];
        dy[frame.of_y + i] = g;
        if (frame.time > 0) dx[frame.of_x + i] = g;
        if (frame.time == frames - 1 && x_frames == frames) dx[frame.of_x + size + i] = Vector();
    }
}
