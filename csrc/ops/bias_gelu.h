// gelu(h + b) and its gradients: see eva_fast/ops/bias_gelu.py.
#pragma once
#include "math.h"
#include "rows.h"

namespace EVA_ISA {

enum class Gelu { ERF, TANH, QUICK };  // in the order of KINDS there

// gelu(z) / z, and the derivative of gelu at z.
template <Gelu KIND>
static inline __attribute__((always_inline)) vf gelu_gate(vf z, vf* slope) {
  if (KIND == Gelu::ERF) {
    vf density, gate = normal_cdf(z, &density);
    *slope = gate + z * density;
    return gate;
  }
  vf power = -1.702f * z, steep = splat(1.702f);
  if (KIND == Gelu::TANH) {
    const float linear = 1.5957691216f, cubic = 0.0713548163f;  // sqrt(8 / pi), 0.044715 of it
    power = -z * (linear + cubic * z * z);
    steep = linear + 3.0f * cubic * z * z;
  }
  vf odds = exponential(power), gate = 1.0f / (1.0f + odds);  // (1 - gate) / gate
  *slope = gate * (1.0f + steep * z * (odds * gate));  // no 1 - gate, which cancels on the right
  return gate;
}

template <class T, Gelu KIND>
static void bias_gelu_rows(int64_t rows, int64_t width, const typename T::type* h, int64_t h_stride,
                           const float* bias, typename T::type* out, int threads) {
  const T t{};
#pragma omp parallel for num_threads(threads) schedule(dynamic, 8) if (rows * width > 20000)
  for (int64_t i = 0; i < rows; ++i) {
    auto step = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
      vf z = take(t, h + i * h_stride + j, n), slope;
      if (bias) z += take(F32{}, bias + j, n);
      give(t, out + i * width + j, z * gelu_gate<KIND>(z, &slope), n);
    };
    EVA_ROW(width, j, step);
  }
}

template <class T, Gelu KIND>
static void bias_gelu_backward_rows(int64_t rows, int64_t width, const typename T::type* dg,
                                    int64_t dg_stride, const typename T::type* h, int64_t h_stride,
                                    const float* bias, typename T::type* dh, typename T::type* g,
                                    float* dbias, int threads) {
  const T t{};
  const int64_t chunk = chunk_rows(rows), chunks = (rows + chunk - 1) / chunk;
  const int64_t padded = (width + VL - 1) / VL * VL;
  float* partials = dbias ? scratch(chunks * width + 64) : nullptr;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (rows * width > 20000)
  for (int64_t c = 0; c < chunks; ++c) {
    float* column = thread_scratch(padded);
    memset(column, 0, (size_t)padded * 4);
    for (int64_t i = c * chunk; i < lesser(rows, (c + 1) * chunk); ++i) {
      auto step = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
        vf z = take(t, h + i * h_stride + j, n), slope;
        if (bias) z += take(F32{}, bias + j, n);
        vf gate = gelu_gate<KIND>(z, &slope);
        vf d = take(t, dg + i * dg_stride + j, n) * slope;
        give(t, dh + i * width + j, d, n);
        if (g) give(t, g + i * width + j, z * gate, n);
        *(vf_any*)(column + j) += d;
      };
      EVA_ROW(width, j, step);
    }
    if (dbias) memcpy(partials + c * width, column, (size_t)width * 4);
  }
  if (dbias) add_partials(partials, chunks, width, dbias, threads);
}

#define EVA_BY_GELU(kind, NAME, ...)                                            \
  switch (kind) {                                                               \
    case 0: { constexpr Gelu NAME = Gelu::ERF; __VA_ARGS__; break; }            \
    case 1: { constexpr Gelu NAME = Gelu::TANH; __VA_ARGS__; break; }           \
    default: { constexpr Gelu NAME = Gelu::QUICK; __VA_ARGS__; }                \
  }

static void bias_gelu(int type, int kind, int64_t rows, int64_t width, const void* h,
                      int64_t h_stride, const float* bias, void* out, int threads) {
  EVA_BY_TYPE(type, T, EVA_BY_GELU(kind, KIND, bias_gelu_rows<T, KIND>(
      rows, width, (const T::type*)h, h_stride, bias, (T::type*)out, threads)));
}

static void bias_gelu_backward(int type, int kind, int64_t rows, int64_t width, const void* dg,
                               int64_t dg_stride, const void* h, int64_t h_stride,
                               const float* bias, void* dh, void* g, float* dbias, int threads) {
  EVA_BY_TYPE(type, T, EVA_BY_GELU(kind, KIND, bias_gelu_backward_rows<T, KIND>(
      rows, width, (const T::type*)dg, dg_stride, (const T::type*)h, h_stride, bias, (T::type*)dh,
      (T::type*)g, dbias, threads)));
}

}  // namespace EVA_ISA
