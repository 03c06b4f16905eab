// What one encoder block needs beside the matrix products of its linear layers, in float32 on CPUs: attention and GELU, each
// with the sums that give the gradient of a bias in the same pass. Written with the vectors of GCC and Clang, which any
// processor has. Plain pointers in and out: `kernels.py` holds the shapes to account.
//
// Attention goes over blocks of queries and keeps no matrix of weights for the backward pass, as FlashAttention does (arXiv
// 2205.14135); unlike there, all keys of a head are taken at once, since a ViT has few.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr long LANES = 16, TILE_ROWS = 12;
#elif defined(__AVX__)
constexpr long LANES = 8, TILE_ROWS = 6;
#else
constexpr long LANES = 4, TILE_ROWS = 6;
#endif
constexpr long PANEL = 2 * LANES;     // columns of a tile
constexpr long FEW = 8;               // rows that are summed up in float32
constexpr size_t LINE = 16;           // floats of a cache line
constexpr long MOST_QUERIES = 12 * 6;  // of a block: its weights stay in the nearest caches

#define UNROLLED _Pragma("GCC unroll 16")  // so that a tile stays in registers

typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef int32_t Integers __attribute__((vector_size(LANES * 4)));
typedef float Unaligned __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

inline Vector read(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
inline void write(float* to, Vector values) { *reinterpret_cast<Unaligned*>(to) = values; }
inline Vector all(float value) { return Vector{} + value; }

// A whole vector in memory, or the first of its numbers.
struct Whole {
    Vector load(const float* from) const { return read(from); }
    void store(float* to, Vector values) const { write(to, values); }
};

struct Part {
    long count;

    Vector load(const float* from) const {
        float values[LANES] = {};
        std::memcpy(values, from, count * sizeof(float));
        return read(values);
    }
    void store(float* to, Vector values) const { std::memcpy(to, &values, count * sizeof(float)); }
};

// `work(part, begin)` for all of `count` numbers, vector by vector.
template <typename Work>
inline void vectors(long count, const Work& work) {
    long begin = 0;
    for (; begin + LANES <= count; begin += LANES) work(Whole{}, begin);
    if (begin < count) work(Part{count - begin}, begin);
}

inline float sum(Vector values) {
    float total = 0;
    for (long lane = 0; lane < LANES; lane++) total += values[lane];
    return total;
}

// exp(x) to one unit in the last place, for x <= 88; below -87 it stays what it is there, about 1e-38.
inline Vector exponential(Vector x) {
    constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: adding it leaves no digits behind the point
    x = x < -87.0f ? all(-87.0f) : x;
    Vector power = x * 1.44269504f + ROUND - ROUND;
    Vector rest = x - power * 0.693145752f - power * 1.42860677e-6f;  // ln 2 in two parts
    Vector tail = rest * 0.00138146017f + 0.00836871704f;  // a minimax fit: 3e-9
    tail = tail * rest + 0.041668388f;
    tail = tail * rest + 0.166665206f;
    tail = tail * rest + 0.499999934f;
    Vector mantissa = tail * (rest * rest) + (rest + 1.0f);
    Integers exponent = (__builtin_convertvector(power, Integers) + 127) << 23;
    Vector factor;
    std::memcpy(&factor, &exponent, sizeof factor);
    return mantissa * factor;
}

// The normal distribution's function, and exp(-x^2 / 2), which its density is a multiple of. The polynomial is a minimax fit of
// P in phi(-t) = exp(-t^2 / 2) P(1 / (1 + 0.28 t)): 1e-8, beside the 1e-7 of its arithmetic.
struct Normal {
    Vector below, bell;
};

inline Normal normal(Vector x) {
    Vector distance = x < 0.0f ? -x : x;
    Vector bell = exponential(distance * distance * -0.5f);
    Vector u = 1.0f / (distance * 0.28f + 1.0f);
    Vector tail = u * -0.105821305f + 0.389927375f;
    tail = tail * u - 0.237080144f;
    tail = tail * u + 0.2689801f;
    tail = tail * u + 0.0674687211f;
    tail = tail * u + 0.116525243f;
    tail = tail * u * bell;
    return {x < 0.0f ? tail : 1.0f - tail, bell};
}

// One tile: ROWS x PANEL of C = (or +=) A B, with A(i, k) = a[i * row + k * column] and B's PANEL columns one after the other.
template <int ROWS, bool ADD>
inline void tile(const float* a, long row, long column, const float* b, long depth, float* c, long width) {
    Vector left[ROWS], right[ROWS];
    UNROLLED for (int i = 0; i < ROWS; i++) {
        left[i] = ADD ? read(c + i * width) : Vector{};
        right[i] = ADD ? read(c + i * width + LANES) : Vector{};
    }
    for (long k = 0; k < depth; k++, b += PANEL, a += column) {
        Vector b_left = read(b), b_right = read(b + LANES);
        UNROLLED for (int i = 0; i < ROWS; i++) {
            float factor = a[i * row];
            left[i] += factor * b_left;
            right[i] += factor * b_right;
        }
    }
    UNROLLED for (int i = 0; i < ROWS; i++) {
        write(c + i * width, left[i]);
        write(c + i * width + LANES, right[i]);
    }
}

// The tile of the last rows, which are at most ROWS.
template <int ROWS, bool ADD>
void last_tile(long rows, const float* a, long row, long column, const float* b, long depth, float* c, long width) {
    if constexpr (ROWS > 0) {
        if (rows == ROWS)
            tile<ROWS, ADD>(a, row, column, b, depth, c, width);
        else
            last_tile<ROWS - 1, ADD>(rows, a, row, column, b, depth, c, width);
    }
}

// C [rows, panels * PANEL] = (or +=) A [rows, depth] B; panels of B lie `stride` apart.
template <bool ADD>
void multiply(long rows, long panels, const float* a, long row, long column, const float* b, long stride, long depth,
              float* c, long width) {
    for (long panel = 0; panel < panels; panel++, b += stride, c += PANEL) {
        long i = 0;
        for (; i + TILE_ROWS <= rows; i += TILE_ROWS)
            tile<TILE_ROWS, ADD>(a + i * row, row, column, b, depth, c + i * width, width);
        last_tile<TILE_ROWS - 1, ADD>(rows - i, a + i * row, row, column, b, depth, c + i * width, width);
    }
}

long rounded_up(long value, long step) { return (value + step - 1) / step * step; }

// A head's part of a tensor [tokens, ...]: `stride` floats from token to token. `bias` may be null.
struct Slice {
    const float* values;
    long stride;
    const float* bias;

    float at(long token, long channel) const {
        return values[token * stride + channel] + (bias ? bias[channel] : 0.0f);
    }
};

struct Shape {
    long tokens, channels;          // of one head
    long wide_tokens, wide_channels;  // in whole panels
    long queries;                   // of a block

    Shape(long tokens, long channels)
        : tokens(tokens),
          channels(channels),
          wide_tokens(rounded_up(tokens, PANEL)),
          wide_channels(rounded_up(channels, PANEL)) {
        long blocks = (tokens + MOST_QUERIES - 1) / MOST_QUERIES;
        queries = rounded_up((tokens + blocks - 1) / blocks, TILE_ROWS);
    }
};

// Fetches what comes a few rows later: rows of a head lie too far apart for the processor to foresee.
inline void ahead(const float* row, long stride, long count) {
    for (long i = 0; i < count; i += 16) __builtin_prefetch(row + 6 * stride + i);
}

void pack_rows(const Shape& shape, Slice from, float factor, float* __restrict to) {
    for (long token = 0; token < shape.tokens; token++, to += shape.wide_channels) {
        ahead(from.values + token * from.stride, from.stride, shape.channels);
        for (long channel = 0; channel < shape.channels; channel++) to[channel] = from.at(token, channel) * factor;
        std::fill(to + shape.channels, to + shape.wide_channels, 0.0f);
    }
}

// [channel panel][token][PANEL], from rows of `pack_rows`
void pack_panels(const Shape& shape, const float* __restrict rows, float* __restrict to) {
    for (long begin = 0; begin < shape.wide_channels; begin += PANEL)
        for (long token = 0; token < shape.tokens; token++, to += PANEL) {
            const float* from = rows + token * shape.wide_channels + begin;
            write(to, read(from));
            write(to + LANES, read(from + LANES));
        }
}

// [token panel][channel][PANEL], from rows of `pack_rows`
void pack_transposed(const Shape& shape, const float* __restrict rows, float* __restrict to) {
    for (long begin = 0; begin < shape.wide_tokens; begin += PANEL, to += shape.channels * PANEL) {
        long count = std::min(PANEL, shape.tokens - begin);
        for (long lane = 0; lane < PANEL; lane++)
            for (long channel = 0; channel < shape.channels; channel++)
                to[channel * PANEL + lane] =
                    lane < count ? rows[(begin + lane) * shape.wide_channels + channel] : 0.0f;
    }
}

// Memory of one thread for one head, in parts; the first begins with a cache line.
class Scratch {
  public:
    explicit Scratch(size_t floats) : memory_(new float[floats + LINE]), next_(memory_.get()) {
        size_t past = reinterpret_cast<uintptr_t>(next_) / sizeof(float) % LINE;
        next_ += (LINE - past) % LINE;
    }
    float* take(long floats) {
        float* part = next_;
        next_ += floats;
        return part;
    }

  private:
    std::unique_ptr<float[]> memory_;
    float* next_;
};

inline float maximum(const float* values, long count) {
    Vector most = read(values);
    for (long begin = LANES; begin < count; begin += LANES) {
        Vector next = read(values + begin);
        most = next > most ? next : most;
    }
    float result = most[0];
    for (long lane = 1; lane < LANES; lane++) result = std::max(result, most[lane]);
    return result;
}

inline float dot(const float* left, const float* right, long count) {
    Vector total = {};
    vectors(count, [&](auto part, long begin) { total += part.load(left + begin) * part.load(right + begin); });
    return sum(total);
}

// A row of scores to exp(score - shift) in place, 0 behind the last; gives their sum.
inline float exponentials(float* scores, float shift, const Shape& shape) {
    Vector total = {};
    for (long token = 0; token < shape.wide_tokens; token += LANES) {
        Vector weight = exponential(read(scores + token) - shift);
        total += weight;
        write(scores + token, weight);
    }
    float rest = 0;
    for (long token = shape.tokens; token < shape.wide_tokens; token++) {
        rest += scores[token];
        scores[token] = 0;
    }
    return sum(total) - rest;
}

enum Projection { QUERY, KEY, VALUE };

struct Attention {
    long heads;
    Shape shape;
    float factor;  // of the scores

    Attention(long tokens, long heads, long channels)
        : heads(heads), shape(tokens, channels), factor(1.0f / std::sqrt(float(channels))) {}

    long width() const { return heads * shape.channels; }

    Slice slice(const float* qkv, const float* bias, long image, long head, Projection part) const {
        long offset = part * width() + head * shape.channels;
        return {qkv + image * shape.tokens * 3 * width() + offset, 3 * width(), bias ? bias + offset : nullptr};
    }

    size_t forward_floats() const {
        const Shape& s = shape;
        return s.tokens * s.wide_channels * 3 + s.wide_tokens * s.channels + s.queries * (s.wide_tokens + s.wide_channels);
    }

    void forward(Scratch scratch, const float* qkv, const float* bias, float* out, float* log_sums, long image,
                 long head) const {
        const Shape& s = shape;
        float* queries = scratch.take(s.tokens * s.wide_channels);
        float* rows = scratch.take(s.tokens * s.wide_channels);
        float* values = scratch.take(s.tokens * s.wide_channels);
        float* keys = scratch.take(s.wide_tokens * s.channels);
        float* scores = scratch.take(s.queries * s.wide_tokens);
        float* context = scratch.take(s.queries * s.wide_channels);
        pack_rows(s, slice(qkv, bias, image, head, QUERY), factor, queries);
        pack_rows(s, slice(qkv, bias, image, head, KEY), 1.0f, rows);
        pack_transposed(s, rows, keys);
        pack_rows(s, slice(qkv, bias, image, head, VALUE), 1.0f, rows);
        pack_panels(s, rows, values);
        out += image * s.tokens * width() + head * s.channels;
        log_sums += (image * heads + head) * s.tokens;
        for (long begin = 0; begin < s.tokens; begin += s.queries) {
            long count = std::min(s.queries, s.tokens - begin);
            multiply<false>(count, s.wide_tokens / PANEL, queries + begin * s.wide_channels, s.wide_channels, 1, keys,
                            s.channels * PANEL, s.channels, scores, s.wide_tokens);
            float totals[MOST_QUERIES + TILE_ROWS];
            for (long i = 0; i < count; i++) {
                float* row = scores + i * s.wide_tokens;
                std::fill(row + s.tokens, row + s.wide_tokens, -INFINITY);
                float largest = maximum(row, s.wide_tokens);
                totals[i] = exponentials(row, largest, s);
                log_sums[begin + i] = largest + std::log(totals[i]);
            }
            multiply<false>(count, s.wide_channels / PANEL, scores, s.wide_tokens, 1, values, s.tokens * PANEL, s.tokens,
                            context, s.wide_channels);
            for (long i = 0; i < count; i++)
                for (long channel = 0; channel < s.channels; channel++)
                    out[(begin + i) * width() + channel] = context[i * s.wide_channels + channel] / totals[i];
        }
    }

    size_t backward_floats() const {
        const Shape& s = shape;
        return s.tokens * s.wide_channels * 8 + s.wide_tokens * s.channels * 2 +
               s.queries * (2 * s.wide_tokens + s.wide_channels);
    }

    // `bias_gradient` [3 * width] is added to.
    void backward(Scratch scratch, const float* gradient, const float* qkv, const float* bias, const float* out,
                  const float* log_sums, float* qkv_gradient, double* bias_gradient, long image, long head) const {
        const Shape& s = shape;
        long size = s.tokens * s.wide_channels;
        float* query_rows = scratch.take(size);
        float* query_panels = scratch.take(size);
        float* gradient_rows = scratch.take(size);
        float* gradient_panels = scratch.take(size);
        float* key_panels = scratch.take(size);
        float* rows = scratch.take(size);
        float* key_gradient = scratch.take(size);
        float* value_gradient = scratch.take(size);
        float* keys = scratch.take(s.wide_tokens * s.channels);
        float* values = scratch.take(s.wide_tokens * s.channels);
        float* weights = scratch.take(s.queries * s.wide_tokens);
        float* score_gradient = scratch.take(s.queries * s.wide_tokens);
        float* query_gradient = scratch.take(s.queries * s.wide_channels);
        long start = image * s.tokens * width() + head * s.channels;
        pack_rows(s, slice(qkv, bias, image, head, QUERY), factor, query_rows);
        pack_panels(s, query_rows, query_panels);
        pack_rows(s, slice(qkv, bias, image, head, KEY), 1.0f, rows);
        pack_panels(s, rows, key_panels);
        pack_transposed(s, rows, keys);
        pack_rows(s, slice(qkv, bias, image, head, VALUE), 1.0f, rows);
        pack_transposed(s, rows, values);
        pack_rows(s, {gradient + start, width(), nullptr}, 1.0f, gradient_rows);
        pack_panels(s, gradient_rows, gradient_panels);
        std::fill(key_gradient, key_gradient + size, 0.0f);
        std::fill(value_gradient, value_gradient + size, 0.0f);
        log_sums += (image * heads + head) * s.tokens;
        for (long begin = 0; begin < s.tokens; begin += s.queries) {
            long count = std::min(s.queries, s.tokens - begin);
            long first = begin * s.wide_channels;
            multiply<false>(count, s.wide_tokens / PANEL, query_rows + first, s.wide_channels, 1, keys, s.channels * PANEL,
                            s.channels, weights, s.wide_tokens);
            multiply<false>(count, s.wide_tokens / PANEL, gradient_rows + first, s.wide_channels, 1, values,
                            s.channels * PANEL, s.channels, score_gradient, s.wide_tokens);
            for (long i = 0; i < count; i++) {
                float* weight = weights + i * s.wide_tokens;
                float* of_score = score_gradient + i * s.wide_tokens;
                exponentials(weight, log_sums[begin + i], s);
                const float* of_row = gradient_rows + first + i * s.wide_channels;
                ahead(out + start + (begin + i) * width(), width(), s.channels);
                float share = dot(of_row, out + start + (begin + i) * width(), s.channels);
                for (long token = 0; token < s.wide_tokens; token += LANES)
                    write(of_score + token, read(weight + token) * (read(of_score + token) - share));
            }
            multiply<true>(s.tokens, s.wide_channels / PANEL, weights, 1, s.wide_tokens, gradient_panels + begin * PANEL,
                           s.tokens * PANEL, count, value_gradient, s.wide_channels);
            multiply<true>(s.tokens, s.wide_channels / PANEL, score_gradient, 1, s.wide_tokens,
                           query_panels + begin * PANEL, s.tokens * PANEL, count, key_gradient, s.wide_channels);
            multiply<false>(count, s.wide_channels / PANEL, score_gradient, s.wide_tokens, 1, key_panels,
                            s.tokens * PANEL, s.tokens, query_gradient, s.wide_channels);
            give(query_gradient, begin, count, factor, QUERY, qkv_gradient, bias_gradient, image, head);
        }
        give(key_gradient, 0, s.tokens, 1.0f, KEY, qkv_gradient, bias_gradient, image, head);
        give(value_gradient, 0, s.tokens, 1.0f, VALUE, qkv_gradient, bias_gradient, image, head);
    }

    // Writes the rows of a part's gradient out, and adds them to its bias's. That of the keys' bias stays 0, which it is: what is
    // added to all scores of a query changes none of its weights. Added up it would be rounding errors, which Adam enlarges.
    void give(const float* rows, long begin, long count, float scale, Projection part, float* qkv_gradient, double* bias_gradient,
              long image, long head) const {
        long offset = part * width() + head * shape.channels;
        float* to = qkv_gradient + (image * shape.tokens + begin) * 3 * width() + offset;
        std::vector<double> totals(shape.channels, 0.0);
        for (long i = 0; i < count; i++, to += 3 * width(), rows += shape.wide_channels) {
            ahead(to, 3 * width(), shape.channels);
            for (long channel = 0; channel < shape.channels; channel++) {
                float value = rows[channel] * scale;
                to[channel] = value;
                totals[channel] += value;
            }
        }
        if (part == KEY) return;
        for (long channel = 0; channel < shape.channels; channel++) bias_gradient[offset + channel] += totals[channel];
    }
};

// Runs `work(thread, begin, end)` over shares of `count` that do not change from call to call: sums keep their order.
template <typename Work>
void share(long count, int threads, const Work& work) {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int thread = 0; thread < threads; thread++)
        work(thread, count * thread / threads, count * (thread + 1) / threads);
}

