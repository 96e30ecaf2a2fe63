// What a kernel compiled for the CPU needs of the machine that runs it: its indices, the places
// where it waits for other threads, and a way to report an error. machine.cpp is that machine.
//
// No system header is included here or in cuda.h and primitives.h: kernels see only what NVRTC
// would show them, and one compiles in a fraction of a second.
#ifndef EMULATOR_MACHINE
#define EMULATOR_MACHINE

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace machine {

// A line of a source, taken by default arguments where a kernel calls us.
struct Place {
    const char* file;
    int line;
};
#define EMULATOR_HERE machine::Place at = {__builtin_FILE(), __builtin_LINE()}

// The block's dynamic shared memory; right after it an inaccessible page.
extern unsigned char* dynamic_shared;

// The running thread's place in its warp.
unsigned lane();

// End the launch with an error of this thread.
[[noreturn]] void fail(Place at, const char* format, ...);

// Wait until all threads of the block are here.
void wait_for_block(Place at);

// Something that the lanes of `mask` do together: each leaves the address of its operands, which it
// keeps while it waits; the last to come does the work for all. `work` gets the operands by lane,
// only those in the mask are set.
typedef void (*Work)(void* const operands[32], unsigned mask, Place at);
void together(const char* what, unsigned mask, void* operands, Work work, Place at);

// Asynchronous copies to shared memory, see primitives.h.
void copy_start(void* to, const void* from, unsigned bytes, bool wanted, Place at);
void copy_commit();
void copy_wait(unsigned groups);

}  // namespace machine
#endif
