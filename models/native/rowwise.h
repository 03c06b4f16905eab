// What goes over rows: GELU with the bias before it, and layer norm. Numbers are float32 or bfloat16 in memory, float32 here.

#pragma once

#include <vector>

#include "threads.h"
#include "vectors.h"

namespace {

constexpr long FEW = 8;  // rows that are summed up in float32

// Sums over rows, one number a column: a few rows in float32, all of them in double.
class ColumnSums {
  public:
    ColumnSums(long columns, double* many) : few_(columns, 0.0f), many_(many) {}

    template <typename Length>
    void add(Length part, long column, Vector values) {
        part.store(&few_[column], part.load(&few_[column]) + values);
    }
    void end_row() {
        if (++rows_ % FEW == 0) flush();
    }
    void flush() {
        for (size_t column = 0; column < few_.size(); column++) many_[column] += few_[column];
        std::fill(few_.begin(), few_.end(), 0.0f);
    }

  private:
    std::vector<float> few_;
    double* many_;
    long rows_ = 0;
};

// out = gelu(x + bias), all [rows, columns] but bias [columns]
template <typename Number>
void gelu_forward(const Number* x, const float* bias, Number* out, long rows, long columns, int threads) {
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
template <typename Number>
void gelu_backward(Number* gradient, const Number* x, const float* bias, Number* out, float* sums, long rows, long columns,
                   int threads) {
    constexpr float DENSITY = 0.398942280f;  // 1 / sqrt(2 pi)
    Totals totals(columns, threads);
    share(rows, threads, [&](int thread, long begin, long end) {
        ColumnSums own(columns, totals.of(thread));
        for (long row = begin; row < end; row++) {
            vectors(columns, [&](auto part, long column) {
                long at = row * columns + column;
                Vector value = part.load(x + at) + part.load(bias + column);
                Normal of = normal(value);
                Vector slope = part.load(gradient + at) * (of.below + value * of.bell * DENSITY);
                part.store(out + at, value * of.below);
                part.store(gradient + at, slope);
                own.add(part, column, slope);
            });
            own.end_row();
        }
        own.flush();
    });
    totals.write(sums);
}

// out = (x - mean) / sqrt(variance + eps) * weight + bias, row by row, x and out [rows, columns]; mean and the square root's inverse
// go to `moments` [rows, 2].
template <typename Number>
void norm_forward(const float* x, const float* weight, const float* bias, Number* out, float* moments, float eps, long rows,
                  long columns, int threads) {
    share(rows, threads, [&](int, long begin, long end) {
        for (long row = begin; row < end; row++) {
            const float* from = x + row * columns;
            Number* to = out + row * columns;
            Vector total = {}, squares = {};
            vectors(columns, [&](auto part, long column) { total += part.load(from + column); });
            float mean = sum(total) / columns;
            vectors(columns, [&](auto part, long column) {
                Vector distance = part.keep(part.load(from + column) - mean, 0.0f);
                squares += distance * distance;
            });
            float inverse = 1.0f / std::sqrt(sum(squares) / columns + eps);
            vectors(columns, [&](auto part, long column) {
                Vector normed = (part.load(from + column) - mean) * inverse;
                part.store(to + column, normed * part.load(weight + column) + part.load(bias + column));
            });
            moments[2 * row] = mean;
            moments[2 * row + 1] = inverse;
        }
    });
}

// From the gradients of out and of x where it passes by (`skip`): that of x, of weight and of bias.
template <typename Number>
void norm_backward(const Number* gradient, const float* skip, const float* x, const float* weight, const float* moments,
                   float* of_x, float* of_weight, float* of_bias, long rows, long columns, int threads) {
    Totals weight_totals(columns, threads), bias_totals(columns, threads);
    share(rows, threads, [&](int thread, long begin, long end) {
        ColumnSums weight_sums(columns, weight_totals.of(thread)), bias_sums(columns, bias_totals.of(thread));
        for (long row = begin; row < end; row++) {
            long start = row * columns;
            float mean = moments[2 * row], inverse = moments[2 * row + 1];
            Vector total = {}, along = {};
            vectors(columns, [&](auto part, long column) {
                Vector of_out = part.load(gradient + start + column);
                Vector normed = (part.load(x + start + column) - mean) * inverse;
                weight_sums.add(part, column, of_out * normed);
                bias_sums.add(part, column, of_out);
                Vector scaled = of_out * part.load(weight + column);
                total += scaled;
                along += scaled * normed;
            });
            float shift = sum(total) / columns, slope = sum(along) / columns;
            vectors(columns, [&](auto part, long column) {
                Vector normed = (part.load(x + start + column) - mean) * inverse;
                Vector scaled = part.load(gradient + start + column) * part.load(weight + column);
                Vector own = (scaled - shift - normed * slope) * inverse;
                part.store(of_x + start + column, part.load(skip + start + column) + own);
            });
            weight_sums.end_row();
            bias_sums.end_row();
        }
        weight_sums.flush();
        bias_sums.flush();
    });
    weight_totals.write(of_weight);
    bias_totals.write(of_bias);
}

}  // namespace
