// The end of a residual block: y = relu(sum of up to three terms), and its gradients, in one pass
// each. See rows.cuh for the layout of the blocks.
//
// A term is an array z, or its activation where it has a scale: z * scale + shift, then relu if
// set. In chunks of `times` frames, a term's frame t is added to the output's frame t + offset,
// as far as there is one; a term has `frames` of them. The z of a term that is not there is null.
#include "primitives.cuh"
#include "rows.cuh"

const int TERMS = 3;

// A term as parameters of a kernel, and the parameters of all in arrays that loops can be unrolled
// over. mean: that of the norm, null for none; dx: where the gradient goes, null for nowhere.
#define TERM(k)                                                        \
    const Vector *__restrict__ z##k, const A *__restrict__ scale##k,   \
        const A *__restrict__ shift##k, int relu##k, int offset##k, int frames##k
#define GRADIENT(k) const A *__restrict__ mean##k, Vector *__restrict__ dx##k
#define LIST(name) {name##0, name##1, name##2}

// A run of the output's rows that are of one frame.
struct Piece {
    int64_t frame, first;
    int count;
    __device__ Piece(int64_t start, int64_t stop, int64_t pixels)
        : frame(start / pixels),
          first(start - frame * pixels),
          count((int)min(pixels - first, stop - start)) {}

    // The row of a term that is added to the first row, or -1.
    __device__ int64_t in_term(int times, int frames, int offset, int64_t pixels) const {
        int64_t chunk = frame / times;
        int time = (int)(frame - chunk * times) - offset;
        return time < 0 || time >= frames ? -1 : (chunk * frames + time) * pixels + first;
    }
};

extern "C" __global__ __launch_bounds__(THREADS) void join_forward(
    TERM(0), TERM(1), TERM(2), Vector* __restrict__ y, int64_t rows, int64_t pixels, int times,
    int groups, int columns, int64_t span) {
    const Vector* const z[TERMS] = LIST(z);
    const A *const scale[TERMS] = LIST(scale), *const shift[TERMS] = LIST(shift);
    const int relu[TERMS] = LIST(relu), offset[TERMS] = LIST(offset), frames[TERMS] = LIST(frames);
    Block block(columns);
    if (block.group >= groups) return;
    A a[TERMS][WIDTH], b[TERMS][WIDTH];
#pragma unroll
    for (int k = 0; k < TERMS; k++) {
        load_channels(a[k], scale[k], block.group * WIDTH, A(1));
        load_channels(b[k], shift[k], block.group * WIDTH);
    }
    int64_t at = blockIdx.x * span, stop = min(at + span, rows);
    while (at < stop) {
        Piece piece(at, stop, pixels);
        const Vector* from[TERMS];
#pragma unroll
        for (int k = 0; k < TERMS; k++) {
            int64_t row = piece.in_term(times, frames[k], offset[k], pixels);
            from[k] = z[k] && row >= 0 ? z[k] + row * groups + block.group : nullptr;
        }
        Vector* to = y + at * groups + block.group;
        for (int i = block.lane; i < piece.count; i += block.lanes) {
            int64_t here = (int64_t)i * groups;
            Vector v[TERMS];
#pragma unroll
            for (int k = 0; k < TERMS; k++)
                if (from[k]) v[k] = from[k][here];
            A sum[WIDTH] = {};
#pragma unroll
            for (int k = 0; k < TERMS; k++)
                if (from[k]) {
#pragma unroll
                    for (int e = 0; e < WIDTH; e++) {
                        A term = fma(widen(v[k].at[e]), a[k][e], b[k][e]);
                        sum[e] += relu[k] ? rectify(term) : term;
                    }
                }
            Vector out;
#pragma unroll
            for (int e = 0; e < WIDTH; e++) narrow(out.at[e], rectify(sum[e]));
            to[here] = out;
        }
        at += piece.count;
    }
}

