// The gradient to the weights of a convolution as a product of matrices that are never formed: the
// gathered input, turned, (taps * channels, output pixels), and the output's gradient as it lies. A
// block makes a tile of TILE_M x TILE_N weights over a run of pixels; the runs' results are added in
// order by add_parts.
//
// blockIdx.x counts tiles, blockIdx.y is the run, blockIdx.z the group.
#include "primitives.cuh"
#include "convolution.cuh"

// parts[run] (depth, outputs of all groups) = the run's share of the gradient, of `span` pixels (a
// multiple of TILE_K). Pixel p is number (image, row, column) of (_, rows, columns); pixels of grad
// are grad_pitch apart. Every group has as many channels as fill whole runs; `channels` counts those
// of x, `outputs` those of parts. `paired` says that outputs are even.
extern "C" __global__ __launch_bounds__(THREADS, RESIDENT) void correlate_weights(
    const TYPE* __restrict__ x, const TYPE* __restrict__ grad, A* __restrict__ parts,
    const A* __restrict__ in_scale, const A* __restrict__ in_shift, int in_relu,
    int height, int width, int in_pitch, int channels,
    int kernel_y, int kernel_x, int stride_y, int stride_x, int offset_y, int offset_x,
    int dilation_y, int dilation_x,
    int pixels, int rows, int columns, int span, int outputs, int grad_pitch, int out_pitch,
    int paired) {
    DYNAMIC_SHARED(Operand, shared);
    __shared__ Place places[STAGES][TILE_K];  // of the pixels of the steps that are under way
    const int thread = threadIdx.x, group = blockIdx.z, tiles = (outputs + TILE_N - 1) / TILE_N;
    const int m0 = blockIdx.x / tiles * TILE_M, n0 = blockIdx.x % tiles * TILE_N;
    Input in = {x + group * channels, height, width, in_pitch, channels, kernel_y, kernel_x,
                stride_y, stride_x, offset_y, offset_x, dilation_y, dilation_x,
                in_scale + group * channels, in_shift + group * channels, in_relu};
    grad += group * (grad_pitch / (int)gridDim.z);
    const int start = blockIdx.y * span, stop = min(span, pixels - start) + start;

    // The first TILE_K threads find the places of a step's pixels, one each, a step before they are
    // needed; the barrier of every step lies between.
    int pixel = start + thread, column = pixel % columns, line = pixel / columns;
    int row = line % rows, image = line / rows;
    const int on_x = TILE_K % columns, lines = TILE_K / columns, on_y = lines % rows,
              on_images = lines / rows;
    auto place_next = [&](int step) {
        if (thread >= TILE_K) return;
        places[step % STAGES][thread] = pixel < stop ? place_of(in, image, row, column) : nowhere();
        pixel += TILE_K;
        column += on_x;
        row += on_y;
        image += on_images;
        if (column >= columns) column -= columns, row++;
        if (row >= rows) row -= rows, image++;
    };
    for (int step = 0; step < STAGES; step++) place_next(step);
    __syncthreads();

    const int depth = in.depth();
    Mover<TILE_K, TILE_M, Layout<false>::LEFT_PITCH> left;
    Mover<TILE_K, TILE_N, Layout<false>::RIGHT_PITCH> right;
    const Tap tap(in, m0 + left.column());
    const int n = n0 + right.column();
    Totals totals;
    accumulate<false>(
        totals, shared, (stop - start + TILE_K - 1) / TILE_K,
        [&](int step, Operand* a, Operand* b) {
            left.begin(a, Gather(in, places[step % STAGES], tap));
            int at = start + step * TILE_K;
            Lines found = {grad + (int64_t)at * grad_pitch + n, grad_pitch,
                           n < outputs ? stop - at : 0, grad};
            right.begin(b, found);
            if (step >= STAGES - 1) place_next(step + 1);
        },
        [&](int step, Operand* a, Operand* b) {
#if PROLOGUE
            left.finish(a, [&](int k) { return tap.sees(in, places[step % STAGES][k]); },
                        Activation(in, tap.c));
#else
            left.finish(a);
#endif
            right.finish(b);
        });

    A* out = parts + ((int64_t)blockIdx.y * depth + m0) * out_pitch + group * outputs + n0;
    totals.each_pair([&](int m, int k, A first, A second) {
        if (m0 + m >= depth || n0 + k >= outputs) return;
        A* to = out + (int64_t)m * out_pitch + k;
        if (paired) {
            Run<A, 2> pair = {{first, second}};
            store_run(to, pair);
        } else {
            to[0] = first;
            if (n0 + k + 1 < outputs) to[1] = second;
        }
    });
}
