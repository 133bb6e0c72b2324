// x' = x + s (branch + c), y = LayerNorm(x'), and its gradients: see eva_fast/ops/add_layer_norm.py.
#pragma once
#include "math.h"
#include "rows.h"

namespace EVA_ISA {

template <class T>
static void add_layer_norm_rows(int64_t rows, int64_t width, const typename T::type* x,
                                int64_t x_stride, const typename T::type* branch,
                                int64_t branch_stride, const float* branch_bias, const float* scale,
                                int64_t rows_per_sample, const float* weight, const float* bias,
                                float eps, typename T::type* total, typename T::type* y,
                                float* mean, float* rstd, int threads) {
  const T t{};
  const int64_t chunk = chunk_rows(rows);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (rows * width > 20000)
  for (int64_t start = 0; start < rows; start += chunk) {
    float* row = thread_scratch(width + VL);
    for (int64_t i = start; i < lesser(rows, start + chunk); ++i) {
      const auto* xi = x + i * x_stride;
      vf sums = {};
      if (branch) {
        const auto* bi = branch + i * branch_stride;
        auto* ti = total + i * width;
        const float s = scale ? scale[i / rows_per_sample] : 1.0f;
        auto step = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
          vf update = take(t, bi + j, n);
          if (branch_bias) update += take(F32{}, branch_bias + j, n);
          vf value = rounded(t, take(t, xi + j, n) + s * update);
          give(t, ti + j, value, n);
          *(vf_any*)(row + j) = value;
          sums += value;
        };
        EVA_ROW(width, j, step);
      } else {
        auto step = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
          vf value = take(t, xi + j, n);
          *(vf_any*)(row + j) = value;
          sums += value;
        };
        EVA_ROW(width, j, step);
      }
      const float center = sum(sums) / (float)width;
      vf squares = {};
      auto square = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
        vf d = take(F32{}, row + j, n) - center;
        if (n < VL)  // lanes past the row hold -center
          for (int64_t k = n; k < VL; ++k) d[k] = 0.0f;
        squares += d * d;
      };
      EVA_ROW(width, j, square);
      const float r = 1.0f / __builtin_sqrtf(sum(squares) / (float)width + eps);
      auto* yi = y + i * width;
      auto normalise = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
        vf value = (take(F32{}, row + j, n) - center) * r;
        give(t, yi + j, value * take(F32{}, weight + j, n) + take(F32{}, bias + j, n), n);
      };
      EVA_ROW(width, j, normalise);
      mean[i] = center;
      rstd[i] = r;
    }
  }
}

// sums: [3, width], the gradients of weight, bias and the branch's bias (the last if wanted).
template <class T>
static void add_layer_norm_backward_rows(
    int64_t rows, int64_t width, const typename T::type* dy, int64_t dy_stride,
    const typename T::type* dresidual, int64_t dresidual_stride, const typename T::type* total,
    int64_t total_stride, const float* mean, const float* rstd, const float* weight,
    const float* bias, const float* scale, int64_t rows_per_sample, typename T::type* dx,
    typename T::type* dbranch, typename T::type* y, float* sums, int want_branch_bias,
    int threads) {
  const T t{};
  const int64_t chunk = chunk_rows(rows), chunks = (rows + chunk - 1) / chunk;
  const int64_t padded = (width + VL - 1) / VL * VL;
  float* partials = scratch(chunks * 3 * width + 64);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (rows * width > 20000)
  for (int64_t c = 0; c < chunks; ++c) {
    float* normed = thread_scratch(5 * padded);
    float* gradient = normed + padded;
    float* column[3] = {gradient + padded, gradient + 2 * padded, gradient + 3 * padded};
    memset(column[0], 0, (size_t)padded * 12);
    for (int64_t i = c * chunk; i < lesser(rows, (c + 1) * chunk); ++i) {
      const auto* dyi = dy + i * dy_stride;
      const auto* ti = total + i * total_stride;
      const float center = mean[i], r = rstd[i];
      vf sum_g = {}, sum_gx = {};
      auto first = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
        vf d = take(t, dyi + j, n), w = take(F32{}, weight + j, n);
        vf xhat = (take(t, ti + j, n) - center) * r, g = d * w;
        *(vf_any*)(normed + j) = xhat;
        *(vf_any*)(gradient + j) = g;
        sum_g += g;        // zero past the row's end, where dy reads as zero
        sum_gx += g * xhat;
        *(vf_any*)(column[0] + j) += d * xhat;
        *(vf_any*)(column[1] + j) += d;
        if (y) give(t, y + i * width + j, xhat * w + take(F32{}, bias + j, n), n);
      };
      EVA_ROW(width, j, first);
      const float mean_g = sum(sum_g) / (float)width, mean_gx = sum(sum_gx) / (float)width;
      const float s = scale ? scale[i / rows_per_sample] : 1.0f;
      auto second = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
        vf g = *(vf_any*)(gradient + j), xhat = *(vf_any*)(normed + j);
        vf d = r * (g - mean_g - xhat * mean_gx);
        if (dresidual) d += take(t, dresidual + i * dresidual_stride + j, n);
        give(t, dx + i * width + j, d, n);
        vf scaled = d * s;
        if (scale) give(t, dbranch + i * width + j, scaled, n);
        if (want_branch_bias) *(vf_any*)(column[2] + j) += scaled;
      };
      EVA_ROW(width, j, second);
    }
    for (int k = 0; k < 3; ++k)
      memcpy(partials + (c * 3 + k) * width, column[k], (size_t)width * 4);
  }
  add_partials(partials, chunks, 3 * width, sums, threads);
}

static void add_layer_norm(int type, int64_t rows, int64_t width, const void* x, int64_t x_stride,
                           const void* branch, int64_t branch_stride, const float* branch_bias,
                           const float* scale, int64_t rows_per_sample, const float* weight,
                           const float* bias, float eps, void* total, void* y, float* mean,
                           float* rstd, int threads) {
  EVA_BY_TYPE(type, T,
              add_layer_norm_rows<T>(rows, width, (const T::type*)x, x_stride,
                                     (const T::type*)branch, branch_stride, branch_bias, scale,
                                     rows_per_sample, weight, bias, eps, (T::type*)total,
                                     (T::type*)y, mean, rstd, threads));
}

static void add_layer_norm_backward(int type, int64_t rows, int64_t width, const void* dy,
                                    int64_t dy_stride, const void* dresidual,
                                    int64_t dresidual_stride, const void* total,
                                    int64_t total_stride, const float* mean, const float* rstd,
                                    const float* weight, const float* bias, const float* scale,
                                    int64_t rows_per_sample, void* dx, void* dbranch, void* y,
                                    float* sums, int want_branch_bias, int threads) {
  EVA_BY_TYPE(type, T,
              add_layer_norm_backward_rows<T>(
                  rows, width, (const T::type*)dy, dy_stride, (const T::type*)dresidual,
                  dresidual_stride, (const T::type*)total, total_stride, mean, rstd, weight, bias,
                  scale, rows_per_sample, (T::type*)dx, (T::type*)dbranch, (T::type*)y, sums,
                  want_branch_bias, threads));
}

}  // namespace EVA_ISA
