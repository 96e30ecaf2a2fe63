// The machine: runs the blocks of a launch one after another, each CUDA thread as a fiber.
//
// A fiber is a stack and saved registers. It runs until it waits for other threads (a barrier or
// something a warp does together) or returns, then the scheduler picks another. Nothing runs at the
// same time, so a kernel without races gives the same result in every order, and the order (of
// blocks, of warps and of lanes) is ours to choose: forward, reverse or shuffled. What a kernel reads before another thread wrote it is NaN
// (all bits of fresh shared memory are ones) or differs between orders.
//
// An error, or a fault caught as a signal, leaves the fiber for good and ends the launch; the next
// launch starts with fresh fibers.
#include "machine.h"

#include <dlfcn.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <vector>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace machine {
namespace {

// ---- fibers ----------------------------------------------------------------------------------

#if defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)
// ucontext asks the kernel for the signal mask at each switch; this is a hundred times faster.
// Only the registers that a function must preserve are saved, on the stack that is left.
typedef void* Context;
extern "C" void emulator_exchange(Context* from, Context to);
asm(R"(
    .text
    .type emulator_exchange, @function
emulator_exchange:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
)");
void exchange(Context& from, Context& to) { emulator_exchange(&from, to); }
void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
    // As if `entry` had been called: its address to return to, six registers below, and above it
    // the alignment that a called function expects.
    void** top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + bytes) & ~15ull);
    top -= 8;
    memset(top, 0, 8 * sizeof(void*));
    top[6] = reinterpret_cast<void*>(entry);
    context = top;
}
#else
typedef ucontext_t Context;
void exchange(Context& from, Context& to) { swapcontext(&from, &to); }
void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = bytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
}
#endif

struct Copy {
    void* to;
    const void* from;
    unsigned bytes;
    bool wanted;
};

struct Thread {
    Context context;
    Place at;  // where it waits
    // What it does together with other lanes of its warp.
    const char* what;
    unsigned mask;
    Work work;
    void* operands;
    std::vector<Copy> copies;    // under way
    std::vector<size_t> groups;  // where in `copies` each group that was closed ends
};

// Lanes by what they do: each is in exactly one of these sets.
struct Warp {
    unsigned ready, at_barrier, together, returned;
};

const unsigned WARP = 32, MOST_THREADS = 1024;
const size_t PAGE = sysconf(_SC_PAGESIZE);
const size_t STACK = 16 * PAGE;
const size_t MOST_SHARED = 256 << 10;  // more than any device has, whole pages

Thread threads[MOST_THREADS];
Warp warps[MOST_THREADS / WARP];
char* stacks;              // the lowest page of each is inaccessible
unsigned char* shared_end;  // of dynamic shared memory; an inaccessible page follows

Context scheduler;
unsigned current;     // the running thread
bool in_thread;       // whether a fiber runs, not the scheduler
bool failed;
char message[512];
void* fault_address;  // the instruction that faulted, to find its line

void (*kernel)(void**);
void** arguments;

void leave() {
    in_thread = false;
    exchange(threads[current].context, scheduler);
}

void thread_body() {
    for (;;) {  // once for each block
        kernel(arguments);
        threads[current].copies.clear();
        threads[current].groups.clear();
        Warp& warp = warps[current / WARP];
        unsigned bit = 1u << current % WARP;
        warp.ready &= ~bit;
        warp.returned |= bit;
        leave();
    }
}

void resume(unsigned thread) {
    current = thread;
    threadIdx.x = thread;
    in_thread = true;
    exchange(scheduler, threads[thread].context);
}

// ---- errors ----------------------------------------------------------------------------------

void report(unsigned thread, Place at, const char* format, va_list values) {
    size_t used = vsnprintf(message, sizeof message, format, values);
    used = used < sizeof message ? used : sizeof message - 1;
    const char* name = at.file ? strrchr(at.file, '/') : nullptr;
    if (at.file)
        used += snprintf(message + used, sizeof message - used, ", %s:%d",
                         name ? name + 1 : at.file, at.line);
    if (used < sizeof message)
        snprintf(message + used, sizeof message - used, ", block (%u, %u, %u), thread %u",
                 blockIdx.x, blockIdx.y, blockIdx.z, thread);
    failed = true;
}

// For the scheduler, of a thread that waits.
void fail_waiting(unsigned thread, const char* format, ...) {
    va_list values;
    va_start(values, format);
    report(thread, threads[thread].at, format, values);
    va_end(values);
}

const int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
struct sigaction actions_before[4];
stack_t stack_before;

void on_signal(int number, siginfo_t* info, void* context) {
    if (!in_thread) {  // not a kernel's fault: let it come again, to who was there before us
        for (int i = 0; i < 4; i++) sigaction(SIGNALS[i], &actions_before[i], nullptr);
        return;
    }
#if defined(__x86_64__)
    fault_address = reinterpret_cast<void*>(
        static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP]);
