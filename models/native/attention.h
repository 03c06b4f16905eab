// Attention over blocks of queries, which keeps no matrix of weights for the backward pass, as FlashAttention does (arXiv
// 2205.14135); unlike there, all keys of a head are taken at once, since a ViT has few. Products are of `Kind` (see
// products.h), everything else is in float32.

#pragma once

#include <memory>
#include <vector>

#include "products.h"
#include "threads.h"

namespace {

constexpr long MOST_QUERIES = 12 * 6;  // of a block: its weights stay in the nearest caches
constexpr size_t LINE = 64;            // bytes of a cache line

inline long rounded_up(long value, long step) { return (value + step - 1) / step * step; }

// A head's part of a tensor [tokens, ...]: `stride` numbers from token to token. `bias` may be null.
template <typename Number>
struct Slice {
    const Number* values;
    long stride;
    const float* bias;
};

struct Shape {
    long tokens, channels;            // of one head
    long wide_tokens, wide_channels;  // in whole strips
    long queries;                     // of a block

    Shape(long tokens, long channels)
        : tokens(tokens),
          channels(channels),
          wide_tokens(rounded_up(tokens, LANES)),
          wide_channels(rounded_up(channels, LANES)) {
        long blocks = (tokens + MOST_QUERIES - 1) / MOST_QUERIES;
        queries = rounded_up((tokens + blocks - 1) / blocks, TILE_ROWS);
    }
};

// Fetches what comes a few rows later: rows of a head lie too far apart for the processor to foresee.
template <typename Number>
inline void ahead(const Number* row, long stride, long count) {
    for (long i = 0; i < count; i += LINE / sizeof(Number)) __builtin_prefetch(row + 6 * stride + i);
}

// Memory of one thread for one head after the other, in parts that begin with a cache line.
class Scratch {
  public:
    explicit Scratch(size_t bytes) : memory_(new char[bytes + LINE]) { restart(); }
    void restart() {
        next_ = memory_.get();
        next_ += (LINE - reinterpret_cast<uintptr_t>(next_) % LINE) % LINE;
    }
    template <typename Number>
    Number* take(long count) {
        Number* part = reinterpret_cast<Number*>(next_);
        next_ += rounded_up(count * sizeof(Number), LINE);
        return part;
    }

  private:
    std::unique_ptr<char[]> memory_;
    char* next_;
};

// Rows of scores are of whole vectors, and their last numbers of no meaning. What is no number is passed over: `exponentials` keeps it.
inline float largest(const float* scores, long tokens) {
    Vector most = all(-INFINITY);
    vectors(tokens, [&](auto part, long token) {
        Vector next = part.keep(read(scores + token), -INFINITY);
        most = next > most ? next : most;
    });
    return maximum(most);
}

// A row of scores to exp(factor * (score - shift)) in place, 0 behind the last; gives their sum.
inline float exponentials(float* scores, float factor, float shift, long tokens) {
    Vector total = {};
    vectors(tokens, [&](auto part, long token) {
        Vector weight = part.keep(exponential((read(scores + token) - shift) * factor), 0.0f);
        total += weight;
        write(scores + token, weight);
    });
    return sum(total);
}

template <typename Number>
inline float dot(const Number* left, const Number* right, long count) {
    Vector total = {};
    vectors(count, [&](auto part, long begin) { total += part.load(left + begin) * part.load(right + begin); });
    return sum(total);
}

// How a head's rows become what `multiply` takes. Along rows, units are neighbours as they lie; along columns they are made of
// DEPTH rows.
template <typename Kind>
struct Packing {
    using Number = typename Kind::Number;
    using Unit = typename Kind::Unit;
    static constexpr long DEPTH = Kind::DEPTH;

    Shape shape;

    static long depth_of(long count) { return (count + DEPTH - 1) / DEPTH; }
    long row_units() const { return shape.wide_channels / DEPTH; }
    long rows_size() const { return shape.tokens * row_units(); }
    long strips_size() const { return depth_of(shape.tokens) * shape.wide_channels; }
    long transposed_size() const { return shape.wide_tokens * depth_of(shape.channels); }

    // [token][wide_channels]
    void rows(Slice<Number> from, Unit* units) const {
        for (long token = 0; token < shape.tokens; token++, units += row_units()) {
            Number* to = reinterpret_cast<Number*>(units);
            const Number* row = from.values + token * from.stride;
            ahead(row, from.stride, shape.channels);
            vectors(shape.channels, [&](auto part, long channel) {
                Vector values = part.load(row + channel);
                write(to + channel, from.bias ? values + part.load(from.bias + channel) : values);
            });
        }
    }

