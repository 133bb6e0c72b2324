// AdamW over a list of tensors in one pass: see eva_fast/ops/adamw.py.
#pragma once
#include "math.h"
#include "rows.h"

namespace EVA_ISA {

struct AdamTensor {  // mirrored in eva_fast/ops/native/adamw.py
  int64_t size;
  float *param, *exp_avg, *exp_avg_sq;
  const void* grad;
  void* copy;  // null: none
  const float* step;
  int32_t grad_type, copy_type;
  double weight_decay;
};

template <class G>
static void adamw_block(const AdamTensor& a, int64_t start, int64_t count, double lr, double beta1,
                        double beta2, double eps, float grad_scale) {
  const double step = (double)*a.step;
  const float decay = (float)(1.0 - lr * a.weight_decay);
  const float size = (float)(-lr / (1.0 - __builtin_pow(beta1, step)));
  const float root2 = (float)__builtin_sqrt(1.0 - __builtin_pow(beta2, step));
  const float keep1 = (float)(1.0 - beta1), keep2 = (float)beta2, add2 = (float)(1.0 - beta2);
  const float epsilon = (float)eps;
  float *p = a.param + start, *m = a.exp_avg + start, *v = a.exp_avg_sq + start;
  const auto* g = (const typename G::type*)a.grad + start;
  auto update = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
    vf d = take(G{}, g + j, n) * grad_scale;
    vf first = take(F32{}, m + j, n), second = take(F32{}, v + j, n);
    first += keep1 * (d - first);
    second = keep2 * second + add2 * d * d;
    vf value = take(F32{}, p + j, n) * decay;
    value += size * (first / (root(second) / root2 + epsilon));
    give(F32{}, m + j, first, n);
    give(F32{}, v + j, second, n);
    give(F32{}, p + j, value, n);
    if (a.copy)
      EVA_BY_TYPE(a.copy_type, C, give(C{}, (C::type*)a.copy + start + j, value, n));
  };
  EVA_ROW(count, j, update);
}

static void adamw(const AdamTensor* tensors, int64_t count, const float* lr, double beta1,
                  double beta2, double eps, const float* grad_scale, int threads) {
  const float factor = grad_scale ? *grad_scale : 1.0f;
  if (!(factor - factor == 0.0f)) return;  // NaN or infinite: the step is skipped
  const int64_t block = 1 << 15;
#pragma omp parallel num_threads(threads)
  for (int64_t i = 0; i < count; ++i) {
    const AdamTensor& a = tensors[i];
#pragma omp for schedule(static) nowait
    for (int64_t start = 0; start < a.size; start += block) {
      const int64_t n = lesser(block, a.size - start);
      EVA_BY_TYPE(a.grad_type, G,
                  adamw_block<G>(a, start, n, (double)*lr, beta1, beta2, eps, factor));
    }
  }
}

}  // namespace EVA_ISA
