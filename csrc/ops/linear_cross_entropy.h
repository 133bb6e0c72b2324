// Rows of logits to their loss and gradient, in place: see eva_fast/ops/linear_cross_entropy.py.
#pragma once
#include "math.h"
#include "rows.h"

namespace EVA_ISA {

// logits [rows, codes] dense; statistics: three rows `apart` from each other, log-sum-exp, the
// target's logit, the largest. With a factor other than 0 a row becomes
// factor (softmax - one-hot).
static void linear_cross_entropy_rows(int64_t rows, int64_t codes, float* logits,
                                      const int64_t* target, float* statistics, int64_t apart,
                                      float factor, int threads) {
  constexpr int64_t block = 8 * VL;
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * codes > 20000)
  for (int64_t i = 0; i < rows; ++i) {
    float* row = logits + i * codes;
    const float wanted = row[target[i]];
    vf lanes = splat(row[0]);
    int64_t j = 0;
    for (; j + VL <= codes; j += VL) lanes = maximum(*(const vf_any*)(row + j), lanes);
    float most = lanes[0];
    for (int k = 1; k < VL; ++k) most = lanes[k] > most ? lanes[k] : most;
    for (; j < codes; ++j) most = row[j] > most ? row[j] : most;
    double total = 0.0;
    for (int64_t start = 0; start < codes; start += block) {  // short sums round little
      vf sums = {};
      auto step = [&](int64_t k, int64_t n) __attribute__((always_inline)) {
        vf e = exponential(take(F32{}, row + start + k, n) - most);
        if (factor != 0.0f) give(F32{}, row + start + k, e, n);
        if (n < VL)
          for (int64_t lane = n; lane < VL; ++lane) e[lane] = 0.0f;
        sums += e;
      };
      EVA_ROW(lesser(block, codes - start), k, step);
      total += sum(sums);
    }
    statistics[i] = (float)(most + __builtin_log(total));
    statistics[apart + i] = wanted;
    statistics[2 * apart + i] = most;
    if (factor == 0.0f) continue;
    const double share = factor / total;
    const float of_target = (float)(row[target[i]] * share - factor);
    auto scale = [&](int64_t k, int64_t n) __attribute__((always_inline)) {
      give(F32{}, row + k, take(F32{}, row + k, n) * (float)share, n);
    };
    EVA_ROW(codes, k, scale);
    row[target[i]] = of_target;
  }
}

}  // namespace EVA_ISA