// Adds the sums of a few rows to those of many, which float32 would round every time.
void move_into(std::vector<float>& few, double* many) {
    for (size_t column = 0; column < few.size(); column++) many[column] += few[column];
    std::fill(few.begin(), few.end(), 0.0f);
}

// Sums each thread's row of totals.
void add_up(const std::vector<double>& totals, long columns, int threads, float* sums) {
    for (long column = 0; column < columns; column++) {
        double total = 0;
        for (int thread = 0; thread < threads; thread++) total += totals[thread * columns + column];
        sums[column] = float(total);
    }
}

}  // namespace

extern "C" {

// qkv [images, tokens, 3 * heads * channels], bias [3 * heads * channels] -> out [images, tokens, heads * channels] and the
// logarithms of the softmax's sums [images, heads, tokens].
void attention_forward(const float* qkv, const float* bias, float* out, float* log_sums, long images, long tokens, long heads,
                       long channels, int threads) {
    Attention attention(tokens, heads, channels);
    share(images * heads, threads, [&](int, long begin, long end) {
        for (long item = begin; item < end; item++)
            attention.forward(Scratch(attention.forward_floats()), qkv, bias, out, log_sums, item / heads, item % heads);
    });
}

// The gradients of qkv and of bias from that of out.
void attention_backward(const float* gradient, const float* qkv, const float* bias, const float* out, const float* log_sums,
                        float* qkv_gradient, float* bias_gradient, long images, long tokens, long heads, long channels,
                        int threads) {
    Attention attention(tokens, heads, channels);
    long columns = 3 * attention.width();
    std::vector<double> totals(threads * columns, 0.0);
    share(images * heads, threads, [&](int thread, long begin, long end) {
        for (long item = begin; item < end; item++)
            attention.backward(Scratch(attention.backward_floats()), gradient, qkv, bias, out, log_sums, qkv_gradient,
                               totals.data() + thread * columns, item / heads, item % heads);
    });
    add_up(totals, columns, threads, bias_gradient);
}

// out = gelu(x + bias), all [rows, columns] but bias [columns]
void gelu_forward(const float* x, const float* bias, float* out, long rows, long columns, int threads) {
    share(rows, threads, [&](int, long begin, long end) {
        for (long row = begin; row < end; row++)
            vectors(columns, [&](auto part, long column) {
                long at = row * columns + column;
                Vector value = part.load(x + at) + part.load(bias + column);
                part.store(out + at, value * normal(value).below);
            });
    });
}

// From the gradient of out: that of x, in its place, and its sums over rows; and out once more.
void gelu_backward(float* gradient, const float* x, const float* bias, float* out, float* sums, long rows, long columns,
                   int threads) {
    constexpr float DENSITY = 0.398942280f;  // 1 / sqrt(2 pi)
    std::vector<double> totals(threads * columns, 0.0);
    share(rows, threads, [&](int thread, long begin, long end) {
        std::vector<float> few(columns, 0.0f);
        for (long row = begin; row < end; row++) {
            vectors(columns, [&](auto part, long column) {
                long at = row * columns + column;
                Vector value = part.load(x + at) + part.load(bias + column);
                Normal of = normal(value);
                Vector slope = part.load(gradient + at) * (of.below + value * of.bell * DENSITY);
                part.store(out + at, value * of.below);
                part.store(gradient + at, slope);
                part.store(&few[column], part.load(&few[column]) + slope);
            });
            if (row % FEW == FEW - 1 || row == end - 1) move_into(few, totals.data() + thread * columns);
        }
    });
    add_up(totals, columns, threads, sums);
}
}