    // [channel strip][token][LANES], from what `rows` has made
    void strips(const Unit* rows, Unit* __restrict to) const {
        for (long channel = 0; channel < shape.wide_channels; channel += LANES)
            for (long token = 0; token < shape.tokens; token += DEPTH, to += LANES)
                put(to, along_columns(rows + token * row_units(), channel, shape.tokens - token));
    }

    // [token strip][channel][LANES], from what `rows` has made
    void transposed(const Unit* __restrict rows, Unit* __restrict to) const {
        long depth = depth_of(shape.channels);
        for (long begin = 0; begin < shape.wide_tokens; begin += LANES, to += depth * LANES) {
            long count = std::min(LANES, shape.tokens - begin);
            for (long lane = 0; lane < LANES; lane++)
                for (long unit = 0; unit < depth; unit++)
                    to[unit * LANES + lane] = lane < count ? rows[(begin + lane) * row_units() + unit] : Unit{};
        }
    }

    // Matrices of weights [queries][wide_tokens], in the memory of their float32: as units along a row…
    Left<Kind> along_rows(float* weights, long queries) const {
        Unit* to = reinterpret_cast<Unit*>(weights);
        if constexpr (DEPTH > 1)
            for (long at = 0; at < queries * shape.wide_tokens; at += LANES)
                write(reinterpret_cast<Number*>(to) + at, read(weights + at));
        return {to, shape.wide_tokens / DEPTH, 1};
    }

    // …and transposed, with units of the rows of DEPTH queries. `to` may be the matrix itself.
    Left<Kind> across_rows(const float* weights, long queries, float* to) const {
        Unit* units = reinterpret_cast<Unit*>(to);
        if constexpr (DEPTH > 1)
            for (long query = 0; query < queries; query += DEPTH) {
                const float* rows = weights + query * shape.wide_tokens;
                for (long token = 0; token < shape.wide_tokens; token += LANES) {
                    Vector next = query + 1 < queries ? read(rows + shape.wide_tokens + token) : Vector{};
                    put(units + query / DEPTH * shape.wide_tokens + token,
                        widened(halves(read(rows + token))) | widened(halves(next)) << 16);
                }
            }
        return {units, 1, shape.wide_tokens};
    }

  private:
    template <typename Values>
    static void put(Unit* to, Values values) {
        std::memcpy(to, &values, sizeof values);
    }

    typename Kind::Units along_columns(const Unit* row, long column, long rows_left) const {
        const Number* first = reinterpret_cast<const Number*>(row) + column;
        if constexpr (DEPTH == 1)
            return read(first);
        else
            return words(first) | (rows_left > 1 ? words(first + shape.wide_channels) << 16 : Words{});
    }
};

enum Projection { QUERY, KEY, VALUE };

template <typename Kind>
class Attention {
  public:
    using Number = typename Kind::Number;
    using Unit = typename Kind::Unit;

    Attention(long tokens, long heads, long channels)
        : heads_(heads), shape_(tokens, channels), packing_{shape_}, factor_(1.0f / std::sqrt(float(channels))) {}

    long width() const { return heads_ * shape_.channels; }

    size_t forward_bytes() const {
        return bytes<Unit>(2, packing_.rows_size()) + bytes<Unit>(1, packing_.strips_size()) +
               bytes<Unit>(1, packing_.transposed_size()) + bytes<float>(1, shape_.queries * shape_.wide_tokens) +
               bytes<float>(1, shape_.queries * shape_.wide_channels);
    }

    void forward(Scratch& scratch, const Number* qkv, const float* bias, Number* out, float* log_sums, long image,
                 long head) const {
        const Shape& s = shape_;
        scratch.restart();
        Unit* queries = scratch.take<Unit>(packing_.rows_size());
        Unit* rows = scratch.take<Unit>(packing_.rows_size());
        Unit* values = scratch.take<Unit>(packing_.strips_size());
        Unit* keys = scratch.take<Unit>(packing_.transposed_size());
        float* scores = scratch.take<float>(s.queries * s.wide_tokens);
        float* context = scratch.take<float>(s.queries * s.wide_channels);
        packing_.rows(slice(qkv, bias, image, head, QUERY), queries);
        packing_.rows(slice(qkv, bias, image, head, KEY), rows);
        packing_.transposed(rows, keys);
        packing_.rows(slice(qkv, bias, image, head, VALUE), rows);
        packing_.strips(rows, values);
        out += image * s.tokens * width() + head * s.channels;
        log_sums += (image * heads_ + head) * s.tokens;
        for (long begin = 0; begin < s.tokens; begin += s.queries) {
            long count = std::min(s.queries, s.tokens - begin);
            times_transposed(queries, begin, count, keys, scores);
            float totals[MOST_QUERIES + TILE_ROWS];
            for (long i = 0; i < count; i++) {
                float* row = scores + i * s.wide_tokens;
                float shift = largest(row, s.tokens);
                totals[i] = exponentials(row, factor_, shift, s.tokens);
                log_sums[begin + i] = shift + std::log(totals[i]) / factor_;
            }
            times_strips(count, packing_.along_rows(scores, count), values, context);
            for (long i = 0; i < count; i++) {
                float share = 1.0f / totals[i];
                Number* to = out + (begin + i) * width();
                vectors(s.channels, [&](auto part, long channel) {
                    part.store(to + channel, part.load(context + i * s.wide_channels + channel) * share);
                });
            }
        }
    }

