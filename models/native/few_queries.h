// Attention of a few queries, as of the class token in the last block: one pass over all heads' keys and values, row by row, as they
// lie. Numbers are float32 or bfloat16 in memory, float32 here.

#pragma once

#include <vector>

#include "attention.h"

namespace {

// queries [images, count, heads * channels], keys_values [images, tokens, 2 * heads * channels] -> out as queries, and the
// softmax's weights [images, count, heads, tokens].
template <typename Number>
void few_queries_forward(const Number* queries, const Number* keys_values, Number* out, float* weights, long images, long count,
                         long tokens, long heads, long channels, int threads) {
    long width = heads * channels, wide_tokens = rounded_up(tokens, LANES);
    float factor = 1.0f / std::sqrt(float(channels));
    share(images, threads, [&](int, long begin, long end) {
        std::vector<float> scores(heads * wide_tokens), context(width);
        for (long row = begin * count; row < end * count; row++) {
            const Number* keys = keys_values + row / count * tokens * 2 * width;
            for (long token = 0; token < tokens; token++)
                for (long head = 0; head < heads; head++) {
                    const Number* key = keys + token * 2 * width + head * channels;
                    scores[head * wide_tokens + token] = dot(queries + row * width + head * channels, key, channels);
                }
            for (long head = 0; head < heads; head++) {
                float* of_head = scores.data() + head * wide_tokens;
                float share = 1.0f / exponentials(of_head, factor, largest(of_head, tokens), tokens);
                for (long token = 0; token < tokens; token++)
                    weights[(row * heads + head) * tokens + token] = of_head[token] *= share;
            }
            std::fill(context.begin(), context.end(), 0.0f);
            for (long token = 0; token < tokens; token++)
                for (long head = 0; head < heads; head++) {
                    const Number* value = keys + (token * 2 + 1) * width + head * channels;
                    float* to = context.data() + head * channels;
                    float weight = scores[head * wide_tokens + token];
                    vectors(channels, [&](auto part, long channel) {
                        part.store(to + channel, part.load(to + channel) + part.load(value + channel) * weight);
                    });
                }
            vectors(width, [&](auto part, long channel) { part.store(out + row * width + channel, part.load(&context[channel])); });
        }
    });
}

// The gradients of queries and of keys_values from that of out.
template <typename Number>
void few_queries_backward(const Number* gradient, const Number* queries, const Number* keys_values, const float* weights,
                          Number* of_queries, Number* of_keys_values, long images, long count, long tokens, long heads,
                          long channels, int threads) {
    long width = heads * channels;
    float factor = 1.0f / std::sqrt(float(channels));
    share(images, threads, [&](int, long begin, long end) {
        std::vector<float> of_scores(count * heads * tokens), sums(count * width);
        for (long image = begin; image < end; image++) {
            const Number* keys = keys_values + image * tokens * 2 * width;
            const float* of_image = weights + image * count * heads * tokens;
            const Number* own = queries + image * count * width;
            const Number* given = gradient + image * count * width;
            for (long token = 0; token < tokens; token++)
                for (long row = 0; row < count * heads; row++) {
                    const Number* value = keys + (token * 2 + 1) * width + row % heads * channels;
                    of_scores[row * tokens + token] = dot(given + row * channels, value, channels);
                }
            for (long row = 0; row < count * heads; row++) {
                const float* weight = of_image + row * tokens;
                float* of_row = of_scores.data() + row * tokens;
                float share = 0;
                for (long token = 0; token < tokens; token++) share += weight[token] * of_row[token];
                for (long token = 0; token < tokens; token++) of_row[token] = weight[token] * (of_row[token] - share) * factor;
            }
            std::fill(sums.begin(), sums.end(), 0.0f);
            for (long token = 0; token < tokens; token++)
                for (long head = 0; head < heads; head++) {
                    long at = token * 2 * width + head * channels;
                    Number* to = of_keys_values + image * tokens * 2 * width + at;
                    vectors(channels, [&](auto part, long channel) {
                        Vector key = part.load(keys + at + channel), of_key = {}, of_value = {};
                        for (long row = head; row < count * heads; row += heads) {
                            long place = row * channels + channel;
                            of_key += part.load(own + place) * of_scores[row * tokens + token];
                            of_value += part.load(given + place) * of_image[row * tokens + token];
                            part.store(&sums[place], part.load(&sums[place]) + key * of_scores[row * tokens + token]);
                        }
                        part.store(to + channel, of_key);
                        part.store(to + width + channel, of_value);
                    });
                }
            Number* to = of_queries + image * count * width;
            vectors(count * width, [&](auto part, long place) { part.store(to + place, part.load(&sums[place])); });
        }
    });
}

}  // namespace