#elif defined(__aarch64__)
    fault_address = reinterpret_cast<void*>(static_cast<ucontext_t*>(context)->uc_mcontext.pc);
#endif
    Place nowhere = {nullptr, 0};
    const char* stack = stacks + current * STACK;
    const char* touched = static_cast<const char*>(info->si_addr);
    if (number == SIGFPE)
        fail(nowhere, "integer division by zero");
    if (number == SIGILL)
        fail(nowhere, "ran into code that cannot be reached");
    if (touched >= stack && touched < stack + PAGE)
        fail(nowhere, "more than %zu KB of local variables", STACK >> 10);
    if (touched >= reinterpret_cast<char*>(shared_end) &&
        touched < reinterpret_cast<char*>(shared_end) + PAGE)
        fail(nowhere, "access beyond dynamic shared memory");
    if (reinterpret_cast<uintptr_t>(touched) < 64 * 1024)
        fail(nowhere, "access through a null pointer");
    fail(nowhere, "access outside all arrays, at %p", info->si_addr);
}

void catch_signals() {
    static char stack[64 << 10];
    stack_t ours = {};
    ours.ss_sp = stack;
    ours.ss_size = sizeof stack;
    sigaltstack(&ours, &stack_before);
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    // The handler does not return but switches to the scheduler, so the signal must stay open.
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < 4; i++) sigaction(SIGNALS[i], &action, &actions_before[i]);
}

void give_signals_back() {
    for (int i = 0; i < 4; i++) sigaction(SIGNALS[i], &actions_before[i], nullptr);
    sigaltstack(&stack_before, nullptr);
}

// ---- the scheduler -----------------------------------------------------------------------------

enum Schedule { FORWARD, REVERSE, SHUFFLED };

uint64_t random_state;
unsigned random_below(unsigned bound) {  // xorshift64
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return static_cast<unsigned>(random_state >> 32) % bound;
}

uint64_t divisor(uint64_t a, uint64_t b) { return b ? divisor(b, a % b) : a; }  // the greatest

// Run the lanes of a warp, again and again, until all wait for something outside it. Shuffled, it
// may be left earlier, for another warp.
void run_warp(unsigned warp, Schedule schedule) {
    Warp& w = warps[warp];
    unsigned rounds = schedule == SHUFFLED ? 1 + random_below(32) : ~0u;
    for (; w.ready && rounds; rounds--) {
        unsigned turn = schedule == SHUFFLED ? random_below(WARP) : 0;
        unsigned stride = schedule == SHUFFLED ? 2 * random_below(WARP / 2) + 1 : 1;
        unsigned now = w.ready;
        for (unsigned i = 0; i < WARP; i++) {
            unsigned lane = schedule == REVERSE ? WARP - 1 - i : (turn + i * stride) % WARP;
            if (!(now >> lane & 1)) continue;
            resume(warp * WARP + lane);
            if (failed) return;
        }
    }
}

// Why a thread that takes part in something with its warp waits for ever.
void explain_warp(unsigned thread) {
    const Thread& t = threads[thread];
    const Warp& w = warps[thread / WARP];
    for (unsigned lane = 0; lane < WARP; lane++) {
        if (!(t.mask >> lane & 1)) continue;
        const Thread& other = threads[thread / WARP * WARP + lane];
        if (w.returned >> lane & 1)
            return fail_waiting(thread, "%s waits for lane %u, which has returned", t.what, lane);
        if (w.at_barrier >> lane & 1)
            return fail_waiting(thread, "%s waits for lane %u, which is at __syncthreads of line %d",
                                t.what, lane, other.at.line);
        if (other.mask != t.mask || other.work != t.work || other.at.line != t.at.line)
            return fail_waiting(thread, "%s of lanes %08x waits for lane %u, which is at %s of "
                                "lanes %08x, line %d", t.what, t.mask, lane, other.what, other.mask,
                                other.at.line);
    }
    fail_waiting(thread, "%s of lanes %08x waits for ever", t.what, t.mask);
}

// All threads wait or have returned: open the barrier if all are at the same one.
void open_barrier(unsigned count) {
    const Thread* first = nullptr;
    for (unsigned i = 0; i < count; i++) {
        if (warps[i / WARP].together >> i % WARP & 1) return explain_warp(i);
        if (!first && warps[i / WARP].at_barrier >> i % WARP & 1) first = &threads[i];
    }
    for (unsigned i = 0; i < count; i++) {
        if (warps[i / WARP].returned >> i % WARP & 1)
            return fail_waiting(first - threads, "__syncthreads waits for thread %u, which has "
                                "returned", i);
        if (threads[i].at.line != first->at.line || threads[i].at.file != first->at.file)
            return fail_waiting(first - threads, "__syncthreads waits for thread %u, which is at "
                                "another one, of line %d", i, threads[i].at.line);
    }
    for (unsigned w = 0; w * WARP < count; w++) {
        warps[w].ready = warps[w].at_barrier;
        warps[w].at_barrier = 0;
    }
}

