// Work shared among threads, and sums over what they share.

#pragma once

#include <vector>

namespace {

// Runs `work(thread, begin, end)` over shares of `count` that do not change from call to call: sums keep their order.
template <typename Work>
void share(long count, int threads, const Work& work) {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int thread = 0; thread < threads; thread++)
        work(thread, count * thread / threads, count * (thread + 1) / threads);
}

// Sums of each thread, in double: float32 would round every time.
class Totals {
  public:
    Totals(long columns, int threads) : columns_(columns), threads_(threads), values_(columns * threads, 0.0) {}

    double* of(int thread) { return values_.data() + thread * columns_; }

    void write(float* sums) const {
        for (long column = 0; column < columns_; column++) {
            double total = 0;
            for (int thread = 0; thread < threads_; thread++) total += values_[thread * columns_ + column];
            sums[column] = float(total);
        }
    }

  private:
    long columns_;
    int threads_;
    std::vector<double> values_;
};

}  // namespace
