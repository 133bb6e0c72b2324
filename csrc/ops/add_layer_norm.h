// x' = x + s (branch + c), y = LayerNorm(x'), and its gradients: see eva_fast/ops/add_layer_norm.py.
//
// The arguments travel in a struct by value: the loops then work on a copy that no store can reach.
// What an OpenMP region shares is read from memory again after every store.
#pragma once
#include "math.h"
#include "rows.h"

namespace EVA_ISA {

template <class T>
struct AddLayerNorm {
  int64_t width;
  const typename T::type* x;
  int64_t x_stride;
  const typename T::type* branch;
  int64_t branch_stride;
  const float *branch_bias, *scale;
  int64_t rows_per_sample;
  const float *weight, *bias;
  float eps;
  typename T::type *total, *y;
  float *mean, *rstd;
};

// R rows from row i on, side by side: their sums do not wait for each other.
template <class T, int R>
static inline __attribute__((always_inline)) void add_layer_norm_rows(const AddLayerNorm<T>& a,
                                                                      int64_t i) {
  const T t{};
  const auto* stored = a.branch ? a.total + i * a.width : a.x + i * a.x_stride;  // x'
  const int64_t stride = a.branch ? a.width : a.x_stride;
  vf sums[R] = {}, squares[R] = {};
  float center[R], r[R], s[R];
  if (a.branch) {
    for (int k = 0; k < R; ++k) s[k] = a.scale ? a.scale[(i + k) / a.rows_per_sample] : 1.0f;
    auto add = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
      const vf c = a.branch_bias ? take(F32{}, a.branch_bias + j, n) : vf{};
      for (int k = 0; k < R; ++k) {
        vf update = take(t, a.branch + (i + k) * a.branch_stride + j, n) + c;
        vf value = rounded(t, take(t, a.x + (i + k) * a.x_stride + j, n) + s[k] * update);
        give(t, a.total + (i + k) * a.width + j, value, n);
        sums[k] += value;
      }
    };
    EVA_ROW(a.width, j, add);
  } else {
    auto add = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
      for (int k = 0; k < R; ++k) sums[k] += take(t, stored + k * stride + j, n);
    };
    EVA_ROW(a.width, j, add);
  }
  for (int k = 0; k < R; ++k) center[k] = sum(sums[k]) / (float)a.width;
  auto square = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
    for (int k = 0; k < R; ++k) {
      vf d = take(t, stored + k * stride + j, n) - center[k];
      if (n < VL)  // lanes past the row hold -center
        for (int64_t lane = n; lane < VL; ++lane) d[lane] = 0.0f;
      squares[k] += d * d;
    }
  };
  EVA_ROW(a.width, j, square);
  for (int k = 0; k < R; ++k) {
    r[k] = 1.0f / __builtin_sqrtf(sum(squares[k]) / (float)a.width + a.eps);
    a.mean[i + k] = center[k];
    a.rstd[i + k] = r[k];
  }
  auto normalise = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
    const vf w = take(F32{}, a.weight + j, n), b = take(F32{}, a.bias + j, n);
    for (int k = 0; k < R; ++k) {
      vf xhat = (take(t, stored + k * stride + j, n) - center[k]) * r[k];
      give(t, a.y + (i + k) * a.width + j, xhat * w + b, n);
    }
  };
  EVA_ROW(a.width, j, normalise);
}

template <class T>
static __attribute__((noinline)) void add_layer_norm_chunk(const AddLayerNorm<T> a, int64_t i,
                                                           int64_t end) {
  for (; i + 2 <= end; i += 2) add_layer_norm_rows<T, 2>(a, i);
  if (i < end) add_layer_norm_rows<T, 1>(a, i);
}

template <class T>
static void add_layer_norm_chunks(int64_t rows, const AddLayerNorm<T> a, int threads) {
  const int64_t chunk = chunk_rows(rows);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (rows * a.width > 20000)
  for (int64_t start = 0; start < rows; start += chunk)
    add_layer_norm_chunk(a, start, lesser(rows, start + chunk));
}

template <class T>
struct AddLayerNormBackward {
  int64_t width;
  const typename T::type* dy;
  int64_t dy_stride;
  const typename T::type* dresidual;
  int64_t dresidual_stride;
  const typename T::type* total;
  int64_t total_stride;
  const float *mean, *rstd, *weight, *bias, *scale;
  int64_t rows_per_sample;
  typename T::type *dx, *dbranch, *y;
};

