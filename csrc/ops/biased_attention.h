// Attention with a bias of the scores, one for all images, and its gradient: see
// eva_fast/ops/biased_attention.py. The loops of a head are those of packed_attention.h.
#pragma once
#include "packed_attention.h"

namespace EVA_ISA {

// What is added to the scaled products: bias [H, queries, keys], and for window b mask[b % windows],
// [queries, keys], or null.
struct ScoreBias {
  const float *bias, *mask;
  int64_t windows;
};

// row = scale row + bias + mask of query i.
static inline void add_bias(const AttentionSizes& s, const ScoreBias& added, int64_t b, int64_t h,
                            int64_t i, float scale, float* row) {
  const float* bias = added.bias + (h * s.queries + i) * s.keys;
  if (added.mask) {
    const float* mask = added.mask + (b % added.windows * s.queries + i) * s.keys;
    auto add = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
      vf x = take(F32{}, row + j, n) * scale + take(F32{}, bias + j, n);
      give(F32{}, row + j, x + take(F32{}, mask + j, n), n);
    };
    EVA_ROW(s.keys, j, add);
  } else {
    auto add = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
      give(F32{}, row + j, take(F32{}, row + j, n) * scale + take(F32{}, bias + j, n), n);
    };
    EVA_ROW(s.keys, j, add);
  }
}

static void biased_attention(int64_t batch, int64_t heads, int64_t queries, int64_t keys,
                             int64_t width, const Heads* q, const Heads* k, const Heads* v,
                             const float* bias, const float* mask, int64_t windows,
                             const Heads* out, float* lse, float scale, int threads) {
  const AttentionSizes sizes = {batch, heads, queries, keys, width};
  const AttentionTensors tensors = {q, k, v, out, lse};
  const ScoreBias added = {bias, mask, windows};
#pragma omp parallel num_threads(threads) if (sizes.large())
  {
    float* scratch = thread_scratch(forward_floats(sizes));
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < batch * heads; ++item) {
      const int64_t b = item / heads, h = item % heads;
      attend_head(sizes, tensors, b, h, 1.0f, scratch,
                  [&](int64_t i, float* row) { add_bias(sizes, added, b, h, i, scale, row); });
    }
  }
}

// partials: [groups, H, queries, keys]; group g sums dS over its images, one after another. The
// groups are cut by the sizes alone, so that the sums are the same for any number of threads.
static void biased_attention_backward(int64_t batch, int64_t heads, int64_t queries, int64_t keys,
                                      int64_t width, const Heads* dout, const Heads* q,
                                      const Heads* k, const Heads* v, const float* bias,
                                      const float* mask, int64_t windows, float* lse,
                                      const Heads* dq, const Heads* dk, const Heads* dv,
                                      float* partials, int64_t groups, float* dbias,
                                      const Heads* out, float scale, int threads) {
  const AttentionSizes sizes = {batch, heads, queries, keys, width};
  const AttentionTensors tensors = {q, k, v, out, lse};
  const AttentionGradients gradients = {dout, dq, dk, dv};
  const ScoreBias added = {bias, mask, windows};
#pragma omp parallel num_threads(threads) if (sizes.large())
  {
    float* scratch = thread_scratch(backward_floats(sizes));
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < groups * heads; ++item) {
      const int64_t group = item / heads, h = item % heads, first = group * batch / groups;
      for (int64_t b = first; b < (group + 1) * batch / groups; ++b) {
        auto keep = [&](int64_t i, float* ds) {  // adds dS to the group's sum, leaves scale dS
          float* sums = partials + ((group * heads + h) * queries + i) * keys;
          auto add = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
            const vf x = take(F32{}, ds + j, n);
            give(F32{}, sums + j, b == first ? x : x + take(F32{}, sums + j, n), n);
            give(F32{}, ds + j, x * scale, n);
          };
          EVA_ROW(keys, j, add);
        };
        attend_head_backward(
            sizes, tensors, gradients, b, h, 1.0f, scratch,
            [&](int64_t i, float* row) { add_bias(sizes, added, b, h, i, scale, row); }, keep);
      }
    }
  }
  if (groups > 1) add_partials(partials, groups, heads * queries * keys, dbias, threads);
}

}  // namespace EVA_ISA
