// Adam over all parameters in one launch, and what an update has to know of all gradients first.
//
// A table in device memory says where every parameter lies. It is cut into pieces of at most PIECE
// elements, a block each. Everything that changes from step to step (learning rate, count of steps,
// loss scale) is read from device memory, so that nothing of it is an argument of a launch.
#include "primitives.cuh"

typedef Accumulator<TYPE>::type A;

struct Entry {
    uint64_t value, grad, first, second;  // addresses of arrays of TYPE
    int64_t size;
};

// What is read and written at once: 16 bytes, 8 of half numbers.
enum { PACKED = sizeof(TYPE) > 4 ? 2 : 4, PACK_BYTES = PACKED * sizeof(TYPE) };
struct __align__(PACK_BYTES) Pack {
    TYPE at[PACKED];
};

// Places in the array of doubles that an optimiser keeps on the device.
enum { LR, STEPS, NORM, SKIPPED, SCALE, FACTOR, RATE, EPSILON };
// Places in that of a loss scaler.
enum { LOSS_SCALE, GOOD_STEPS };

struct Piece {
    Entry entry;
    int64_t start, stop;
};

__device__ __forceinline__ Piece this_piece(const Entry* table, const int64_t* pieces) {
    Piece piece;
    piece.entry = table[pieces[2 * blockIdx.x]];
    piece.start = pieces[2 * blockIdx.x + 1];
    piece.stop = min(piece.start + (int64_t)PIECE, piece.entry.size);
    return piece;
}

// How many elements of a piece can be accessed in packs: all whole ones, if every address allows.
__device__ __forceinline__ int64_t in_packs(const Piece& piece, uint64_t addresses) {
    bool aligned = (addresses | (uint64_t)piece.start * sizeof(TYPE)) % PACK_BYTES == 0;
    return aligned ? (piece.stop - piece.start) / PACKED * PACKED : 0;
}

// The sum over the block, in thread 0; the order of additions is always the same.
__device__ __forceinline__ double block_sum(double sum) {
    __shared__ double of_warp[THREADS / 32];
    for (int offset = 16; offset; offset /= 2) sum += __shfl_down_sync(0xffffffffu, sum, offset);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
    if (threadIdx.x == 0)
        for (int warp = 0; warp < THREADS / 32; warp++) sum += of_warp[warp];
    return sum;
}

__device__ __forceinline__ double square(TYPE x) {
    double wide = widen(x);
    return wide * wide;
}

