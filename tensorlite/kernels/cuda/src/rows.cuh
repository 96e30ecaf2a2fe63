// Arrays whose last axis is the channels, seen as rows. TYPE is the type in memory; channels are
// read WIDTH at a time: a `Vector`, of which a row has `groups`.
//
// Two layouts of threads. Flat: thread i of the grid takes vectors i, i + step, ...; the launcher
// makes step a multiple of groups (or nobody takes a second one), so that a thread stays with its
// channels. Where rows are summed, a block is `columns` threads wide (a power of two) and
// THREADS / columns lanes high, and takes a run of rows; blockIdx.y counts its tile of columns.
#ifndef TENSORLITE_ROWS
#define TENSORLITE_ROWS

typedef Accumulator<TYPE>::type A;

struct alignas(WIDTH * sizeof(TYPE)) Vector {
    TYPE at[WIDTH];
};

// The flat layout.
struct Flat {
    int64_t start, step;
    __device__ Flat()
        : start((int64_t)blockIdx.x * THREADS + threadIdx.x), step((int64_t)gridDim.x * THREADS) {}
    __device__ int channel(int groups) const { return (int)(start % groups) * WIDTH; }
};

// The layout of a block that sums rows.
struct Block {
    int columns, lanes, lane, group;
    __device__ Block(int columns)
        : columns(columns),
          lanes(THREADS / columns),
          lane(threadIdx.x / columns),
          group(blockIdx.y * columns + threadIdx.x % columns) {}
};

// WIDTH per-channel values from channel c on, or `other` where there is no such vector.
__device__ __forceinline__ void load_channels(A (&to)[WIDTH], const A* vector, int c,
                                              A other = A(0)) {
#pragma unroll
    for (int e = 0; e < WIDTH; e++) to[e] = vector ? vector[c + e] : other;
}

// max(x, 0); NaN stays NaN.
__device__ __forceinline__ A rectify(A x) { return x <= 0 ? A(0) : x; }

// The sum of `value` over the lanes of a block, written to out[0 .. WIDTH) by the first lane if
// `wanted`. All threads of the block call it; pool has WIDTH * THREADS elements, and when it
// returns each thread reads none but its own.
__device__ __forceinline__ void sum_lanes(const A (&value)[WIDTH], A* pool, const Block& block,
                                          A* out, bool wanted) {
    int t = threadIdx.x;
#pragma unroll
    for (int e = 0; e < WIDTH; e++) pool[e * THREADS + t] = value[e];
    __syncthreads();
    for (int half = block.lanes / 2; half > 0; half /= 2) {
        if (block.lane < half) {
#pragma unroll
            for (int e = 0; e < WIDTH; e++)
                pool[e * THREADS + t] += pool[e * THREADS + t + half * block.columns];
        }
        __syncthreads();
    }
    if (block.lane == 0 && wanted) {
#pragma unroll
        for (int e = 0; e < WIDTH; e++) out[e] = pool[e * THREADS + t];
    }
}

#endif
