// The part of CUDA C++ that our kernels use, for a C++ compiler: qualifiers, vector types, barriers,
// what a warp does together, atomic operations and mathematics.
#ifndef EMULATOR_CUDA
#define EMULATOR_CUDA
#include "machine.h"

// Of a source's kernels a library wants one: inline functions that nobody calls cost nothing.
#define __global__ inline
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// Blocks run one after another, so a static variable belongs to the one that runs. A kernel's
// library has no other variables without a value: the machine refills that part for each block.
#define __shared__ static

typedef __SIZE_TYPE__ size_t;

// ---- vector types ------------------------------------------------------------------------------

#define VECTORS(NAME, T)                                                             \
    struct __align__(2 * sizeof(T)) NAME##2 { T x, y; };                             \
    struct __align__(16) NAME##4 { T x, y, z, w; };                                  \
    inline NAME##2 make_##NAME##2(T x, T y) { return {x, y}; }                       \
    inline NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }
VECTORS(float, float)
VECTORS(int, int)
VECTORS(uint, unsigned)
#undef VECTORS
struct __align__(16) double2 { double x, y; };
inline double2 make_double2(double x, double y) { return {x, y}; }

// ---- waiting for other threads -----------------------------------------------------------------

inline void __syncthreads(EMULATOR_HERE) { machine::wait_for_block(at); }

inline void __syncwarp(unsigned mask = ~0u, EMULATOR_HERE) {
    machine::together("__syncwarp", mask, nullptr, [](void* const*, unsigned, machine::Place) {}, at);
}

inline void __threadfence() {}
inline void __threadfence_block() {}

namespace machine {

template <class T> struct Exchange {
    T value, received;
    unsigned source;
};

// Each lane gets the value of its source lane.
template <class T> T exchange(const char* what, unsigned mask, T value, unsigned source, Place at) {
    Exchange<T> mine = {value, value, source};
    together(what, mask, &mine, [](void* const* operands, unsigned mask, Place at) {
        for (unsigned lane = 0; lane < 32; lane++) {
            if (!(mask >> lane & 1)) continue;
            Exchange<T>& to = *static_cast<Exchange<T>*>(operands[lane]);
            if (!(mask >> to.source & 1))
                fail(at, "lane %u reads a value of lane %u, which takes no part (lanes %08x)", lane,
                     to.source, mask);
            to.received = static_cast<Exchange<T>*>(operands[to.source])->value;
        }
    }, at);
    return mine.received;
}

// The first lane of this one's part of the warp, `width` lanes wide.
inline int first_of_part(int width) { return lane() & ~(width - 1); }

}  // namespace machine

template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATOR_HERE) {
    unsigned from = machine::first_of_part(width) + (source & (width - 1));
    return machine::exchange("__shfl_sync", mask, value, from, at);
}
// Beyond its part a lane gets its own value.
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, EMULATOR_HERE) {
    int own = machine::lane(), from = own ^ bits;
    bool beyond = from >= machine::first_of_part(width) + width;
    return machine::exchange("__shfl_xor_sync", mask, value, beyond ? own : from, at);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, EMULATOR_HERE) {
    int own = machine::lane(), from = own + by;
    bool beyond = from >= machine::first_of_part(width) + width;
    return machine::exchange("__shfl_down_sync", mask, value, beyond ? own : from, at);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, EMULATOR_HERE) {
    int own = machine::lane(), from = own - by;
    bool beyond = from < machine::first_of_part(width);
    return machine::exchange("__shfl_up_sync", mask, value, beyond ? own : from, at);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATOR_HERE) {
    machine::Exchange<unsigned> mine = {predicate != 0, 0, 0};
    machine::together("__ballot_sync", mask, &mine, [](void* const* operands, unsigned mask,
                                                       machine::Place) {
        unsigned votes = 0;
        for (unsigned lane = 0; lane < 32; lane++)
            if (mask >> lane & 1)
                votes |= static_cast<machine::Exchange<unsigned>*>(operands[lane])->value << lane;
        for (unsigned lane = 0; lane < 32; lane++)
            if (mask >> lane & 1)
                static_cast<machine::Exchange<unsigned>*>(operands[lane])->received = votes;
    }, at);
    return mine.received;
}
inline int __any_sync(unsigned mask, int predicate, EMULATOR_HERE) {
    return __ballot_sync(mask, predicate, at) != 0;
}
inline int __all_sync(unsigned mask, int predicate, EMULATOR_HERE) {
    return __ballot_sync(mask, predicate, at) == mask;
}