    size_t backward_bytes() const {
        return bytes<Unit>(3, packing_.rows_size()) + bytes<Unit>(3, packing_.strips_size()) +
               bytes<Unit>(2, packing_.transposed_size()) + bytes<float>(2, shape_.tokens * shape_.wide_channels) +
               bytes<float>(3, shape_.queries * shape_.wide_tokens) + bytes<float>(1, shape_.queries * shape_.wide_channels);
    }

    // `bias_gradient` [3 * width] is added to.
    void backward(Scratch& scratch, const Number* gradient, const Number* qkv, const float* bias, const Number* out,
                  const float* log_sums, Number* qkv_gradient, double* bias_gradient, long image, long head) const {
        const Shape& s = shape_;
        scratch.restart();
        Unit* query_rows = scratch.take<Unit>(packing_.rows_size());
        Unit* gradient_rows = scratch.take<Unit>(packing_.rows_size());
        Unit* rows = scratch.take<Unit>(packing_.rows_size());
        Unit* query_strips = scratch.take<Unit>(packing_.strips_size());
        Unit* gradient_strips = scratch.take<Unit>(packing_.strips_size());
        Unit* key_strips = scratch.take<Unit>(packing_.strips_size());
        Unit* keys = scratch.take<Unit>(packing_.transposed_size());
        Unit* values = scratch.take<Unit>(packing_.transposed_size());
        float* key_gradient = scratch.take<float>(s.tokens * s.wide_channels);
        float* value_gradient = scratch.take<float>(s.tokens * s.wide_channels);
        float* weights = scratch.take<float>(s.queries * s.wide_tokens);
        float* score_gradient = scratch.take<float>(s.queries * s.wide_tokens);
        float* across = scratch.take<float>(s.queries * s.wide_tokens);
        float* query_gradient = scratch.take<float>(s.queries * s.wide_channels);
        long start = image * s.tokens * width() + head * s.channels;
        packing_.rows(slice(qkv, bias, image, head, QUERY), query_rows);
        packing_.strips(query_rows, query_strips);
        packing_.rows(slice(qkv, bias, image, head, KEY), rows);
        packing_.strips(rows, key_strips);
        packing_.transposed(rows, keys);
        packing_.rows(slice(qkv, bias, image, head, VALUE), rows);
        packing_.transposed(rows, values);
        packing_.rows({gradient + start, width(), nullptr}, gradient_rows);
        packing_.strips(gradient_rows, gradient_strips);
        std::fill(key_gradient, key_gradient + s.tokens * s.wide_channels, 0.0f);
        std::fill(value_gradient, value_gradient + s.tokens * s.wide_channels, 0.0f);
        log_sums += (image * heads_ + head) * s.tokens;
        for (long begin = 0; begin < s.tokens; begin += s.queries) {
            long count = std::min(s.queries, s.tokens - begin);
            times_transposed(query_rows, begin, count, keys, weights);
            times_transposed(gradient_rows, begin, count, values, score_gradient);
            for (long i = 0; i < count; i++) {
                float* weight = weights + i * s.wide_tokens;
                float* of_score = score_gradient + i * s.wide_tokens;
                exponentials(weight, factor_, log_sums[begin + i], s.tokens);
                const Number* of_row = reinterpret_cast<Number*>(gradient_rows) + (begin + i) * s.wide_channels;
                const Number* out_row = out + start + (begin + i) * width();
                ahead(out_row, width(), s.channels);
                float share = dot(of_row, out_row, s.channels);
                for (long token = 0; token < s.wide_tokens; token += LANES)
                    write(of_score + token, read(weight + token) * (read(of_score + token) - share));
            }
            add_across(count, packing_.across_rows(weights, count, weights), gradient_strips, begin, value_gradient);
            float* of_scores = Kind::DEPTH > 1 ? across : score_gradient;
            add_across(count, packing_.across_rows(score_gradient, count, of_scores), query_strips, begin, key_gradient);
            times_strips(count, packing_.along_rows(score_gradient, count), key_strips, query_gradient);
            give(query_gradient, begin, count, factor_, QUERY, qkv_gradient, bias_gradient, image, head);
        }
        give(key_gradient, 0, s.tokens, factor_, KEY, qkv_gradient, bias_gradient, image, head);
        give(value_gradient, 0, s.tokens, 1.0f, VALUE, qkv_gradient, bias_gradient, image, head);
    }

