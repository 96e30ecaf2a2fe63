// A block's tile of a matrix product: TILE_M x TILE_N totals over a depth of which TILE_K lie in
// shared memory at a time. Who includes this says how the two operands get there.
//
// METHOD chooses the arithmetic:
//   PLAIN  fused multiply-adds in A, the accumulator of TYPE; exact, on every card. Operands pass
//          through registers, two stages in shared memory.
//   TF32   float rounded to 10 bits of fraction on the tensor cores, as a fragment is loaded.
//   HALF   half16 on the tensor cores.
// The latter two add in float and copy asynchronously into a ring of stages. There, two rows of
// warps share a tile, each warp taking 16 x 8 pieces side by side.
#ifndef TENSORLITE_PRODUCT
#define TENSORLITE_PRODUCT

#define PLAIN 0
#define TF32 1
#define HALF 2

typedef Accumulator<TYPE>::type A;

// Blocks that shall fit on a multiprocessor: threads may have 128 registers in blocks of 256, 168 in
// those of 128, of which shared memory lets hardly more in.
const int RESIDENT = THREADS == 256 ? 2 : 3;

// N values that are moved together, 16 bytes at a time where there are so many.
template <class T, int N> struct __align__(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Run {
    T at[N];
};

template <class T, int N> __device__ __forceinline__ Run<T, N> load_run(const T* from) {
    return *reinterpret_cast<const Run<T, N>*>(from);
}
template <class T, int N> __device__ __forceinline__ void store_run(T* to, const Run<T, N>& run) {
    *reinterpret_cast<Run<T, N>*>(to) = run;
}

#if METHOD == PLAIN
typedef A Operand;  // in shared memory
const int TILE_K = 64 / sizeof(A), STAGES = 2;
// Elements after each row in shared memory, against bank conflicts: of four elements that a thread
// stores one below the other, ...
const int SIDE_PAD = 4;
#else
typedef TYPE Operand;
const int TILE_K = 64 / sizeof(TYPE), STAGES = 4;
// Elements after each row in shared memory, against bank conflicts: the 8 rows x 16 bytes of a
// fragment, 80 bytes apart in an operand stored by rows of depth, lie in 32 different banks; so do
// those of rows along a side (the pitch is 8 more than a multiple of 32 floats or 64 halfs).
const int DEPTH_PAD = 16 / sizeof(TYPE), SIDE_PAD = 8;
#endif

// The left operand lies in shared memory as it is multiplied, (TILE_M, TILE_K), if by_row, else
// transposed; the right one is (TILE_K, TILE_N).
template <bool by_row> struct Layout {
#if METHOD == PLAIN
    static_assert(!by_row, "plain products read both operands along their sides");
    static const int LEFT_PITCH = TILE_M + SIDE_PAD, LEFT = TILE_K * LEFT_PITCH;
#else
    static const int LEFT_PITCH = by_row ? TILE_K + DEPTH_PAD : TILE_M + SIDE_PAD;
    static const int LEFT = (by_row ? TILE_M : TILE_K) * LEFT_PITCH;
#endif
    static const int RIGHT_PITCH = TILE_N + SIDE_PAD, STAGE = LEFT + TILE_K * RIGHT_PITCH;
};

#if METHOD == PLAIN

// A thread's rows and columns lie in runs of four, one in each half (or the whole) of the tile, so
// that neighbouring threads read neighbouring words.
const int ROWS = 8, COLUMNS = TILE_M * TILE_N / (THREADS * ROWS), ACROSS = TILE_N / COLUMNS;
static_assert(COLUMNS == 4 || COLUMNS == 8, "a thread takes one or two runs of columns");

struct Totals {
    A at[ROWS][COLUMNS];
    __device__ __forceinline__ int row(int i) const {
        return threadIdx.x / ACROSS * 4 + i % 4 + i / 4 * (TILE_M / 2);
    }
    __device__ __forceinline__ int column(int j) const {
        return threadIdx.x % ACROSS * 4 + j % 4 + j / 4 * (TILE_N / 2);
    }
    __device__ __forceinline__ Totals() {
#pragma unroll
        for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) at[i][j] = 0;
    }
    // Calls visit(row, column, total, total right of it) for all of this thread's.
    template <class Visit> __device__ __forceinline__ void each_pair(Visit visit) const {
#pragma unroll
        for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int j = 0; j < COLUMNS; j += 2) visit(row(i), column(j), at[i][j], at[i][j + 1]);
    }
};

template <bool by_row>
__device__ __forceinline__ void multiply(Totals& totals, const A* left, const A* right) {
    left += totals.row(0), right += totals.column(0);
#pragma unroll
    for (int k = 0; k < TILE_K; k++) {
        Run<A, 4> a[ROWS / 4], b[COLUMNS / 4];
#pragma unroll
        for (int i = 0; i < ROWS / 4; i++)
            a[i] = load_run<A, 4>(left + k * Layout<by_row>::LEFT_PITCH + i * (TILE_M / 2));
#pragma unroll
        for (int j = 0; j < COLUMNS / 4; j++)
            b[j] = load_run<A, 4>(right + k * Layout<by_row>::RIGHT_PITCH + j * (TILE_N / 2));
#pragma unroll
        for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int j = 0; j < COLUMNS; j++)
                totals.at[i][j] += a[i / 4].at[i % 4] * b[j / 4].at[j % 4];
    }
}

#else

const int WARPS_ACROSS = THREADS / 64;  // and two rows of them
const int ROWS = TILE_M / 32, COLUMNS = TILE_N / (8 * WARPS_ACROSS);  // pieces of a warp

