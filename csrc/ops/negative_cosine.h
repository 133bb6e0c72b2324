// -mean cos(p, t) and its gradient: see eva_fast/ops/negative_cosine.py.
#pragma once
#include "math.h"
#include "rows.h"

namespace EVA_ISA {

constexpr int64_t BLOCK = 8 * VL;  // columns

// statistics: [3, rows], cosine, 1/|p|, 1/|t|
template <class P, class T>
static void negative_cosine_rows(int64_t rows, int64_t width, const typename P::type* p,
                                 int64_t p_stride, const typename T::type* t, int64_t t_stride,
                                 float eps, float* loss, float* statistics, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * width > 20000)
  for (int64_t i = 0; i < rows; ++i) {
    double dot = 0.0, square_p = 0.0, square_t = 0.0;
    for (int64_t start = 0; start < width; start += BLOCK) {  // short sums round little
      vf pt = {}, pp = {}, tt = {};
      auto step = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
        vf a = take(P{}, p + i * p_stride + start + j, n);
        vf b = take(T{}, t + i * t_stride + start + j, n);
        pt += a * b;
        pp += a * a;
        tt += b * b;
      };
      EVA_ROW(lesser(BLOCK, width - start), j, step);
      dot += sum(pt);
      square_p += sum(pp);
      square_t += sum(tt);
    }
    const double norm_p = __builtin_sqrt(square_p), norm_t = __builtin_sqrt(square_t);
    const double inverse_p = 1.0 / (norm_p > eps ? norm_p : eps);
    const double inverse_t = 1.0 / (norm_t > eps ? norm_t : eps);
    statistics[i] = (float)(dot * inverse_p * inverse_t);
    statistics[rows + i] = (float)inverse_p;
    statistics[2 * rows + i] = (float)inverse_t;
  }
  double total = 0.0;
  for (int64_t i = 0; i < rows; ++i) total += statistics[i];
  *loss = rows ? (float)(-total / (double)rows) : 0.0f;
}

template <class P, class T>
static void negative_cosine_backward_rows(int64_t rows, int64_t width, const typename P::type* p,
                                          int64_t p_stride, const typename T::type* t,
                                          int64_t t_stride, const float* statistics, float eps,
                                          float dloss, typename P::type* dp, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * width > 20000)
  for (int64_t i = 0; i < rows; ++i) {
    const double inverse_p = statistics[rows + i], factor = -(double)dloss / (double)rows;
    const bool clamped = statistics[rows + i] >= 1.0f / eps;
    const float along = clamped ? 0.0f : (float)(factor * statistics[i] * inverse_p * inverse_p);
    const float across = (float)(factor * inverse_p * statistics[2 * rows + i]);
    auto step = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
      vf a = take(P{}, p + i * p_stride + j, n), b = take(T{}, t + i * t_stride + j, n);
      give(P{}, dp + i * width + j, b * across - a * along, n);
    };
    EVA_ROW(width, j, step);
  }
}

static void negative_cosine(int p_type, int t_type, int64_t rows, int64_t width, const void* p,
                            int64_t p_stride, const void* t, int64_t t_stride, float eps,
                            float* loss, float* statistics, int threads) {
  EVA_BY_TYPE(p_type, P,
              EVA_BY_TYPE(t_type, T,
                          negative_cosine_rows<P, T>(rows, width, (const P::type*)p, p_stride,
                                                     (const T::type*)t, t_stride, eps, loss,
                                                     statistics, threads)));
}

static void negative_cosine_backward(int p_type, int t_type, int64_t rows, int64_t width,
                                     const void* p, int64_t p_stride, const void* t,
                                     int64_t t_stride, const float* statistics, float eps,
                                     const float* dloss, void* dp, int threads) {
  EVA_BY_TYPE(p_type, P,
              EVA_BY_TYPE(t_type, T,
                          negative_cosine_backward_rows<P, T>(
                              rows, width, (const P::type*)p, p_stride, (const T::type*)t, t_stride,
                              statistics, eps, *dloss, (P::type*)dp, threads)));
}

}  // namespace EVA_ISA
