// The work that a warp does together on tensor cores: lay the fragments of all lanes out as
// matrices, multiply, and deal the result out again. See primitives.cuh for who holds what.
#include "primitives.h"

namespace machine {
namespace {

struct Matrices {
    float a[16][16], b[16][8], c[16][8];
};

void take_c(Matrices& m, void* const* operands) {
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++)
            m.c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2] =
                static_cast<Fragments*>(operands[lane])->c[i];
}

void give_c(const Matrices& m, void* const* operands) {
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++)
            static_cast<Fragments*>(operands[lane])->c[i] =
                m.c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
}

template <int K> void multiply(Matrices& m) {
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < K; k++)
            for (int column = 0; column < 8; column++)
                m.c[row][column] += m.a[row][k] * m.b[k][column];
}

// The device reads 19 of the 32 bits.
float tf32(uint32_t bits) { return __uint_as_float(bits & 0xffffe000u); }

float low_half(uint32_t bits) { return widen(half16{(uint16_t)bits}); }
float high_half(uint32_t bits) { return widen(half16{(uint16_t)(bits >> 16)}); }

void check_rows(void* const* operands, Place at) {
    for (int lane = 0; lane < 32; lane++)
        if (reinterpret_cast<size_t>(static_cast<Rows*>(operands[lane])->row) % 16)
            fail(at, "the row of lane %d starts at no multiple of 16 bytes", lane);
}

uint16_t element(void* const* operands, int matrix, int row, int column) {
    return static_cast<const uint16_t*>(static_cast<Rows*>(operands[matrix * 8 + row])->row)[column];
}

}  // namespace

void multiply_tf32(void* const* operands, unsigned, Place) {
    Matrices m;
    take_c(m, operands);
    for (int lane = 0; lane < 32; lane++) {
        const Fragments& f = *static_cast<Fragments*>(operands[lane]);
        int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; i++) m.a[g + i % 2 * 8][t + i / 2 * 4] = tf32(f.a[i]);
        for (int i = 0; i < 2; i++) m.b[t + i * 4][g] = tf32(f.b[i]);
    }
    multiply<8>(m);
    give_c(m, operands);
}

void multiply_half(void* const* operands, unsigned, Place) {
    Matrices m;
    take_c(m, operands);
    for (int lane = 0; lane < 32; lane++) {
        const Fragments& f = *static_cast<Fragments*>(operands[lane]);
        int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; i++) {
            float* pair = &m.a[g + i % 2 * 8][2 * t + i / 2 * 8];
            pair[0] = low_half(f.a[i]);
            pair[1] = high_half(f.a[i]);
        }
        for (int i = 0; i < 2; i++) {
            m.b[2 * t + i * 8][g] = low_half(f.b[i]);
            m.b[2 * t + i * 8 + 1][g] = high_half(f.b[i]);
        }
    }
    multiply<16>(m);
    give_c(m, operands);
}

void gather_matrices(void* const* operands, unsigned, Place at) {
    check_rows(operands, at);
    for (int lane = 0; lane < 32; lane++)
        for (int m = 0; m < 4; m++)
            static_cast<Rows*>(operands[lane])->r[m] =
                element(operands, m, lane / 4, lane % 4 * 2) |
                (uint32_t)element(operands, m, lane / 4, lane % 4 * 2 + 1) << 16;
}

void gather_transposed(void* const* operands, unsigned, Place at) {
    check_rows(operands, at);
    for (int lane = 0; lane < 32; lane++)
        for (int m = 0; m < 4; m++)
            static_cast<Rows*>(operands[lane])->r[m] =
                element(operands, m, lane % 4 * 2, lane / 4) |
                (uint32_t)element(operands, m, lane % 4 * 2 + 1, lane / 4) << 16;
}

}  // namespace machine
