// Mean smooth L1 of p and the whitened rows of t, and its gradient: see eva_fast/ops/smooth_l1.py.
#pragma once
#include "math.h"
#include "rows.h"

namespace EVA_ISA {

constexpr int64_t SMOOTH_BLOCK = 8 * VL;  // columns: short sums round little

// x in the first `count` lanes, 0 in the others
static inline vf leading(vf x, int64_t count) {
  if (count == VL) return x;
  vf out = {};
  for (int64_t i = 0; i < count; ++i) out[i] = x[i];
  return out;
}

// The sum over a row of f(offset, elements).
template <class Function>
static inline __attribute__((always_inline)) double row_sum(int64_t width, Function f) {
  double total = 0.0;
  for (int64_t start = 0; start < width; start += SMOOTH_BLOCK) {
    vf part = {};
    auto step = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
      part += leading(f(start + j, n), n);
    };
    EVA_ROW(lesser(SMOOTH_BLOCK, width - start), j, step);
    total += sum(part);
  }
  return total;
}

// statistics: [3, rows], loss of the row, mean t, 1/deviation
template <class P, class T>
static void smooth_l1_rows(int64_t rows, int64_t width, const typename P::type* p, int64_t p_stride,
                           const typename T::type* t, int64_t t_stride, float eps, float beta,
                           float* loss, float* statistics, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * width > 20000)
  for (int64_t i = 0; i < rows; ++i) {
    const typename P::type* pi = p + i * p_stride;
    const typename T::type* ti = t + i * t_stride;
    const double mean = row_sum(width, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
                          return take(T{}, ti + j, n);
                        }) / (double)width;
    const float centre = (float)mean;
    const double square = row_sum(width, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
      vf x = take(T{}, ti + j, n) - centre;
      return x * x;
    });
    const float rstd = (float)(1.0 / __builtin_sqrt(square / (double)width + (double)eps));
    const double total = row_sum(width, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
      vf off = take(P{}, pi + j, n) - (take(T{}, ti + j, n) - centre) * rstd;
      vf size = absolute(off);
      return select(size < beta, off * off * (0.5f / beta), size - 0.5f * beta);
    });
    statistics[i] = (float)(total / (double)width);
    statistics[rows + i] = centre;
    statistics[2 * rows + i] = rstd;
  }
  double total = 0.0;
  for (int64_t i = 0; i < rows; ++i) total += statistics[i];
  *loss = rows ? (float)(total / (double)rows) : 0.0f;
}

template <class P, class T>
static void smooth_l1_backward_rows(int64_t rows, int64_t width, const typename P::type* p,
                                    int64_t p_stride, const typename T::type* t, int64_t t_stride,
                                    const float* statistics, float beta, float dloss,
                                    typename P::type* dp, int threads) {
  const float factor = (float)((double)dloss / ((double)rows * (double)width));
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * width > 20000)
  for (int64_t i = 0; i < rows; ++i) {
    const float mean = statistics[rows + i], rstd = statistics[2 * rows + i];
    auto step = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
      vf a = take(P{}, p + i * p_stride + j, n), b = take(T{}, t + i * t_stride + j, n);
      vf off = a - (b - mean) * rstd;
      // by comparisons, which leave a NaN one
      vf slope = select(off <= -beta, splat(-1.0f), off / beta);
      slope = select(off >= beta, splat(1.0f), slope);
      give(P{}, dp + i * width + j, slope * factor, n);
    };
    EVA_ROW(width, j, step);
  }
}

static void smooth_l1(int p_type, int t_type, int64_t rows, int64_t width, const void* p,
                      int64_t p_stride, const void* t, int64_t t_stride, float eps, float beta,
                      float* loss, float* statistics, int threads) {
  EVA_BY_TYPE(p_type, P,
              EVA_BY_TYPE(t_type, T,
                          smooth_l1_rows<P, T>(rows, width, (const P::type*)p, p_stride,
                                               (const T::type*)t, t_stride, eps, beta, loss,
                                               statistics, threads)));
}

static void smooth_l1_backward(int p_type, int t_type, int64_t rows, int64_t width, const void* p,
                               int64_t p_stride, const void* t, int64_t t_stride,
                               const float* statistics, float beta, const float* dloss, void* dp,
                               int threads) {
  EVA_BY_TYPE(p_type, P,
              EVA_BY_TYPE(t_type, T,
                          smooth_l1_backward_rows<P, T>(rows, width, (const P::type*)p, p_stride,
                                                        (const T::type*)t, t_stride, statistics,
                                                        beta, *dloss, (P::type*)dp, threads)));
}

}  // namespace EVA_ISA