// The gradient of the sum goes to `shared`, if given, and to the dx of each term that has one,
// where zero also if the term's own relu cut. Of each term with a mean, the sums over a block of
// its gradient and of gradient * (z - mean) go to partials, (gridDim.x, those terms, 2, channels).
extern "C" __global__ __launch_bounds__(THREADS) void join_backward(
    TERM(0), TERM(1), TERM(2), GRADIENT(0), GRADIENT(1), GRADIENT(2),
    const Vector* __restrict__ grad, const Vector* __restrict__ y, Vector* __restrict__ shared,
    A* __restrict__ partials, int64_t rows, int64_t pixels, int times, int groups, int columns,
    int64_t span) {
    __shared__ A pool[WIDTH * THREADS];
    const Vector* const z[TERMS] = LIST(z);
    const A *const scale[TERMS] = LIST(scale), *const shift[TERMS] = LIST(shift);
    const A* const mean[TERMS] = LIST(mean);
    Vector* const dx[TERMS] = LIST(dx);
    const int relu[TERMS] = LIST(relu), offset[TERMS] = LIST(offset), frames[TERMS] = LIST(frames);
    Block block(columns);
    bool inside = block.group < groups;
    A a[TERMS][WIDTH], b[TERMS][WIDTH], centre[TERMS][WIDTH];
    A sum[TERMS][WIDTH] = {}, centred[TERMS][WIDTH] = {};
    if (inside) {
#pragma unroll
        for (int k = 0; k < TERMS; k++) {
            load_channels(a[k], scale[k], block.group * WIDTH);
            load_channels(b[k], shift[k], block.group * WIDTH);
            load_channels(centre[k], mean[k], block.group * WIDTH);
        }
    }
    int64_t at = blockIdx.x * span, stop = min(at + span, rows);
    while (inside && at < stop) {
        Piece piece(at, stop, pixels);
        int64_t row[TERMS];
#pragma unroll
        for (int k = 0; k < TERMS; k++) {
            row[k] = piece.in_term(times, frames[k], offset[k], pixels);
            if (row[k] >= 0) row[k] = row[k] * groups + block.group;
        }
        int64_t origin = at * groups + block.group;
        for (int i = block.lane; i < piece.count; i += block.lanes) {
            int64_t here = (int64_t)i * groups;
            Vector g = grad[origin + here], above = y[origin + here], v[TERMS];
#pragma unroll
            for (int k = 0; k < TERMS; k++)
                if (row[k] >= 0 && (relu[k] || mean[k])) v[k] = z[k][row[k] + here];
#pragma unroll
            for (int e = 0; e < WIDTH; e++)
                if (!(widen(above.at[e]) > 0)) g.at[e] = TYPE();
            if (shared) shared[origin + here] = g;
#pragma unroll
            for (int k = 0; k < TERMS; k++) {
                if (row[k] < 0) continue;
                Vector own = g;
                if (relu[k] || mean[k]) {
#pragma unroll
                    for (int e = 0; e < WIDTH; e++) {
                        A value = widen(v[k].at[e]);
                        if (relu[k] && !(fma(value, a[k][e], b[k][e]) > 0)) own.at[e] = TYPE();
                        sum[k][e] += widen(own.at[e]);
                        centred[k][e] += widen(own.at[e]) * (value - centre[k][e]);
                    }
                }
                if (dx[k]) dx[k][row[k] + here] = own;
            }
        }
        at += piece.count;
    }
    int channels = groups * WIDTH, norms = 0;
#pragma unroll
    for (int k = 0; k < TERMS; k++) norms += mean[k] != nullptr;
    A* out = partials + (int64_t)blockIdx.x * norms * 2 * channels + block.group * WIDTH;
#pragma unroll
    for (int k = 0; k < TERMS; k++)
        if (mean[k]) {
            sum_lanes(sum[k], pool, block, out, inside);
            sum_lanes(centred[k], pool, block, out + channels, inside);
            out += 2 * channels;
        }
}
