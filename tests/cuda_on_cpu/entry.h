// How Python calls a kernel and learns its parameters' types: EMULATOR_ENTRY(name) stands after the
// kernel's source.
#ifndef EMULATOR_ENTRY
#include "primitives.h"

namespace entry {

// kind: i signed, u unsigned, b bool, f floating point, * anything (only behind a pointer).
struct Parameter {
    char kind;
    unsigned char bytes, pointer, constant;
};

template <class T> struct Number;
#define NUMBER(T, KIND) \
    template <> struct Number<T> { static constexpr char kind = KIND, bytes = sizeof(T); };
NUMBER(bool, 'b')
NUMBER(signed char, 'i')
NUMBER(short, 'i')
NUMBER(int, 'i')
NUMBER(long, 'i')
NUMBER(long long, 'i')
NUMBER(unsigned char, 'u')
NUMBER(unsigned short, 'u')
NUMBER(unsigned, 'u')
NUMBER(unsigned long, 'u')
NUMBER(unsigned long long, 'u')
NUMBER(half16, 'f')
NUMBER(float, 'f')
NUMBER(double, 'f')
#undef NUMBER

// Behind a pointer stands a number, or something made of numbers that is not looked into.
template <class T, class = void> struct Element { static constexpr char kind = '*', bytes = 1; };
template <class T> struct Element<T, decltype(void(Number<T>::kind))> : Number<T> {};
template <> struct Element<float2> : Number<float> {};
template <> struct Element<float4> : Number<float> {};
template <> struct Element<double2> : Number<double> {};
template <class T> struct Element<T*> : Number<unsigned long long> {};  // a table of addresses

template <class T> struct Describe {
    static constexpr Parameter value = {Number<T>::kind, Number<T>::bytes, 0, 0};
};
template <class T> struct Describe<T*> {
    static constexpr Parameter value = {Element<T>::kind, Element<T>::bytes, 1, 0};
};
template <class T> struct Describe<const T*> {
    static constexpr Parameter value = {Element<T>::kind, Element<T>::bytes, 1, 1};
};

template <unsigned... I> struct Indices {};
template <unsigned N, unsigned... I> struct Below : Below<N - 1, N - 1, I...> {};
template <unsigned... I> struct Below<0, I...> { typedef Indices<I...> type; };

template <class... P> struct Signature {
    static constexpr unsigned count = sizeof...(P);
    static constexpr Parameter parameters[] = {Describe<P>::value..., {0, 0, 0, 0}};

    template <unsigned... I> static void call(void (*kernel)(P...), void** values, Indices<I...>) {
        kernel(*static_cast<P*>(values[I])...);
    }
    static void call(void (*kernel)(P...), void** values) {
        call(kernel, values, typename Below<sizeof...(P)>::type());
    }
};
template <class... P> Signature<P...> signature(void (*)(P...)) { return {}; }

}  // namespace entry

// Where the linker put variables without a value: these are the kernel's static shared memory.
extern "C" __attribute__((visibility("hidden"))) char __bss_start[], _end[];

#define EMULATOR_EXPORTED extern "C" __attribute__((visibility("default")))
#define EMULATOR_ENTRY(kernel)                                                             \
    EMULATOR_EXPORTED void emulator_call(void** values) {                                  \
        decltype(entry::signature(&kernel))::call(&kernel, values);                        \
    }                                                                                      \
    EMULATOR_EXPORTED unsigned emulator_parameters(const entry::Parameter** parameters) {  \
        typedef decltype(entry::signature(&kernel)) Its;                                   \
        *parameters = Its::parameters;                                                     \
        return Its::count;                                                                 \
    }                                                                                      \
    EMULATOR_EXPORTED size_t emulator_static_shared(void** start) {                        \
        *start = __bss_start;                                                              \
        return _end - __bss_start;                                                         \
    }

#endif
