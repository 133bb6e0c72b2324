// Attention of one head at a time, forward and backward: see eva_fast/ops/packed_attention.py.
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

// out and q: [B, queries, H, d]; k, v: [B, keys, H, d]; lse: [B, H, queries].
static void packed_attention(int64_t batch, int64_t heads, int64_t queries, int64_t keys,
                             int64_t width, const Heads* q, const Heads* k, const Heads* v,
                             const Heads* out, float* lse, float scale, int threads) {
  const int64_t block = query_block(queries, keys);
  const int64_t work = multiply_floats(block, keys, width) + multiply_floats(block, width, keys);
#pragma omp parallel num_threads(threads) if (batch * heads * queries * keys > 20000)
  {
    float* scores = thread_scratch(block * keys + block + VL + work);
    float* weight = scores + block * keys + VL;  // 1 / sum of each row
    float* space = weight + block;
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < batch * heads; ++item) {
      const int64_t b = item / heads, h = item % heads;
      for (int64_t start = 0; start < queries; start += block) {
        const int64_t rows = lesser(block, queries - start);
        multiply(rows, keys, width, q->at(b, h) + start * q->token, q->token, 1, k->at(b, h), 1,
                 k->token, scores, keys, false, space);
        for (int64_t i = 0; i < rows; ++i) {
          float* row = scores + i * keys;
          vf peak = splat(-3.4e38f);
          auto largest = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
            vf s = take(F32{}, row + j, n);
            for (int64_t e = n; e < VL; ++e) s[e] = -3.4e38f;
            peak = maximum(peak, s);
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
          lse[item * queries + start + i] = top * scale + __builtin_logf(total);
        }
        float* target = out->at(b, h) + start * out->token;
        multiply(rows, width, keys, scores, keys, 1, v->at(b, h), v->token, 1, target, out->token,
                 false, space);
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t j = 0; j < width; ++j) target[i * out->token + j] *= weight[i];
      }
    }
  }
}

// Fills dq, dk, dv, and out where out->data is not null.
static void packed_attention_backward(int64_t batch, int64_t heads, int64_t queries, int64_t keys,
                                      int64_t width, const Heads* dout, const Heads* q,
                                      const Heads* k, const Heads* v, const float* lse,
                                      const Heads* dq, const Heads* dk, const Heads* dv,
                                      const Heads* out, float scale, int threads) {
  const int64_t block = query_block(queries, keys);
  const int64_t work = multiply_floats(block, keys, width) + multiply_floats(block, width, keys) +
                       multiply_floats(keys, width, block);
#pragma omp parallel num_threads(threads) if (batch * heads * queries * keys > 20000)
  {
    float* p = thread_scratch(2 * block * keys + 2 * VL + work);
    float* ds = p + block * keys + VL;
    float* space = ds + block * keys + VL;
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < batch * heads; ++item) {
      const int64_t b = item / heads, h = item % heads;
      for (int64_t start = 0; start < queries; start += block) {
        const int64_t rows = lesser(block, queries - start);
        const float* queries_of = q->at(b, h) + start * q->token;
        const float* dout_of = dout->at(b, h) + start * dout->token;
        multiply(rows, keys, width, queries_of, q->token, 1, k->at(b, h), 1, k->token, p, keys,
                 false, space);
        multiply(rows, keys, width, dout_of, dout->token, 1, v->at(b, h), 1, v->token, ds, keys,
                 false, space);
        for (int64_t i = 0; i < rows; ++i) {
          float *p_row = p + i * keys, *ds_row = ds + i * keys;
          const float shift = lse[item * queries + start + i];
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
        }
        if (out->data)
          multiply(rows, width, keys, p, keys, 1, v->at(b, h), v->token, 1,
                   out->at(b, h) + start * out->token, out->token, false, space);
        multiply(rows, width, keys, ds, keys, 1, k->at(b, h), k->token, 1,
                 dq->at(b, h) + start * dq->token, dq->token, false, space);
        multiply(keys, width, rows, ds, 1, keys, queries_of, q->token, 1, dk->at(b, h), dk->token,
                 start > 0, space);
        multiply(keys, width, rows, p, 1, keys, dout_of, dout->token, 1, dv->at(b, h), dv->token,
                 start > 0, space);
      }
    }
  }
}

}  // namespace EVA_ISA
