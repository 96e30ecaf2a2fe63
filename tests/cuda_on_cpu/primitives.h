// The functions of tensorlite/kernels/cuda/src/primitives.cuh in plain C++. The comments there say
// what each does; here stands only how.
#ifndef TENSORLITE_PRIMITIVES
#define TENSORLITE_PRIMITIVES
#include "cuda.h"

typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;

#define DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(machine::dynamic_shared)

// ---- numbers ---------------------------------------------------------------------------------

struct half16 {
    uint16_t bits;
};

inline float widen(half16 x) {
    // Fraction and exponent moved to float's places; the product mends the exponent's bias, also of
    // numbers without a leading one. Infinity and NaN get float's largest exponent.
    uint32_t magnitude = (x.bits & 0x7fffu) << 13;
    uint32_t y = __float_as_uint(__uint_as_float(magnitude) * __uint_as_float(0x77800000u));
    if (magnitude >= 0x0f800000u) y = magnitude | 0x7f800000u;
    return __uint_as_float(y | (x.bits & 0x8000u) << 16);
}
inline float widen(float x) { return x; }
inline double widen(double x) { return x; }

inline void narrow(half16& y, float x) {
    uint32_t sign = __float_as_uint(x) >> 16 & 0x8000u, magnitude = __float_as_uint(x) & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
        y.bits = 0x7fff;  // the device's only NaN
    else if (magnitude >= 0x477ff000u)
        y.bits = (uint16_t)(sign | 0x7c00u);  // 65520 and more: infinite
    else if (magnitude < 0x38800000u)
        // Below 2^-14 a half is a multiple of 2^-24, the last place of 0.5: this sum rounds to it.
        y.bits = (uint16_t)(sign | (__float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000u));
    else
        // The exponent's bias changed, and 13 bits fewer: to the nearest, ties to even.
        y.bits = (uint16_t)(sign | (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13);
}
inline void narrow(float& y, float x) { y = x; }
inline void narrow(double& y, double x) { y = x; }

template <class T> struct Accumulator { typedef T type; };
template <> struct Accumulator<half16> { typedef float type; };

inline uint32_t to_tf32(float x) {
    uint32_t bits = __float_as_uint(x);
    if ((bits & 0x7f800000u) == 0x7f800000u) return bits & 0x7fffffu ? 0x7fffffffu : bits;
    return (bits + 0x1000u) & 0xffffe000u;
}

// ---- asynchronous copies -------------------------------------------------------------------------
// The destination is filled with ones at once and gets what it should only when its group is waited
// for: reading it too early gives NaN.

inline void copy_async16(void* to, const void* from, bool wanted, EMULATOR_HERE) {
    machine::copy_start(to, from, 16, wanted, at);
}
inline void copy_async4(void* to, const void* from, bool wanted, EMULATOR_HERE) {
    machine::copy_start(to, from, 4, wanted, at);
}
inline void copy_commit() { machine::copy_commit(); }
template <int groups> void copy_wait() { machine::copy_wait(groups); }

// ---- tensor cores --------------------------------------------------------------------------------

namespace machine {
struct Fragments {
    float* c;
    const uint32_t *a, *b;
};
struct Rows {
    uint32_t* r;
    const void* row;
};
void multiply_tf32(void* const* operands, unsigned mask, Place at);
void multiply_half(void* const* operands, unsigned mask, Place at);
void gather_matrices(void* const* operands, unsigned mask, Place at);
void gather_transposed(void* const* operands, unsigned mask, Place at);
}  // namespace machine

inline void mma_tf32(float c[4], const uint32_t a[4], const uint32_t b[2], EMULATOR_HERE) {
    machine::Fragments mine = {c, a, b};
    machine::together("mma_tf32", ~0u, &mine, machine::multiply_tf32, at);
}
inline void mma_half(float c[4], const uint32_t a[4], const uint32_t b[2], EMULATOR_HERE) {
    machine::Fragments mine = {c, a, b};
    machine::together("mma_half", ~0u, &mine, machine::multiply_half, at);
}
inline void load_matrices(uint32_t r[4], const void* row, EMULATOR_HERE) {
    machine::Rows mine = {r, row};
    machine::together("load_matrices", ~0u, &mine, machine::gather_matrices, at);
}
inline void load_transposed(uint32_t r[4], const void* row, EMULATOR_HERE) {
    machine::Rows mine = {r, row};
    machine::together("load_transposed", ~0u, &mine, machine::gather_transposed, at);
}

#endif
