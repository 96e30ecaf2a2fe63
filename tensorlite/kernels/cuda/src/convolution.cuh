// How convolutions read their input: every pixel of the output sees, through each tap of the
// kernel, one pixel of the input, so the input is gathered into the rows of a matrix, (pixels,
// taps * channels), of which only tiles in shared memory ever exist.
//
// 16 bytes are moved at a time, all of one tap: the launcher adds channels of zeros where they do
// not come in such runs. With PROLOGUE 1 the input is a deferred activation, formed in shared memory
// by the thread that moved it; zeros of padding stay zeros.
#ifndef TENSORLITE_CONVOLUTION
#define TENSORLITE_CONVOLUTION
#include "product.cuh"

const int WIDTH = 16 / sizeof(TYPE);  // elements moved at a time

// The input, and the window through which output pixel o sees it along each axis, at tap t:
// o * stride + offset + t * dilation. Pixels are `pitch` elements apart.
struct Input {
    const TYPE* x;
    int height, width, pitch, channels;
    int kernel_y, kernel_x, stride_y, stride_x, offset_y, offset_x, dilation_y, dilation_x;
    const A *scale, *shift;
    int relu;

    __device__ __forceinline__ int depth() const { return kernel_y * kernel_x * channels; }
    // How far a tap lies from the first.
    __device__ __forceinline__ int64_t element(int y, int x, int c) const {
        return ((int64_t)y * dilation_y * width + x * dilation_x) * pitch + c;
    }
};

// Where an output pixel's first tap lies: the element of its channel 0, line and column. That may be
// beyond the border; it is far beyond for what is no pixel of the output. Read as one vector.
struct __align__(16) Place {
    int64_t element;
    uint64_t line_column;
    __device__ __forceinline__ int y() const { return (int)(line_column >> 32); }
    __device__ __forceinline__ int x() const { return (int)line_column; }
};

__device__ __forceinline__ Place make_place(int64_t element, int y, int x) {
    return {element, (uint64_t)(uint32_t)y << 32 | (uint32_t)x};
}

__device__ __forceinline__ Place nowhere() { return make_place(0, -(1 << 30), 0); }

__device__ __forceinline__ Place place_of(const Input& in, int image, int row, int column) {
    int y = row * in.stride_y + in.offset_y, x = column * in.stride_x + in.offset_x;
    return make_place((((int64_t)image * in.height + y) * in.width + x) * in.pitch, y, x);
}

// A column of the gathered matrix: a channel seen through a tap.
struct Tap {
    int y, x, c;
    __device__ __forceinline__ Tap(const Input& in, int column) {
        int tap = column / in.channels;
        c = column - tap * in.channels;
        y = tap / in.kernel_x;
        x = tap - y * in.kernel_x;
    }
    // Moves on by as many columns as `step` is from the first, without a division.
    __device__ __forceinline__ void advance(const Input& in, const Tap& step) {
        c += step.c;
        x += step.x;
        y += step.y;
        if (c >= in.channels) c -= in.channels, x++;
        if (x >= in.kernel_x) x -= in.kernel_x, y++;
    }
    __device__ __forceinline__ bool sees(const Input& in, const Place& from) const {
        return y < in.kernel_y && (unsigned)(from.y() + y * in.dilation_y) < (unsigned)in.height &&
               (unsigned)(from.x() + x * in.dilation_x) < (unsigned)in.width;
    }
};

// The activation of the input's channels from c on.
struct Activation {
    Run<A, WIDTH> scale, shift;
    int relu;
    __device__ __forceinline__ Activation(const Input& in, int c)
        : scale(load_run<A, WIDTH>(in.scale + c)),
          shift(load_run<A, WIDTH>(in.shift + c)),
          relu(in.relu) {}
    __device__ __forceinline__ void operator()(Run<TYPE, WIDTH>& run) const {
#pragma unroll
        for (int e = 0; e < WIDTH; e++) {
            A value = widen(run.at[e]) * scale.at[e] + shift.at[e];
            narrow(run.at[e], relu && value < 0 ? A(0) : value);
        }
    }
};

