// Vectors of float32, as GCC and Clang have them for any processor; how they are read and written; functions of them.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr long LANES = 16;
#elif defined(__AVX__)
constexpr long LANES = 8;
#else
constexpr long LANES = 4;
#endif

typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef int32_t Integers __attribute__((vector_size(LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));

// bfloat16: the upper half of a float32
struct Bfloat16 {
    uint16_t bits;
};

template <typename To, typename From>
inline To as(From value) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To result;
    std::memcpy(&result, &value, sizeof result);
    return result;
}

inline Vector all(float value) { return Vector{} + value; }

// Rounded to bfloat16, ties to even.
inline Halves halves(Vector values) {
#if defined(__AVX512BF16__)
    return as<Halves>(_mm512_cvtneps_pbh(as<__m512>(values)));
#else
    Words bits = as<Words>(values);
    Words result = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    result = values == values ? result : (Words{} + 0x7fc0);
    return __builtin_convertvector(result, Halves);
#endif
}

// bfloat16 in the lower halves of words
inline Words widened(Halves values) { return __builtin_convertvector(values, Words); }

inline Words words(const Bfloat16* from) {
    Halves values;
    std::memcpy(&values, from, sizeof values);
    return widened(values);
}

inline Vector read(const float* from) {
    Vector values;
    std::memcpy(&values, from, sizeof values);
    return values;
}
inline Vector read(const Bfloat16* from) { return as<Vector>(words(from) << 16); }

inline void write(float* to, Vector values) { std::memcpy(to, &values, sizeof values); }
inline void write(Bfloat16* to, Vector values) {
    Halves narrow = halves(values);
    std::memcpy(to, &narrow, sizeof narrow);
}

// A whole vector in memory, or the first of its numbers: what is behind them is neither read nor written, and made something
// else by `keep`.
struct Whole {
    template <typename Number>
    Vector load(const Number* from) const {
        return read(from);
    }
    template <typename Number>
    void store(Number* to, Vector values) const {
        write(to, values);
    }
    Vector keep(Vector values, float) const { return values; }
};

#if defined(__AVX512VL__) && defined(__AVX512BW__)
struct Part {
    explicit Part(long count) : mask_((1u << count) - 1) {}

    Vector load(const float* from) const { return as<Vector>(_mm512_maskz_loadu_ps(mask_, from)); }
    Vector load(const Bfloat16* from) const {
        return as<Vector>(widened(as<Halves>(_mm256_maskz_loadu_epi16(mask_, from))) << 16);
    }
    void store(float* to, Vector values) const { _mm512_mask_storeu_ps(to, mask_, as<__m512>(values)); }
    void store(Bfloat16* to, Vector values) const { _mm256_mask_storeu_epi16(to, mask_, as<__m256i>(halves(values))); }
    Vector keep(Vector values, float behind) const {
        return as<Vector>(_mm512_mask_mov_ps(_mm512_set1_ps(behind), mask_, as<__m512>(values)));
    }

  private:
    __mmask16 mask_;
};
#else
struct Part {
    explicit Part(long count) : count_(count) {}

    template <typename Number>
    Vector load(const Number* from) const {
        Number values[LANES] = {};
        std::memcpy(values, from, count_ * sizeof(Number));
        return read(values);
    }
    template <typename Number>
    void store(Number* to, Vector values) const {
        Number whole[LANES];
        write(whole, values);
        std::memcpy(to, whole, count_ * sizeof(Number));
    }
    Vector keep(Vector values, float behind) const {
        for (long lane = count_; lane < LANES; lane++) values[lane] = behind;
        return values;
    }

  private:
    long count_;
};
#endif

// `work(part, begin)` for all of `count` numbers, vector by vector.
template <typename Work>
inline void vectors(long count, const Work& work) {
    long begin = 0;
    for (; begin + LANES <= count; begin += LANES) work(Whole{}, begin);
    if (begin < count) work(Part{count - begin}, begin);
}

#if defined(__AVX512F__)
inline float sum(Vector values) { return _mm512_reduce_add_ps(as<__m512>(values)); }
inline float maximum(Vector values) { return _mm512_reduce_max_ps(as<__m512>(values)); }
#else
inline float sum(Vector values) {
    float total = 0;
    for (long lane = 0; lane < LANES; lane++) total += values[lane];
    return total;
}

inline float maximum(Vector values) {
    float most = values[0];
    for (long lane = 1; lane < LANES; lane++) most = std::max(most, values[lane]);
    return most;
}
#endif

// exp(x) to one unit in the last place; what is no number stays none. Numbers of 88 and more count as 88, and those below -87 as
// that, about 1e-38; with AVX-512 as infinite and 0.
inline Vector exponential(Vector x) {
    constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: adding it leaves no digits behind the point, and the number in the last bits
#if defined(__AVX512F__)
    constexpr float LEAST = -110.0f;
#else
    constexpr float LEAST = -87.0f;
    x = x > 88.0f ? all(88.0f) : x;
#endif
    x = x < LEAST ? all(LEAST) : x;
    Vector shifted = x * 1.44269504f + ROUND;
    Vector power = shifted - ROUND;
    Vector rest = x - power * 0.693145752f - power * 1.42860677e-6f;  // ln 2 in two parts
    Vector tail = rest * 0.00138146017f + 0.00836871704f;  // a minimax fit: 3e-9
    tail = tail * rest + 0.041668388f;
    tail = tail * rest + 0.166665206f;
    tail = tail * rest + 0.499999934f;
    Vector mantissa = tail * (rest * rest) + (rest + 1.0f);
#if defined(__AVX512F__)
    return as<Vector>(_mm512_scalef_ps(as<__m512>(mantissa), as<__m512>(power)));
#else
    return x == x ? as<Vector>(as<Words>(mantissa) + (as<Words>(shifted) << 23)) : x;  // times 2^power
#endif
}

// 1 / x to two units in the last place, for x neither very large nor small.
inline Vector inverse(Vector x) {
#if defined(__AVX512F__)
    Vector estimate = as<Vector>(_mm512_rcp14_ps(as<__m512>(x)));
    return estimate * (2.0f - x * estimate);  // Newton's step; a division takes three times as long
#else
    return 1.0f / x;
#endif
}

// The normal distribution's function, and exp(-x^2 / 2), which its density is a multiple of. The polynomial is a minimax fit of
// P in phi(-t) = exp(-t^2 / 2) P(1 / (1 + 0.28 t)): 1e-8, beside the 1e-7 of its arithmetic.
struct Normal {
    Vector below, bell;
};

inline Normal normal(Vector x) {
    Vector distance = x < 0.0f ? -x : x;
    Vector bell = exponential(distance * distance * -0.5f);
    Vector u = inverse(distance * 0.28f + 1.0f);
    Vector tail = u * -0.105821305f + 0.389927375f;
    tail = tail * u - 0.237080144f;
    tail = tail * u + 0.2689801f;
    tail = tail * u + 0.0674687211f;
    tail = tail * u + 0.116525243f;
    tail = tail * u * bell;
    return {x < 0.0f ? tail : 1.0f - tail, bell};
}

}  // namespace
