// Small matrix products whose operands stay in the nearest caches: of float32, or of pairs of bfloat16 summed up in float32.

#pragma once

#include "vectors.h"

namespace {

#if defined(__AVX512F__)
constexpr long TILE_ROWS = 12;
#else
constexpr long TILE_ROWS = 6;
#endif
constexpr long PANEL = 2 * LANES;  // columns of a tile

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

// One tile: ROWS x PANEL of C = (or +=) A B, with A(i, k) = a[i * row + k * column] and B's PANEL columns one after the other;
// k counts units.
template <typename Kind, int ROWS, bool ADD>
inline void tile(const typename Kind::Unit* a, long row, long column, const typename Kind::Unit* b, long depth, float* c,
                 long width) {
    Vector left[ROWS], right[ROWS];
    UNROLLED for (int i = 0; i < ROWS; i++) {
        left[i] = ADD ? read(c + i * width) : Vector{};
        right[i] = ADD ? read(c + i * width + LANES) : Vector{};
    }
    for (long k = 0; k < depth; k++, b += PANEL, a += column) {
        auto b_left = units<Kind>(b), b_right = units<Kind>(b + LANES);
        UNROLLED for (int i = 0; i < ROWS; i++) {
            auto factor = a[i * row];
            left[i] = Kind::add(left[i], factor, b_left);
            right[i] = Kind::add(right[i], factor, b_right);
        }
    }
    UNROLLED for (int i = 0; i < ROWS; i++) {
        write(c + i * width, left[i]);
        write(c + i * width + LANES, right[i]);
    }
}

// The tile of the last rows, which are at most ROWS.
template <typename Kind, int ROWS, bool ADD>
void last_tile(long rows, const typename Kind::Unit* a, long row, long column, const typename Kind::Unit* b, long depth, float* c,
               long width) {
    if constexpr (ROWS > 0) {
        if (rows == ROWS)
            tile<Kind, ROWS, ADD>(a, row, column, b, depth, c, width);
        else
            last_tile<Kind, ROWS - 1, ADD>(rows, a, row, column, b, depth, c, width);
    }
}

// Where the units of a factor lie: A(i, k) = values[i * row + k * column]
template <typename Kind>
struct Left {
    const typename Kind::Unit* values;
    long row, column;
};

// Panels of PANEL columns, `stride` units apart: [panel][k][PANEL]
template <typename Kind>
struct Right {
    const typename Kind::Unit* values;
    long stride;
};

// C [rows, panels * PANEL] = (or +=) A [rows, depth] B; rows of C are as long as its panels.
template <bool ADD, typename Kind>
void multiply(long rows, long panels, long depth, Left<Kind> a, Right<Kind> b, float* c) {
    long width = panels * PANEL;
    for (long panel = 0; panel < panels; panel++, b.values += b.stride, c += PANEL) {
        long i = 0;
        for (; i + TILE_ROWS <= rows; i += TILE_ROWS)
            tile<Kind, TILE_ROWS, ADD>(a.values + i * a.row, a.row, a.column, b.values, depth, c + i * width, width);
        last_tile<Kind, TILE_ROWS - 1, ADD>(rows - i, a.values + i * a.row, a.row, a.column, b.values, depth, c + i * width,
                                            width);
    }
}

}  // namespace