// A thread's share of moving a tile of LINES x LENGTH elements to shared memory, where lines are
// PITCH apart, or columns if turned: the same run of columns of every APART-th line.
template <int LINES, int LENGTH, int PITCH, bool turned = false> struct Mover {
    static const int RUNS = LENGTH / WIDTH, APART = THREADS / RUNS, COUNT = LINES / APART;
    static_assert(RUNS * APART == THREADS && COUNT * APART == LINES, "equal shares");
#if METHOD == PLAIN
    Run<TYPE, WIDTH> held[COUNT];
    uint32_t given;  // which of them are not zeros of padding
#else
    static_assert(!turned, "asynchronous copies cannot turn a tile");
#endif

    static __device__ __forceinline__ int column() { return threadIdx.x % RUNS * WIDTH; }
    static __device__ __forceinline__ int line(int i) { return threadIdx.x / RUNS + i * APART; }

    // find(line, wanted) is where this thread's run of a line lies; zeros unless it sets wanted.
    template <class Find> __device__ __forceinline__ void begin(Operand* tile, Find find) {
#if METHOD == PLAIN
        given = 0;
#endif
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            bool wanted;
            const TYPE* from = find(line(i), wanted);
#if METHOD == PLAIN
            if (wanted) {
                held[i] = load_run<TYPE, WIDTH>(from);
                given |= 1u << i;
            }
#else
            copy_async16(tile + line(i) * PITCH + column(), from, wanted);
#endif
        }
    }

    __device__ __forceinline__ void finish(Operand* tile) {
#if METHOD == PLAIN
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            Run<A, WIDTH> run = {};
            if (given >> i & 1) {
#pragma unroll
                for (int e = 0; e < WIDTH; e++) run.at[e] = widen(held[i].at[e]);
            }
            if (turned) {
#pragma unroll
                for (int e = 0; e < WIDTH; e++) tile[(column() + e) * PITCH + line(i)] = run.at[e];
            } else {
                store_run(tile + line(i) * PITCH + column(), run);
            }
        }
#endif
    }

    // The same; before, change(run) is applied to every run that was wanted, which wants(line) tells
    // again.
    template <class Wants, class Change>
    __device__ __forceinline__ void finish(Operand* tile, Wants wants, Change change) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
#if METHOD == PLAIN
            if (given >> i & 1) change(held[i]);
#else
            if (!wants(line(i))) continue;
            TYPE* at = tile + line(i) * PITCH + column();
            Run<TYPE, WIDTH> run = load_run<TYPE, WIDTH>(at);
            change(run);
            store_run(at, run);
#endif
        }
        finish(tile);
    }
};

// Finds the runs of one tap, for the lines of the gathered matrix whose places are given.
struct Gather {
    const Input& in;
    const Place* places;
    const Tap& tap;
    const TYPE* first;
    __device__ __forceinline__ Gather(const Input& in, const Place* places, const Tap& tap)
        : in(in), places(places), tap(tap), first(in.x + in.element(tap.y, tap.x, tap.c)) {}
    __device__ __forceinline__ const TYPE* operator()(int line, bool& wanted) const {
        Place place = places[line];
        wanted = tap.sees(in, place);
        return wanted ? first + place.element : in.x;
    }
};

// Finds the runs of lines of a plain matrix, of which those before `lines` exist.
struct Lines {
    const TYPE* first;  // this thread's run of line 0 of the tile
    int64_t pitch;
    int lines;  // negative where this thread's columns do not exist
    const TYPE* safe;
    __device__ __forceinline__ const TYPE* operator()(int line, bool& wanted) const {
        wanted = line < lines;
        return wanted ? first + line * pitch : safe;
    }
};

#endif
