// Small matrix products whose operands stay in the nearest caches: of float32, or of pairs of bfloat16 summed up in float32.

#pragma once

#include "vectors.h"

namespace {

#if defined(__AVX512F__)
constexpr long TILE_ROWS = 12;
#else
constexpr long TILE_ROWS = 6;
#endif
#define UNROLLED _Pragma("GCC unroll 16")  // so that a tile stays in registers

// What a product takes at a time from a row of A and a column of B: a unit, of DEPTH numbers.
struct Singles {
    using Number = float;
    using Unit = float;
    using Units = Vector;
    static constexpr long DEPTH = 1;

    static Vector add(Vector total, Unit left, Units right) { return total + left * right; }
};

struct Pairs {
    using Number = Bfloat16;
    using Unit = uint32_t;  // the first number in the lower half
    using Units = Words;
    static constexpr long DEPTH = 2;

    static Vector add(Vector total, Unit left, Units right) {
#if defined(__AVX512BF16__)
        return as<Vector>(_mm512_dpbf16_ps(as<__m512>(total), as<__m512bh>(Words{} + left), as<__m512bh>(right)));
#else
        total += as<float>(left << 16) * as<Vector>(right << 16);
        return total + as<float>(left & 0xffff0000u) * as<Vector>(right & 0xffff0000u);
#endif
    }
};

template <typename Kind>
inline typename Kind::Units units(const typename Kind::Unit* from) {
    typename Kind::Units result;
    std::memcpy(&result, from, sizeof result);
    return result;
}

// Where the units of a factor lie: A(i, k) = values[i * row + k * column]
template <typename Kind>
struct Left {
    const typename Kind::Unit* values;
    long row, column;

    Left from(long i) const { return {values + i * row, row, column}; }
};

// Strips of LANES columns, `stride` units apart: [strip][k][LANES]
template <typename Kind>
struct Right {
    const typename Kind::Unit* values;
    long stride;
};

// One tile: ROWS x (STRIPS * LANES) of C = (or +=) A B; k counts units.
template <int ROWS, int STRIPS, bool ADD, typename Kind>
inline void tile(Left<Kind> a, Right<Kind> b, long depth, float* c, long width) {
    Vector sums[ROWS][STRIPS];
    UNROLLED for (int i = 0; i < ROWS; i++)
        UNROLLED for (int j = 0; j < STRIPS; j++) sums[i][j] = ADD ? read(c + i * width + j * LANES) : Vector{};
    for (long k = 0; k < depth; k++, b.values += LANES, a.values += a.column) {
        typename Kind::Units columns[STRIPS];
        UNROLLED for (int j = 0; j < STRIPS; j++) columns[j] = units<Kind>(b.values + j * b.stride);
        UNROLLED for (int i = 0; i < ROWS; i++) {
            auto factor = a.values[i * a.row];
            UNROLLED for (int j = 0; j < STRIPS; j++) sums[i][j] = Kind::add(sums[i][j], factor, columns[j]);
        }
    }
    UNROLLED for (int i = 0; i < ROWS; i++)
        UNROLLED for (int j = 0; j < STRIPS; j++) write(c + i * width + j * LANES, sums[i][j]);
}

// The tile of the last rows, which are at most ROWS.
template <int ROWS, int STRIPS, bool ADD, typename Kind>
void last_tile(long rows, Left<Kind> a, Right<Kind> b, long depth, float* c, long width) {
    if constexpr (ROWS > 0) {
        if (rows == ROWS)
            tile<ROWS, STRIPS, ADD>(a, b, depth, c, width);
        else
            last_tile<ROWS - 1, STRIPS, ADD>(rows, a, b, depth, c, width);
    }
}

template <int STRIPS, bool ADD, typename Kind>
void multiply_strips(long rows, long depth, Left<Kind> a, Right<Kind> b, float* c, long width) {
    long i = 0;
    for (; i + TILE_ROWS <= rows; i += TILE_ROWS) tile<TILE_ROWS, STRIPS, ADD>(a.from(i), b, depth, c + i * width, width);
    last_tile<TILE_ROWS - 1, STRIPS, ADD>(rows - i, a.from(i), b, depth, c + i * width, width);
}

// C [rows, strips * LANES] = (or +=) A [rows, depth] B; rows of C are as long as its strips.
template <bool ADD, typename Kind>
void multiply(long rows, long strips, long depth, Left<Kind> a, Right<Kind> b, float* c) {
    long width = strips * LANES, strip = 0;
    for (; strip + 2 <= strips; strip += 2)
        multiply_strips<2, ADD>(rows, depth, a, {b.values + strip * b.stride, b.stride}, c + strip * LANES, width);
    if (strip < strips)
        multiply_strips<1, ADD>(rows, depth, a, {b.values + strip * b.stride, b.stride}, c + strip * LANES, width);
}

}  // namespace