// The sum of the squares of a piece of the gradients. It is finite just where all of them are, since
// a double holds the square of any float.
extern "C" __global__ __launch_bounds__(THREADS) void gradient_squares(
    const Entry* table, const int64_t* pieces, double* partial) {
    Piece piece = this_piece(table, pieces);
    const TYPE* grad = reinterpret_cast<const TYPE*>(piece.entry.grad) + piece.start;
    int64_t count = piece.stop - piece.start, packed = in_packs(piece, piece.entry.grad);
    double sum = 0;
    for (int64_t i = (int64_t)threadIdx.x * PACKED; i < packed; i += THREADS * PACKED) {
        Pack g = *reinterpret_cast<const Pack*>(grad + i);
#pragma unroll
        for (int k = 0; k < PACKED; k++) sum += square(g.at[k]);
    }
    for (int64_t i = packed + threadIdx.x; i < count; i += THREADS) sum += square(grad[i]);
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// One block decides on an update. From the sums of squares of all pieces (none: the gradients are
// not looked at) come the norm and whether to skip; then the loss scale moves, and the coefficients
// of Adam's step are worked out. scaling may be null, max_norm 0: then nothing is scaled, or clipped.
extern "C" __global__ __launch_bounds__(THREADS) void prepare_update(
    const double* partial, int count, double* control, double* scaling, double beta1, double beta2,
    double eps, double max_norm, int growth_steps, double largest) {
    double sum = 0;
    for (int i = threadIdx.x; i < count; i += THREADS) sum += partial[i];
    sum = block_sum(sum);
    if (threadIdx.x != 0) return;
    double scale = scaling ? scaling[LOSS_SCALE] : 1;
    double norm = sqrt(sum) / scale;
    bool skipped = !(sum - sum == 0);  // infinite or not a number
    control[NORM] = norm;
    control[SKIPPED] = skipped;
    control[SCALE] = scale;
    if (scaling) {
        double good = skipped ? 0 : scaling[GOOD_STEPS] + 1;
        if (skipped) {
            scaling[LOSS_SCALE] = scale / 2;
        } else if (good >= growth_steps) {
            scaling[LOSS_SCALE] = min(scale * 2, largest);
            good = 0;
        }
        scaling[GOOD_STEPS] = good;
    }
    if (skipped) return;
    double steps = control[STEPS] + 1;
    double root = sqrt(1 - exp(steps * log(beta2)));
    control[STEPS] = steps;
    control[FACTOR] = (max_norm > 0 && norm > max_norm ? max_norm / norm : 1.0) / scale;
    control[RATE] = control[LR] * root / (1 - exp(steps * log(beta1)));
    control[EPSILON] = eps * root;
}

// What turns a gradient into a step.
struct Rule {
    A beta1, rest1, beta2, rest2, decay, factor, rate, epsilon;
};

__device__ __forceinline__ void update(TYPE& value, TYPE grad, TYPE& first, TYPE& second,
                                       const Rule& rule) {
    A x = widen(value);
    A g = widen(grad) * rule.factor + rule.decay * x;
    A m = rule.beta1 * widen(first) + rule.rest1 * g;
    A v = rule.beta2 * widen(second) + rule.rest2 * (g * g);
    narrow(first, m);
    narrow(second, v);
    narrow(value, x - rule.rate * (m / ((A)sqrt(v) + rule.epsilon)));
}

// Adam's step on a piece, as `prepare_update` has worked it out; nothing where it said to skip.
// rest1 and rest2 are 1 - beta1 and 1 - beta2.
extern "C" __global__ __launch_bounds__(THREADS) void adam(
    const Entry* table, const int64_t* pieces, const double* control, double beta1, double rest1,
    double beta2, double rest2, double decay) {
    if (control[SKIPPED] != 0) return;
    Rule rule = {(A)beta1, (A)rest1, (A)beta2, (A)rest2, (A)decay,
                 (A)control[FACTOR], (A)control[RATE], (A)control[EPSILON]};
    Piece piece = this_piece(table, pieces);
    const Entry& entry = piece.entry;
    TYPE* value = reinterpret_cast<TYPE*>(entry.value) + piece.start;
    const TYPE* grad = reinterpret_cast<const TYPE*>(entry.grad) + piece.start;
    TYPE* first = reinterpret_cast<TYPE*>(entry.first) + piece.start;
    TYPE* second = reinterpret_cast<TYPE*>(entry.second) + piece.start;
    int64_t count = piece.stop - piece.start;
    int64_t packed = in_packs(piece, entry.value | entry.grad | entry.first | entry.second);
    for (int64_t i = (int64_t)threadIdx.x * PACKED; i < packed; i += THREADS * PACKED) {
        Pack x = *reinterpret_cast<Pack*>(value + i), m = *reinterpret_cast<Pack*>(first + i);
        Pack v = *reinterpret_cast<Pack*>(second + i);
        Pack g = *reinterpret_cast<const Pack*>(grad + i);
#pragma unroll
        for (int k = 0; k < PACKED; k++) update(x.at[k], g.at[k], m.at[k], v.at[k], rule);
        *reinterpret_cast<Pack*>(value + i) = x;
        *reinterpret_cast<Pack*>(first + i) = m;
        *reinterpret_cast<Pack*>(second + i) = v;
    }
    for (int64_t i = packed + threadIdx.x; i < count; i += THREADS)
        update(value[i], grad[i], first[i], second[i], rule);
}
