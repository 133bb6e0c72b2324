// Attention of one head at a time, forward and backward: see eva_fast/ops/packed_attention.py. Others
// that only change the scores (biased_attention.h) run the same loops.
//
// A ViT's sequence is short: all scores of some hundred queries fit the L2 cache, so a task takes a
// head and a block of queries, keeps whole rows of scores and needs no running maximum. The
// backward pass forms the probabilities again from the log-sum-exp, and the output with them where
// it is wanted for a weight gradient, so that the forward need not keep it:
//   P = exp(scale q k^T - lse),  out = P v,  dP = dout v^T,  delta = sum_j P dP (= dout . out)
//   dS = scale P (dP - delta),   dq = dS k,  dk = dS^T q,    dv = P^T dout
#pragma once
#include "gemm.h"
#include "math.h"
#include "rows.h"

namespace EVA_ISA {

// Element (b, t, h, j) at data[b * batch + t * token + h * head + j]. Mirrored in
// eva_fast/ops/native/packed_attention.py.
struct Heads {
  float* data;
  int64_t batch, token, head;
  float* at(int64_t b, int64_t h) const { return data + b * batch + h * head; }
};

constexpr int64_t SCORES = 1 << 17;  // floats of one block of scores: half of a usual L2 cache

static inline int64_t query_block(int64_t queries, int64_t keys) {
  int64_t block = SCORES / (keys > 0 ? keys : 1) / MR * MR;
  block = block < MR ? MR : block;
  return lesser(queries, block);
}

// Sizes of one call.
struct AttentionSizes {
  int64_t batch, heads, queries, keys, width;
  bool large() const { return batch * heads * queries * keys > 20000; }
};

// out and q: [B, queries, H, d]; k, v: [B, keys, H, d]; lse: [B, H, queries].
struct AttentionTensors {
  const Heads *q, *k, *v, *out;
  float* lse;
};

// What the backward has beside; it fills dq, dk, dv, and out where out->data is not null.
struct AttentionGradients {
  const Heads *dout, *dq, *dk, *dv;
};

static inline int64_t forward_floats(const AttentionSizes& s) {
  const int64_t block = query_block(s.queries, s.keys);
  return block * s.keys + block + VL + multiply_floats(block, s.keys, s.width) +
         multiply_floats(block, s.width, s.keys);
}
static inline int64_t backward_floats(const AttentionSizes& s) {
  const int64_t block = query_block(s.queries, s.keys);
  return 2 * block * s.keys + 2 * VL + multiply_floats(block, s.keys, s.width) +
         multiply_floats(block, s.width, s.keys) + multiply_floats(s.keys, s.width, block);
}

// Head h of image b. scores: forward_floats(s) of scratch. before(i, row) may change the products of
// query i with all keys, before they are scaled.
template <class Before>
static void attend_head(const AttentionSizes& s, const AttentionTensors& t, int64_t b, int64_t h,
                        float scale, float* scores, Before before) {
  const int64_t block = query_block(s.queries, s.keys), keys = s.keys;
  float* weight = scores + block * keys + VL;  // 1 / sum of each row
  float* space = weight + block;
  for (int64_t start = 0; start < s.queries; start += block) {
    const int64_t rows = lesser(block, s.queries - start);
    multiply(rows, keys, s.width, t.q->at(b, h) + start * t.q->token, t.q->token, 1,
             t.k->at(b, h), 1, t.k->token, scores, keys, false, space);
    for (int64_t i = 0; i < rows; ++i) {
      float* row = scores + i * keys;
      before(start + i, row);
      vf peak = splat(-3.4e38f);
      auto largest = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
        vf x = take(F32{}, row + j, n);
        for (int64_t e = n; e < VL; ++e) x[e] = -3.4e38f;
        peak = maximum(peak, x);
      };
      EVA_ROW(keys, j, largest);
      float top = peak[0];
      for (int e = 1; e < VL; ++e) top = peak[e] > top ? peak[e] : top;
      vf sums = {};
      auto weigh = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
        vf p = exponential((take(F32{}, row + j, n) - top) * scale);
        for (int64_t e = n; e < VL; ++e) p[e] = 0.0f;
        give(F32{}, row + j, p, n);
        sums += p;
      };
      EVA_ROW(keys, j, weigh);
      const float total = sum(sums);
      weight[i] = 1.0f / total;
      t.lse[(b * s.heads + h) * s.queries + start + i] = top * scale + __builtin_logf(total);
    }
    float* target = t.out->at(b, h) + start * t.out->token;
    multiply(rows, s.width, keys, scores, keys, 1, t.v->at(b, h), t.v->token, 1, target,
             t.out->token, false, space);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < s.width; ++j) target[i * t.out->token + j] *= weight[i];
  }
}