void run_block(unsigned count, Schedule schedule) {
    unsigned many = (count + WARP - 1) / WARP, order[MOST_THREADS / WARP];
    for (unsigned w = 0; w < many; w++) {
        unsigned lanes = count - w * WARP;
        warps[w] = {lanes < WARP ? (1u << lanes) - 1 : ~0u, 0, 0, 0};
        order[w] = schedule == REVERSE ? many - 1 - w : w;
    }
    for (;;) {
        if (schedule == SHUFFLED)
            for (unsigned w = many; w > 1; w--) {
                unsigned other = random_below(w), kept = order[w - 1];
                order[w - 1] = order[other];
                order[other] = kept;
            }
        bool ready = false, waiting = false;
        for (unsigned w = 0; w < many; w++) {
            run_warp(order[w], schedule);
            if (failed) return;
        }
        for (unsigned w = 0; w < many; w++) {
            ready = ready || warps[w].ready;
            waiting = waiting || warps[w].at_barrier || warps[w].together;
        }
        if (ready) continue;
        if (!waiting) return;
        open_barrier(count);
        if (failed) return;
    }
}

// The lowest page of each stack, and the page after dynamic shared memory, are inaccessible.
bool reserve() {
    if (stacks) return true;
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    size_t below = MOST_THREADS * STACK + MOST_SHARED, bytes = below + PAGE;
    void* space = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (space == MAP_FAILED) return false;
    stacks = static_cast<char*>(space);
    for (unsigned i = 0; i < MOST_THREADS; i++) mprotect(stacks + i * STACK, PAGE, PROT_NONE);
    shared_end = reinterpret_cast<unsigned char*>(stacks) + below;
    mprotect(shared_end, PAGE, PROT_NONE);
    return true;
}

}  // namespace

// ---- what kernels call -------------------------------------------------------------------------

unsigned char* dynamic_shared;

unsigned lane() { return current % WARP; }

void fail(Place at, const char* format, ...) {
    va_list values;
    va_start(values, format);
    report(current, at, format, values);
    va_end(values);
    for (;;) leave();
}

void wait_for_block(Place at) {
    Warp& warp = warps[current / WARP];
    unsigned bit = 1u << lane();
    threads[current].at = at;
    warp.ready &= ~bit;
    warp.at_barrier |= bit;
    leave();
}

void together(const char* what, unsigned mask, void* operands, Work work, Place at) {
    Thread& thread = threads[current];
    Warp& warp = warps[current / WARP];
    unsigned bit = 1u << lane(), exist = warp.ready | warp.at_barrier | warp.together | warp.returned;
    if (!(mask & bit)) fail(at, "%s of lanes %08x called by lane %u", what, mask, lane());
    if (mask & ~exist) fail(at, "%s of lanes %08x, but the warp has %08x", what, mask, exist);
    thread.at = at;
    thread.what = what;
    thread.mask = mask;
    thread.work = work;
    thread.operands = operands;
    warp.ready &= ~bit;
    warp.together |= bit;
    if ((warp.together & mask) == mask) {
        Thread* lanes = threads + current / WARP * WARP;
        void* all[WARP] = {};
        for (unsigned i = 0; i < WARP; i++) {
            if (!(mask >> i & 1)) continue;
            if (lanes[i].mask != mask || lanes[i].work != work || lanes[i].at.line != at.line)
                fail(at, "%s of lanes %08x, but lane %u is at %s of lanes %08x, line %d", what, mask,
                     i, lanes[i].what, lanes[i].mask, lanes[i].at.line);
            all[i] = lanes[i].operands;
        }
        work(all, mask, at);
        warp.together &= ~mask;
        warp.ready |= mask;
    }
    leave();
}

void copy_start(void* to, const void* from, unsigned bytes, bool wanted, Place at) {
    if (reinterpret_cast<uintptr_t>(to) % bytes)
        fail(at, "asynchronous copy to an address that is no multiple of %u", bytes);
    if (reinterpret_cast<uintptr_t>(from) % bytes)
        fail(at, "asynchronous copy from an address that is no multiple of %u", bytes);
    if (wanted) {  // a bad address faults here, not when we wait
        const volatile char* bad = static_cast<const char*>(from);
        (void)*bad;
    }
    memset(to, 0xff, bytes);
    threads[current].copies.push_back({to, from, bytes, wanted});
}

void copy_commit() { threads[current].groups.push_back(threads[current].copies.size()); }

