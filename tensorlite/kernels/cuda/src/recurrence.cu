// The gated recurrent unit, forward and backward through all time steps in one launch. TYPE is the
// type in memory; states are carried in A.
//
// A block owns SEQUENCES sequences, whose states it keeps in shared memory from step to step, so
// blocks never wait for each other. For the product of states and weights a thread owns a unit,
// whose weights it loads for all the block's sequences at once, neighbours side by side. Where there
// are fewer units than threads, the terms of a product are cut into slices, a thread each.
#include "primitives.cuh"

typedef Accumulator<TYPE>::type A;

// A value of each of the block's sequences, moved as one word or two.
struct __align__(SEQUENCES * sizeof(A) < 16 ? SEQUENCES * sizeof(A) : 16) Group {
    A at[SEQUENCES];
};

// How a block shares out a product of `terms` terms for each of `units` units: `lanes` units at a
// time, and a thread's terms from..to - 1.
struct Split {
    int lanes, slices, lane, from, to;
};

__device__ __forceinline__ Split split(int units, int terms) {
    Split s;
    s.lanes = min(units, THREADS);
    s.slices = THREADS / s.lanes;
    s.lane = threadIdx.x % s.lanes;
    int span = (terms + s.slices - 1) / s.slices;
    s.from = min(terms, (int)threadIdx.x / s.lanes * span);  // none for threads left over
    s.to = min(terms, s.from + span);
    return s;
}

// What the slices found for a unit of a sequence, added up.
__device__ __forceinline__ A merge(const Group* found, const Split& s, int lane, int g) {
    A sum = 0;
    for (int slice = 0; slice < s.slices; slice++) sum += found[slice * s.lanes + lane].at[g];
    return sum;
}

__device__ __forceinline__ int length_of(const int* lengths, int sequence, int batch, int steps) {
    if (sequence >= batch) return 0;
    return lengths ? max(0, min(lengths[sequence], steps)) : steps;
}

// The steps of the longest sequence of this block.
__device__ __forceinline__ int longest_of(const int* lengths, int first, int batch, int steps) {
    int longest = 0;
    for (int g = 0; g < SEQUENCES; g++) longest = max(longest, length_of(lengths, first + g, batch, steps));
    return longest;
}

// Zeros in the steps of (batch, steps, size) after the end of each of this block's sequences.
__device__ __forceinline__ void clear_ended(TYPE* array, int size, const int* lengths, int first, int batch,
                                            int steps) {
    for (int sequence = first; sequence < min(first + SEQUENCES, batch); sequence++) {
        int64_t begin = ((int64_t)sequence * steps + length_of(lengths, sequence, batch, steps)) * size;
        int64_t end = ((int64_t)sequence + 1) * steps * size;
        for (int64_t i = begin + threadIdx.x; i < end; i += THREADS) narrow(array[i], 0);
    }
}

__device__ __forceinline__ A sigmoid(A x) { return 1 / (1 + exp(-x)); }

// out (batch, steps, hidden) = the states, given the input products x W_ih (batch, steps, 3 hidden).
// gates (batch, steps, 4, hidden) = r, z, n and h W_hn + b_hn of steps before a sequence's end.
// w_hh is (hidden, 3 hidden); h0 (batch, hidden) and lengths (batch) may be null: zeros, all steps.
extern "C" __global__ __launch_bounds__(THREADS, 1) void gru_forward(
    const TYPE* inputs, const TYPE* w_hh, const A* b_ih, const A* b_hh, const A* h0, const int* lengths, TYPE* out,
    A* gates, int batch, int steps, int hidden) {
    DYNAMIC_SHARED(Group, h);  // a state of each unit, before the step and, in `next`, after it
    Group* next = h + hidden;
    Group* found = next + hidden;  // (3, THREADS)
    int first = blockIdx.x * SEQUENCES, longest = longest_of(lengths, first, batch, steps);
    for (int i = threadIdx.x; i < hidden * SEQUENCES; i += THREADS) {
        int g = i / hidden, unit = i % hidden;
        h[unit].at[g] = h0 && first + g < batch ? h0[(int64_t)(first + g) * hidden + unit] : A(0);
    }
    __syncthreads();
    Split s = split(hidden, hidden);
    for (int t = 0; t < longest; t++) {
        for (int base = 0; base < hidden; base += s.lanes) {
            A sum[3][SEQUENCES] = {};
            if (base + s.lane < hidden) {
                const TYPE* w = w_hh + (int64_t)s.from * 3 * hidden + base + s.lane;
#pragma unroll 4
                for (int k = s.from; k < s.to; k++, w += 3 * hidden) {
                    Group state = h[k];
                    A to_r = widen(w[0]), to_z = widen(w[hidden]), to_n = widen(w[2 * hidden]);
#pragma unroll
                    for (int g = 0; g < SEQUENCES; g++) {
                        sum[0][g] += to_r * state.at[g];
                        sum[1][g] += to_z * state.at[g];
                        sum[2][g] += to_n * state.at[g];
                    }
                }
            }
#pragma unroll
            for (int gate = 0; gate < 3; gate++)
#pragma unroll
                for (int g = 0; g < SEQUENCES; g++) found[gate * THREADS + threadIdx.x].at[g] = sum[gate][g];
            __syncthreads();
            for (int i = threadIdx.x; i < s.lanes * SEQUENCES; i += THREADS) {
                int g = i / s.lanes, lane = i % s.lanes, unit = base + lane, sequence = first + g;
                if (unit >= hidden) continue;
                A before = h[unit].at[g], after = before;
                if (t < length_of(lengths, sequence, batch, steps)) {
                    int64_t step = (int64_t)sequence * steps + t;
                    const TYPE* input = inputs + step * 3 * hidden + unit;
                    A* gate = gates + step * 4 * hidden + unit;
                    A r = sigmoid(widen(input[0]) + b_ih[unit] + b_hh[unit] + merge(found, s, lane, g));
                    A z = sigmoid(widen(input[hidden]) + b_ih[hidden + unit] + b_hh[hidden + unit] +
                                  merge(found + THREADS, s, lane, g));
                    A product = merge(found + 2 * THREADS, s, lane, g) + b_hh[2 * hidden + unit];
                    A n = tanh(widen(input[2 * hidden]) + b_ih[2 * hidden + unit] + r * product);
                    after = n + z * (before - n);
                    narrow(out[step * hidden + unit], after);
                    gate[0] = r;
                    gate[hidden] = z;
                    gate[2 * hidden] = n;
                    gate[3 * hidden] = product;
                }
                next[unit].at[g] = after;
            }
            __syncthreads();
        }
        Group* old = h;
        h = next;
        next = old;
    }
    clear_ended(out, hidden, lengths, first, batch, steps);
}

