// What one encoder block needs beside the matrix products of its linear layers, on CPUs, each with the sums that give the
// gradient of a bias in the same pass; in float32, and in bfloat16 with sums in float32. Plain pointers in and out: `kernels.py` holds the
// shapes to account.

#include "attention.h"
#include "few_queries.h"
#include "rowwise.h"

#define KERNELS(NAME, KIND)                                                                                                      \
    void attention_forward_##NAME(const KIND::Number* qkv, const float* bias, KIND::Number* out, float* log_sums, long images,   \
                                  long tokens, long heads, long channels, int threads) {                                         \
        attention_forward<KIND>(qkv, bias, out, log_sums, images, tokens, heads, channels, threads);                             \
    }                                                                                                                            \
    void attention_backward_##NAME(const KIND::Number* gradient, const KIND::Number* qkv, const float* bias,                     \
                                   const KIND::Number* out, const float* log_sums, KIND::Number* of_qkv, float* of_bias,         \
                                   long images, long tokens, long heads, long channels, int threads) {                           \
        attention_backward<KIND>(gradient, qkv, bias, out, log_sums, of_qkv, of_bias, images, tokens, heads, channels, threads); \
    }                                                                                                                            \
    void few_queries_forward_##NAME(const KIND::Number* queries, const KIND::Number* keys_values, KIND::Number* out,             \
                                    float* weights, long images, long count, long tokens, long heads, long channels,             \
                                    int threads) {                                                                               \
        few_queries_forward(queries, keys_values, out, weights, images, count, tokens, heads, channels, threads);                \
    }                                                                                                                            \
    void few_queries_backward_##NAME(const KIND::Number* gradient, const KIND::Number* queries,                                  \
                                     const KIND::Number* keys_values, const float* weights, KIND::Number* of_queries,            \
                                     KIND::Number* of_keys_values, long images, long count, long tokens, long heads,             \
                                     long channels, int threads) {                                                               \
        few_queries_backward(gradient, queries, keys_values, weights, of_queries, of_keys_values, images, count, tokens, heads,  \
                             channels, threads);                                                                                 \
    }                                                                                                                            \
    void gelu_forward_##NAME(const KIND::Number* x, const float* bias, KIND::Number* out, long rows, long columns,               \
                             int threads) {                                                                                      \
        gelu_forward(x, bias, out, rows, columns, threads);                                                                      \
    }                                                                                                                            \
    void gelu_backward_##NAME(KIND::Number* gradient, const KIND::Number* x, const float* bias, KIND::Number* out,               \
                              float* of_bias, long rows, long columns, int threads) {                                            \
        gelu_backward(gradient, x, bias, out, of_bias, rows, columns, threads);                                                  \
    }                                                                                                                            \
    void norm_forward_##NAME(const float* x, const float* weight, const float* bias, KIND::Number* out, float* moments,          \
                             float eps, long rows, long columns, int threads) {                                                  \
        norm_forward(x, weight, bias, out, moments, eps, rows, columns, threads);                                                \
    }                                                                                                                            \
    void norm_backward_##NAME(const KIND::Number* gradient, const float* skip, const float* x, const float* weight,              \
                              const float* moments, float* of_x, float* of_weight, float* of_bias, long rows, long columns,      \
                              int threads) {                                                                                     \
        norm_backward(gradient, skip, x, weight, moments, of_x, of_weight, of_bias, rows, columns, threads);                     \
    }

extern "C" {
KERNELS(float32, Singles)
KERNELS(bfloat16, Pairs)
}