// ---- atomic operations: nothing runs at the same time ---------------------------------------------

#define ATOMIC(NAME, RESULT)                                                        \
    template <class T> T NAME(T* address, typename machine::Same<T>::type value) {  \
        T old = *address;                                                           \
        *address = RESULT;                                                          \
        return old;                                                                 \
    }
namespace machine {
template <class T> struct Same { typedef T type; };  // no deduction from this argument
}
ATOMIC(atomicAdd, old + value)
ATOMIC(atomicSub, old - value)
ATOMIC(atomicMin, value < old ? value : old)
ATOMIC(atomicMax, old < value ? value : old)
ATOMIC(atomicExch, value)
ATOMIC(atomicAnd, old & value)
ATOMIC(atomicOr, old | value)
#undef ATOMIC
template <class T>
T atomicCAS(T* address, typename machine::Same<T>::type expected,
            typename machine::Same<T>::type value) {
    T old = *address;
    if (old == expected) *address = value;
    return old;
}

template <class T> T __ldg(const T* address) { return *address; }

// ---- bits --------------------------------------------------------------------------------------

#define SAME_BITS(NAME, TO, FROM)              \
    inline TO NAME(FROM x) {                   \
        TO y;                                  \
        __builtin_memcpy(&y, &x, sizeof y);    \
        return y;                              \
    }
SAME_BITS(__float_as_int, int, float)
SAME_BITS(__int_as_float, float, int)
SAME_BITS(__float_as_uint, unsigned, float)
SAME_BITS(__uint_as_float, float, unsigned)
SAME_BITS(__double_as_longlong, long long, double)
SAME_BITS(__longlong_as_double, double, long long)
#undef SAME_BITS
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline unsigned __umulhi(unsigned x, unsigned y) { return (unsigned long long)x * y >> 32; }

// ---- mathematics: each function for float and double, and with f for float ------------------------

#define FUNCTION1(NAME)                                                        \
    extern "C" double NAME(double) noexcept;                                   \
    extern "C" float NAME##f(float) noexcept;                                  \
    inline float NAME(float x) { return NAME##f(x); }
#define FUNCTION2(NAME)                                                        \
    extern "C" double NAME(double, double) noexcept;                           \
    extern "C" float NAME##f(float, float) noexcept;                           \
    inline float NAME(float x, float y) { return NAME##f(x, y); }
FUNCTION1(exp)
FUNCTION1(exp2)
FUNCTION1(expm1)
FUNCTION1(log)
FUNCTION1(log1p)
FUNCTION1(log2)
FUNCTION1(sqrt)
FUNCTION1(tanh)
FUNCTION1(sin)
FUNCTION1(cos)
FUNCTION1(fabs)
FUNCTION1(floor)
FUNCTION1(ceil)
FUNCTION1(trunc)
FUNCTION1(rint)
FUNCTION2(pow)
FUNCTION2(fmod)
FUNCTION2(fmin)
FUNCTION2(fmax)
FUNCTION2(copysign)
#undef FUNCTION1
#undef FUNCTION2
extern "C" double fma(double, double, double) noexcept;
extern "C" float fmaf(float, float, float) noexcept;
inline float fma(float x, float y, float z) { return fmaf(x, y, z); }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline float rsqrt(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
template <class T> bool isnan(T x) { return x != x; }
template <class T> bool isinf(T x) { return __builtin_isinf(x); }
template <class T> bool isfinite(T x) { return __builtin_isfinite(x); }
inline int abs(int x) { return x < 0 ? -x : x; }
inline float abs(float x) { return fabsf(x); }
inline double abs(double x) { return fabs(x); }

// Of numbers, the one that is not NaN, as on the device.
inline float min(float x, float y) { return fminf(x, y); }
inline float max(float x, float y) { return fmaxf(x, y); }
inline double min(double x, double y) { return fmin(x, y); }
inline double max(double x, double y) { return fmax(x, y); }
#define INTEGERS(T)                                      \
    inline T min(T x, T y) { return y < x ? y : x; }     \
    inline T max(T x, T y) { return x < y ? y : x; }
INTEGERS(int)
INTEGERS(unsigned)
INTEGERS(long)
INTEGERS(unsigned long)
INTEGERS(long long)
INTEGERS(unsigned long long)
#undef INTEGERS

#endif