  private:
    template <typename Number>
    static size_t bytes(long parts, long count) {
        return parts * rounded_up(count * sizeof(Number), LINE);
    }

    Slice<Number> slice(const Number* qkv, const float* bias, long image, long head, Projection part) const {
        long offset = part * width() + head * shape_.channels;
        return {qkv + image * shape_.tokens * 3 * width() + offset, 3 * width(), bias ? bias + offset : nullptr};
    }

    // [count, wide_tokens]: rows from `begin` on times all keys or values
    void times_transposed(const Unit* rows, long begin, long count, const Unit* right, float* to) const {
        long depth = packing_.depth_of(shape_.channels), row = packing_.row_units();
        multiply<false, Kind>(count, shape_.wide_tokens / LANES, depth, {rows + begin * row, row, 1}, {right, depth * LANES}, to);
    }

    // [count, wide_channels]: weights of all tokens times their rows
    void times_strips(long count, Left<Kind> weights, const Unit* strips, float* to) const {
        long depth = packing_.depth_of(shape_.tokens);
        multiply<false, Kind>(count, shape_.wide_channels / LANES, depth, weights, {strips, depth * LANES}, to);
    }

    // [tokens, wide_channels] += the weights that `count` queries from `begin` on have, times the queries' rows
    void add_across(long count, Left<Kind> weights, const Unit* strips, long begin, float* to) const {
        Right<Kind> right = {strips + begin / Kind::DEPTH * LANES, packing_.depth_of(shape_.tokens) * LANES};
        multiply<true, Kind>(shape_.tokens, shape_.wide_channels / LANES, packing_.depth_of(count), weights, right, to);
    }

    // Writes the rows of a part's gradient out, and adds them to its bias's. That of the keys' bias stays 0, which it is: what is
    // added to all scores of a query changes none of its weights. Added up it would be rounding errors, which Adam enlarges.
    void give(const float* rows, long begin, long count, float scale, Projection part, Number* qkv_gradient,
              double* bias_gradient, long image, long head) const {
        const Shape& s = shape_;
        long offset = part * width() + head * s.channels;
        Number* to = qkv_gradient + (image * s.tokens + begin) * 3 * width() + offset;
        std::vector<double> totals(s.channels, 0.0);
        for (long i = 0; i < count; i++, to += 3 * width(), rows += s.wide_channels) {
            ahead(to, 3 * width(), s.channels);
            vectors(s.channels, [&](auto length, long channel) {
                length.store(to + channel, length.load(rows + channel) * scale);
            });
            for (long channel = 0; channel < s.channels; channel++) totals[channel] += rows[channel];
        }
        if (part == KEY) return;
        for (long channel = 0; channel < s.channels; channel++) bias_gradient[offset + channel] += totals[channel] * scale;
    }

    long heads_;
    Shape shape_;
    Packing<Kind> packing_;
    float factor_;  // of the scores
};

// qkv [images, tokens, 3 * heads * channels], bias [3 * heads * channels] -> out [images, tokens, heads * channels] and the
// logarithms of the softmax's sums [images, heads, tokens], over the factor of the scores.
template <typename Kind, typename Number = typename Kind::Number>
void attention_forward(const Number* qkv, const float* bias, Number* out, float* log_sums, long images, long tokens, long heads,
                       long channels, int threads) {
    Attention<Kind> attention(tokens, heads, channels);
    share(images * heads, threads, [&](int, long begin, long end) {
        Scratch scratch(attention.forward_bytes());
        for (long item = begin; item < end; item++)
            attention.forward(scratch, qkv, bias, out, log_sums, item / heads, item % heads);
    });
}

// The gradients of qkv and of bias from that of out.
template <typename Kind, typename Number = typename Kind::Number>
void attention_backward(const Number* gradient, const Number* qkv, const float* bias, const Number* out, const float* log_sums,
                        Number* qkv_gradient, float* bias_gradient, long images, long tokens, long heads, long channels,
                        int threads) {
    Attention<Kind> attention(tokens, heads, channels);
    Totals totals(3 * attention.width(), threads);
    share(images * heads, threads, [&](int thread, long begin, long end) {
        Scratch scratch(attention.backward_bytes());
        for (long item = begin; item < end; item++)
            attention.backward(scratch, gradient, qkv, bias, out, log_sums, qkv_gradient, totals.of(thread), item / heads,
                               item % heads);
    });
    totals.write(bias_gradient);
}

}  // namespace
