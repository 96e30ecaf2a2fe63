// What the kernels use of the machine beyond CUDA C++: 16-bit numbers, asynchronous copies, and the
// tensor cores. All inline assembly of this project is here, each instruction in a small function,
// so that the tests can replace this file by plain C++ and run every kernel on a CPU
// (tests/cuda_on_cpu/primitives.h defines the same functions).
//
// Kernels are compiled without any other header.
#ifndef TENSORLITE_PRIMITIVES
#define TENSORLITE_PRIMITIVES

typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;

// The block's dynamic shared memory as an array of T. Once in a kernel.
#define DYNAMIC_SHARED(T, name)                                   \
    extern __shared__ __align__(16) unsigned char dynamic_shared_[]; \
    T* name = reinterpret_cast<T*>(dynamic_shared_)

// ---- numbers ---------------------------------------------------------------------------------

// An IEEE 16-bit number as it lies in memory. Arithmetic is done in float.
struct half16 {
    uint16_t bits;
};

__device__ __forceinline__ float widen(half16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }

// Rounded to the nearest half, ties to even; beyond 65504 it is infinite.
__device__ __forceinline__ void narrow(half16& y, float x) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
}
__device__ __forceinline__ void narrow(float& y, float x) { y = x; }
__device__ __forceinline__ void narrow(double& y, double x) { y = x; }

// What sums of T are formed in.
template <class T> struct Accumulator { typedef T type; };
template <> struct Accumulator<half16> { typedef float type; };

// The bits of x rounded to TF32 (10 bits of fraction, ties away from zero).
__device__ __forceinline__ uint32_t to_tf32(float x) {
    uint32_t y;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return y;
}

// ---- asynchronous copies (sm_80) -----------------------------------------------------------------

__device__ __forceinline__ uint32_t shared_address(const void* p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}

// Start copying 16 bytes to shared memory, both addresses multiples of 16; zeros unless `wanted`
// (`from` is not read then).
__device__ __forceinline__ void copy_async16(void* to, const void* from, bool wanted) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(wanted ? 16 : 0)
                 : "memory");
}

// The same of 4 bytes, both addresses multiples of 4.
__device__ __forceinline__ void copy_async4(void* to, const void* from, bool wanted) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(wanted ? 4 : 0)
                 : "memory");
}

// Close the group of the copies that this thread has started since the last one.
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait until at most `groups` of this thread's groups are still under way.
template <int groups> __device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
}

// ---- tensor cores (sm_80) ------------------------------------------------------------------------
// A warp multiplies a 16 x k matrix by a k x 8 one and adds to a 16 x 8 one, each thread holding a
// few elements. With g = lane / 4 and t = lane % 4:
//   c[i]     is C[g + 8 (i / 2)][2 t + i % 2]
//   TF32, k = 8:   a[i] is A[g + 8 (i % 2)][t + 4 (i / 2)],  b[i] is B[t + 4 i][g]
//   half, k = 16:  a[i] holds A[g + 8 (i % 2)][2 t + 8 (i / 2)] and the element right of it,
//                  b[i] holds B[2 t + 8 i][g] and the element below it, the first in the low bits.

__device__ __forceinline__ void mma_tf32(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void mma_half(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8 x 8 matrices of 16-bit elements from shared memory. Lane l gives the address of row l % 8
// of matrix l / 8 (16 bytes, aligned); r[m] holds row lane / 4 of matrix m, elements 2 (lane % 4)
// and the next.
__device__ __forceinline__ void load_matrices(uint32_t r[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same, each matrix transposed: r[m] holds elements [2 (lane % 4)][lane / 4] and the one below.
__device__ __forceinline__ void load_transposed(uint32_t r[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

#endif