struct Totals {
    float at[ROWS][COLUMNS][4];
    int first_row, first_column;  // of the warp
    __device__ __forceinline__ Totals() {
        int warp = threadIdx.x / 32;
        first_row = warp / WARPS_ACROSS * (16 * ROWS);
        first_column = warp % WARPS_ACROSS * (8 * COLUMNS);
#pragma unroll
        for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int j = 0; j < COLUMNS; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) at[i][j][e] = 0;
    }
    // Calls visit(row, column, total, total right of it) for all of this thread's.
    template <class Visit> __device__ __forceinline__ void each_pair(Visit visit) const {
        int lane = threadIdx.x % 32;
        int row = first_row + lane / 4, column = first_column + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int j = 0; j < COLUMNS; j++)
#pragma unroll
                for (int e = 0; e < 4; e += 2)
                    visit(row + 16 * i + 4 * e, column + 8 * j, at[i][j][e], at[i][j][e + 1]);
    }
};

template <bool by_row>
__device__ __forceinline__ void multiply(Totals& totals, const TYPE* left, const TYPE* right) {
    const int LEFT_PITCH = Layout<by_row>::LEFT_PITCH, RIGHT_PITCH = Layout<by_row>::RIGHT_PITCH;
    int lane = threadIdx.x % 32;
#if METHOD == HALF
    // Where this lane's row of the four 8 x 8 matrices of a fragment lies (see primitives.cuh).
    int low = lane % 8 + lane / 8 % 2 * 8, high = lane / 16 * 8;
    if (by_row)
        left += (totals.first_row + low) * LEFT_PITCH + high;
    else
        left += (lane % 8 + high) * LEFT_PITCH + totals.first_row + lane / 8 % 2 * 8;
    right += low * RIGHT_PITCH + totals.first_column + high;
#pragma unroll
    for (int k = 0; k < TILE_K; k += 16) {
        uint32_t a[ROWS][4], b[COLUMNS / 2][4];  // b: fragments of two pieces
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            if (by_row)
                load_matrices(a[i], left + 16 * i * LEFT_PITCH + k);
            else
                load_transposed(a[i], left + k * LEFT_PITCH + 16 * i);
        }
#pragma unroll
        for (int j = 0; j < COLUMNS / 2; j++)
            load_transposed(b[j], right + k * RIGHT_PITCH + 16 * j);
#pragma unroll
        for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int j = 0; j < COLUMNS; j++)
                mma_half(totals.at[i][j], a[i], b[j / 2] + j % 2 * 2);
    }
#else
    // Stored by rows, four floats are a row of one of load_matrices' matrices, and a lane gets one of
    // them, the one that its fragment wants.
    int g = lane / 4, t = lane % 4;
    if (by_row)
        left += (totals.first_row + lane % 8 + lane / 8 % 2 * 8) * LEFT_PITCH + lane / 16 * 4;
    else
        left += t * LEFT_PITCH + totals.first_row + g;
    right += t * RIGHT_PITCH + totals.first_column + g;
#pragma unroll
    for (int k = 0; k < TILE_K; k += 8) {
        uint32_t a[ROWS][4], b[COLUMNS][2];
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            float values[4];
            if (by_row)
                load_matrices(reinterpret_cast<uint32_t*>(values), left + 16 * i * LEFT_PITCH + k);
#pragma unroll
            for (int e = 0; e < 4; e++)
                a[i][e] = to_tf32(by_row ? values[e] : left[(k + e / 2 * 4) * LEFT_PITCH + 16 * i +
                                                            e % 2 * 8]);
        }
#pragma unroll
        for (int j = 0; j < COLUMNS; j++)
#pragma unroll
            for (int e = 0; e < 2; e++)
                b[j][e] = to_tf32(right[(k + e * 4) * RIGHT_PITCH + 8 * j]);
#pragma unroll
        for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) mma_tf32(totals.at[i][j], a[i], b[j]);
    }
#endif
}

#endif

// Adds to the totals the products of `steps` pairs of tiles. begin(step, left, right) starts moving
// the step's tiles to shared memory, finish(step, left, right) completes what the same thread
// began. Steps are begun in order and finished in order. Shared memory is free to use afterwards.
template <bool by_row, class Begin, class Finish>
__device__ __forceinline__ void accumulate(Totals& totals, Operand* shared, int steps, Begin begin,
                                           Finish finish) {
    const int LEFT = Layout<by_row>::LEFT, STAGE = Layout<by_row>::STAGE;
#if METHOD == PLAIN
    if (steps > 0) {
        begin(0, shared, shared + LEFT);
        finish(0, shared, shared + LEFT);
    }
    __syncthreads();
    for (int step = 0; step < steps; step++) {
        Operand *here = shared + step % STAGES * STAGE, *next = shared + (step + 1) % STAGES * STAGE;
        bool more = step + 1 < steps;
        if (more) begin(step + 1, next, next + LEFT);
        multiply<by_row>(totals, here, here + LEFT);
        if (more) finish(step + 1, next, next + LEFT);
        __syncthreads();
    }
#else
    for (int step = 0; step < STAGES - 1; step++) {
        Operand* stage = shared + step * STAGE;
        if (step < steps) begin(step, stage, stage + LEFT);
        copy_commit();
    }
    for (int step = 0; step < steps; step++) {
        Operand* here = shared + step % STAGES * STAGE;
        copy_wait<STAGES - 2>();
        finish(step, here, here + LEFT);
        __syncthreads();
        // All have multiplied the stage before this one, which is filled again.
        int ahead = step + STAGES - 1;
        Operand* free = shared + ahead % STAGES * STAGE;
        if (ahead < steps) begin(ahead, free, free + LEFT);
        copy_commit();
        multiply<by_row>(totals, here, here + LEFT);
    }
    copy_wait<0>();
    __syncthreads();
#endif
}

#endif