// Rows i .. end, and their column sums: work holds three sums of `padded` values, then xhat and g.
template <class T>
static __attribute__((noinline)) void add_layer_norm_backward_chunk(const AddLayerNormBackward<T> a,
                                                                    int64_t i, int64_t end,
                                                                    float* work, int64_t padded) {
  const T t{};
  float *dweight = work, *dbias = work + padded, *dbranch_bias = work + 2 * padded;
  float *normed = work + 3 * padded, *gradient = work + 4 * padded;
  for (; i < end; ++i) {
    const float center = a.mean[i], r = a.rstd[i];
    const float s = a.scale ? a.scale[i / a.rows_per_sample] : 1.0f;
    vf sum_g = {}, sum_gx = {};
    auto first = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
      const vf d = take(t, a.dy + i * a.dy_stride + j, n), w = take(F32{}, a.weight + j, n);
      const vf xhat = (take(t, a.total + i * a.total_stride + j, n) - center) * r, g = d * w;
      *(vf_any*)(normed + j) = xhat;
      *(vf_any*)(gradient + j) = g;
      sum_g += g;  // zero past the row's end, where dy reads as zero
      sum_gx += g * xhat;
      *(vf_any*)(dweight + j) += d * xhat;
      *(vf_any*)(dbias + j) += d;
      if (a.y) give(t, a.y + i * a.width + j, xhat * w + take(F32{}, a.bias + j, n), n);
    };
    EVA_ROW(a.width, j, first);
    const float mean_g = sum(sum_g) / (float)a.width, mean_gx = sum(sum_gx) / (float)a.width;
    auto second = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
      const vf g = *(vf_any*)(gradient + j), xhat = *(vf_any*)(normed + j);
      vf d = r * (g - mean_g - xhat * mean_gx);
      if (a.dresidual) d += take(t, a.dresidual + i * a.dresidual_stride + j, n);
      give(t, a.dx + i * a.width + j, d, n);
      d *= s;
      if (a.scale) give(t, a.dbranch + i * a.width + j, d, n);
      *(vf_any*)(dbranch_bias + j) += d;
    };
    EVA_ROW(a.width, j, second);
  }
}

// sums: [2 or 3, width], the gradients of weight, bias and, if wanted, the branch's bias.
template <class T>
static void add_layer_norm_backward_chunks(int64_t rows, const AddLayerNormBackward<T> a,
                                           float* sums, int want_branch_bias, int threads) {
  const int64_t chunk = chunk_rows(rows), chunks = (rows + chunk - 1) / chunk;
  const int64_t width = a.width, padded = (width + VL - 1) / VL * VL;
  const int wanted = want_branch_bias ? 3 : 2;
  float* partials = scratch(chunks * wanted * width + 64);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (rows * width > 20000)
  for (int64_t c = 0; c < chunks; ++c) {
    float* work = thread_scratch(5 * padded);
    memset(work, 0, (size_t)padded * 12);
    add_layer_norm_backward_chunk(a, c * chunk, lesser(rows, (c + 1) * chunk), work, padded);
    for (int k = 0; k < wanted; ++k)
      memcpy(partials + (c * wanted + k) * width, work + k * padded, (size_t)width * 4);
  }
  add_partials(partials, chunks, wanted * width, sums, threads);
}

static void add_layer_norm(int type, int64_t rows, int64_t width, const void* x, int64_t x_stride,
                           const void* branch, int64_t branch_stride, const float* branch_bias,
                           const float* scale, int64_t rows_per_sample, const float* weight,
                           const float* bias, float eps, void* total, void* y, float* mean,
                           float* rstd, int threads) {
  EVA_BY_TYPE(type, T,
              add_layer_norm_chunks<T>(
                  rows, {width, (const T::type*)x, x_stride, (const T::type*)branch, branch_stride,
                         branch_bias, scale, rows_per_sample, weight, bias, eps, (T::type*)total,
                         (T::type*)y, mean, rstd}, threads));
}

static void add_layer_norm_backward(int type, int64_t rows, int64_t width, const void* dy,
                                    int64_t dy_stride, const void* dresidual,
                                    int64_t dresidual_stride, const void* total,
                                    int64_t total_stride, const float* mean, const float* rstd,
                                    const float* weight, const float* bias, const float* scale,
                                    int64_t rows_per_sample, void* dx, void* dbranch, void* y,
                                    float* sums, int want_branch_bias, int threads) {
  EVA_BY_TYPE(type, T,
              add_layer_norm_backward_chunks<T>(
                  rows, {width, (const T::type*)dy, dy_stride, (const T::type*)dresidual,
                         dresidual_stride, (const T::type*)total, total_stride, mean, rstd, weight,
                         bias, scale, rows_per_sample, (T::type*)dx, (T::type*)dbranch,
                         (T::type*)y}, sums, want_branch_bias, threads));
}

}  // namespace EVA_ISA