// The gradients of a head. p: backward_floats(s) of scratch. before as above; after(i, row) may
// change scale dS of query i, which it gets as it enters dq and dk.
template <class Before, class After>
static void attend_head_backward(const AttentionSizes& s, const AttentionTensors& t,
                                 const AttentionGradients& g, int64_t b, int64_t h, float scale,
                                 float* p, Before before, After after) {
  const int64_t block = query_block(s.queries, s.keys), keys = s.keys, width = s.width;
  float* ds = p + block * keys + VL;
  float* space = ds + block * keys + VL;
  for (int64_t start = 0; start < s.queries; start += block) {
    const int64_t rows = lesser(block, s.queries - start);
    const float* queries_of = t.q->at(b, h) + start * t.q->token;
    const float* dout_of = g.dout->at(b, h) + start * g.dout->token;
    multiply(rows, keys, width, queries_of, t.q->token, 1, t.k->at(b, h), 1, t.k->token, p, keys,
             false, space);
    multiply(rows, keys, width, dout_of, g.dout->token, 1, t.v->at(b, h), 1, t.v->token, ds, keys,
             false, space);
    for (int64_t i = 0; i < rows; ++i) {
      float *p_row = p + i * keys, *ds_row = ds + i * keys;
      before(start + i, p_row);
      const float shift = t.lse[(b * s.heads + h) * s.queries + start + i];
      vf sums = {}, weights = {};
      auto weigh = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
        vf weight = exponential(take(F32{}, p_row + j, n) * scale - shift);
        for (int64_t e = n; e < VL; ++e) weight[e] = 0.0f;
        give(F32{}, p_row + j, weight, n);
        sums += weight * take(F32{}, ds_row + j, n);
        weights += weight;
      };
      EVA_ROW(keys, j, weigh);
      // The rounding of lse is common to a row and would not average out: the row sums to 1.
      const float norm = 1.0f / sum(weights), delta = sum(sums) * norm;
      auto slope = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
        vf weight = take(F32{}, p_row + j, n) * norm, d = take(F32{}, ds_row + j, n) - delta;
        give(F32{}, p_row + j, weight, n);
        give(F32{}, ds_row + j, weight * d * scale, n);
      };
      EVA_ROW(keys, j, slope);
      after(start + i, ds_row);
    }
    if (t.out->data)
      multiply(rows, width, keys, p, keys, 1, t.v->at(b, h), t.v->token, 1,
               t.out->at(b, h) + start * t.out->token, t.out->token, false, space);
    multiply(rows, width, keys, ds, keys, 1, t.k->at(b, h), t.k->token, 1,
             g.dq->at(b, h) + start * g.dq->token, g.dq->token, false, space);
    multiply(keys, width, rows, ds, 1, keys, queries_of, t.q->token, 1, g.dk->at(b, h),
             g.dk->token, start > 0, space);
    multiply(keys, width, rows, p, 1, keys, dout_of, g.dout->token, 1, g.dv->at(b, h), g.dv->token,
             start > 0, space);
  }
}

static void packed_attention(int64_t batch, int64_t heads, int64_t queries, int64_t keys,
                             int64_t width, const Heads* q, const Heads* k, const Heads* v,
                             const Heads* out, float* lse, float scale, int threads) {
  const AttentionSizes sizes = {batch, heads, queries, keys, width};
  const AttentionTensors tensors = {q, k, v, out, lse};
#pragma omp parallel num_threads(threads) if (sizes.large())
  {
    float* scratch = thread_scratch(forward_floats(sizes));
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < batch * heads; ++item)
      attend_head(sizes, tensors, item / heads, item % heads, scale, scratch,
                  [](int64_t, float*) {});
  }
}

static void packed_attention_backward(int64_t batch, int64_t heads, int64_t queries, int64_t keys,
                                      int64_t width, const Heads* dout, const Heads* q,
                                      const Heads* k, const Heads* v, float* lse,
                                      const Heads* dq, const Heads* dk, const Heads* dv,
                                      const Heads* out, float scale, int threads) {
  const AttentionSizes sizes = {batch, heads, queries, keys, width};
  const AttentionTensors tensors = {q, k, v, out, lse};
  const AttentionGradients gradients = {dout, dq, dk, dv};
#pragma omp parallel num_threads(threads) if (sizes.large())
  {
    float* scratch = thread_scratch(backward_floats(sizes));
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < batch * heads; ++item)
      attend_head_backward(sizes, tensors, gradients, item / heads, item % heads, scale, scratch,
                           [](int64_t, float*) {}, [](int64_t, float*) {});
  }
}

}  // namespace EVA_ISA