// d_inputs, d_products (batch, steps, 3 hidden) = the gradients of x W_ih + b_ih and h W_hh + b_hh,
// dh0 (batch, hidden) that of h0, given grad of out and gru_forward's results. w_back is w_hh
// transposed, (3 hidden, hidden).
extern "C" __global__ __launch_bounds__(THREADS, 1) void gru_backward(
    const TYPE* grad, const TYPE* out, const A* gates, const TYPE* w_back, const A* h0, const int* lengths,
    TYPE* d_inputs, TYPE* d_products, A* dh0, int batch, int steps, int hidden) {
    DYNAMIC_SHARED(Group, dh);      // what later steps want of a unit's state
    Group* dp = dh + hidden;        // d_products of the step: (3, hidden)
    Group* found = dp + 3 * hidden;  // (THREADS)
    int first = blockIdx.x * SEQUENCES, longest = longest_of(lengths, first, batch, steps);
    for (int i = threadIdx.x; i < hidden * SEQUENCES; i += THREADS) dh[i / SEQUENCES].at[i % SEQUENCES] = 0;
    __syncthreads();
    Split s = split(hidden, 3 * hidden);
    for (int t = longest - 1; t >= 0; t--) {
        for (int i = threadIdx.x; i < hidden * SEQUENCES; i += THREADS) {
            int g = i / hidden, unit = i % hidden, sequence = first + g;
            A to_r = 0, to_z = 0, to_product = 0;
            if (t < length_of(lengths, sequence, batch, steps)) {
                int64_t step = (int64_t)sequence * steps + t;
                const A* gate = gates + step * 4 * hidden + unit;
                A r = gate[0], z = gate[hidden], n = gate[2 * hidden], product = gate[3 * hidden];
                A before = 0;
                if (t > 0) before = widen(out[(step - 1) * hidden + unit]);
                else if (h0) before = h0[(int64_t)sequence * hidden + unit];
                A total = widen(grad[step * hidden + unit]) + dh[unit].at[g];
                A to_n = total * (1 - z) * (1 - n * n);
                to_product = to_n * r;
                to_r = to_product * product * (1 - r);
                to_z = total * (before - n) * z * (1 - z);
                dh[unit].at[g] = total * z;
                TYPE* input = d_inputs + step * 3 * hidden + unit;
                TYPE* recurrent = d_products + step * 3 * hidden + unit;
                narrow(input[0], to_r);
                narrow(input[hidden], to_z);
                narrow(input[2 * hidden], to_n);
                narrow(recurrent[0], to_r);
                narrow(recurrent[hidden], to_z);
                narrow(recurrent[2 * hidden], to_product);
            }
            dp[unit].at[g] = to_r;
            dp[hidden + unit].at[g] = to_z;
            dp[2 * hidden + unit].at[g] = to_product;
        }
        __syncthreads();
        for (int base = 0; base < hidden; base += s.lanes) {
            A sum[SEQUENCES] = {};
            if (base + s.lane < hidden) {
                const TYPE* w = w_back + (int64_t)s.from * hidden + base + s.lane;
#pragma unroll 8
                for (int k = s.from; k < s.to; k++, w += hidden) {
                    Group d = dp[k];
                    A weight = widen(w[0]);
#pragma unroll
                    for (int g = 0; g < SEQUENCES; g++) sum[g] += weight * d.at[g];
                }
            }
#pragma unroll
            for (int g = 0; g < SEQUENCES; g++) found[threadIdx.x].at[g] = sum[g];
            __syncthreads();
            for (int i = threadIdx.x; i < s.lanes * SEQUENCES; i += THREADS) {
                int g = i / s.lanes, lane = i % s.lanes;
                if (base + lane < hidden) dh[base + lane].at[g] += merge(found, s, lane, g);
            }
            __syncthreads();
        }
    }
    for (int i = threadIdx.x; i < hidden * SEQUENCES; i += THREADS) {
        int g = i / hidden, unit = i % hidden;
        if (first + g < batch) dh0[(int64_t)(first + g) * hidden + unit] = dh[unit].at[g];
    }
    clear_ended(d_inputs, 3 * hidden, lengths, first, batch, steps);
    clear_ended(d_products, 3 * hidden, lengths, first, batch, steps);
}