void copy_wait(unsigned groups) {
    Thread& thread = threads[current];
    if (thread.groups.size() <= groups) return;
    size_t finished = thread.groups.size() - groups, end = thread.groups[finished - 1];
    for (size_t i = 0; i < end; i++) {
        const Copy& copy = thread.copies[i];
        if (copy.wanted)
            memcpy(copy.to, copy.from, copy.bytes);
        else
            memset(copy.to, 0, copy.bytes);
    }
    thread.copies.erase(thread.copies.begin(), thread.copies.begin() + end);
    thread.groups.erase(thread.groups.begin(), thread.groups.begin() + finished);
    for (size_t& group : thread.groups) group -= end;
}

}  // namespace machine

// ---- what the compiler's own checks call (-fsanitize) ----------------------------------------------

namespace {
struct Source {
    const char* file;
    uint32_t line, column;
};

struct Mismatch {
    Source at;
    void* type;
    unsigned char log_alignment, kind;
};

machine::Place place(const Source& at) { return {at.file, static_cast<int>(at.line)}; }
}  // namespace

extern "C" void __ubsan_handle_out_of_bounds_abort(Source* at, intptr_t index) {
    machine::fail(place(*at), "index %ld is outside its array", static_cast<long>(index));
}

extern "C" void __ubsan_handle_type_mismatch_v1_abort(Mismatch* data, uintptr_t pointer) {
    if (!pointer) machine::fail(place(data->at), "access through a null pointer");
    machine::fail(place(data->at), "address %p is no multiple of %u",
                  reinterpret_cast<void*>(pointer), 1u << data->log_alignment);
}

extern "C" void __ubsan_handle_shift_out_of_bounds_abort(Source* at, uintptr_t, uintptr_t by) {
    machine::fail(place(*at), "shifted by %ld bits", static_cast<long>(by));
}

#define OVERFLOW(what)                                                        \
    extern "C" void __ubsan_handle_##what##_overflow_abort(Source* at) {      \
        machine::fail(place(*at), "integer overflow");                        \
    }
OVERFLOW(add)
OVERFLOW(sub)
OVERFLOW(mul)
OVERFLOW(negate)

// ---- what Python calls ---------------------------------------------------------------------------

// Run a kernel. Returns whether it went well; if not, emulator_message says what went wrong.
extern "C" int emulator_run(const unsigned* grid, unsigned count, size_t dynamic_bytes, int schedule,
                            void (*kernel)(void**), void** arguments, void* static_shared,
                            size_t static_bytes) {
    using namespace machine;
    message[0] = 0;
    fault_address = nullptr;
    if (!reserve()) {
        snprintf(message, sizeof message, "no memory for the threads' stacks");
        return 0;
    }
    failed = false;
    machine::kernel = kernel;
    machine::arguments = arguments;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {count, 1, 1};
    threadIdx = {0, 0, 0};
    random_state = 0x9e3779b97f4a7c15ull;
    dynamic_shared = shared_end - (dynamic_bytes + 15) / 16 * 16;
    for (unsigned i = 0; i < count; i++) {
        threads[i].copies.clear();
        threads[i].groups.clear();
        // Stacks start at different places of a page, else all would share a few cache lines.
        prepare(threads[i].context, stacks + i * STACK + PAGE, STACK - PAGE - i % 32 * 192,
                thread_body);
    }
    // Shuffled, the blocks come in strides that meet each of them once.
    uint64_t blocks = static_cast<uint64_t>(grid[0]) * grid[1] * grid[2], stride = 1;
    if (schedule == SHUFFLED)
        for (stride = blocks * 5 / 8 + 1; divisor(stride, blocks) > 1;) stride++;
    catch_signals();
    for (uint64_t i = 0; i < blocks && !failed; i++) {
        uint64_t block = schedule == REVERSE ? blocks - 1 - i : i * stride % blocks;
        blockIdx = {static_cast<unsigned>(block % grid[0]),
                    static_cast<unsigned>(block / grid[0] % grid[1]),
                    static_cast<unsigned>(block / grid[0] / grid[1])};
        memset(static_shared, 0xff, static_bytes);
        memset(dynamic_shared, 0xff, shared_end - dynamic_shared);
        run_block(count, static_cast<Schedule>(schedule));
    }
    give_signals_back();
    return !failed;
}

extern "C" const char* emulator_message() { return machine::message; }

// The file that holds the instruction that faulted, and its offset there; null if there was none.
extern "C" const char* emulator_fault(size_t* offset) {
    Dl_info info;
    if (!machine::fault_address || !dladdr(machine::fault_address, &info)) return nullptr;
    *offset = static_cast<char*>(machine::fault_address) - static_cast<char*>(info.dli_fbase);
    return info.dli_fname;
}
