// Pairs of values of q and k turned by the angles of their token: see eva_fast/ops/rotary.py.
#pragma once
#include "rows.h"

namespace EVA_ISA {

// (x1, x0, x3, x2, ...)
static inline vf neighbours(vf x) {
  vi other;
  for (int i = 0; i < VL; ++i) other[i] = i ^ 1;
  return __builtin_shuffle(x, other);
}

// What a value's partner is multiplied by, from a token's sines.
static void partner_factors(float* mix, const float* sin, int64_t width, bool halves,
                            bool backward) {
  const int64_t half = width / 2;
  for (int64_t i = 0; i < half; ++i) {
    const int64_t a = halves ? i : 2 * i, b = halves ? i + half : 2 * i + 1;
    mix[a] = backward ? sin[b] : -sin[a];
    mix[b] = backward ? -sin[a] : sin[b];
  }
}

template <class T>
static void rotary_rows(int64_t batch, int64_t tokens, int64_t heads, int64_t width,
                        typename T::type* packed, int64_t placed, const float* sin,
                        int64_t sin_row, const float* cos, int64_t cos_row, bool halves,
                        bool backward, int threads) {
  const T t{};
  const int64_t half = width / 2, row = 3 * heads * width;
#pragma omp parallel for num_threads(threads) schedule(static) \
    if (batch * placed * heads * width > 10000)
  for (int64_t n = 0; n < placed; ++n) {
    float* mix = thread_scratch(width + VL);
    partner_factors(mix, sin + n * sin_row, width, halves, backward);
    const float* c = cos + n * cos_row;
    for (int64_t b = 0; b < batch; ++b) {
      typename T::type* head = packed + (b * tokens + tokens - placed + n) * row;
      for (int64_t h = 0; h < 2 * heads; ++h, head += width) {  // q's, then k's
        auto side_by_side = [&](int64_t j, int64_t count) __attribute__((always_inline)) {
          const vf x = take(t, head + j, count);
          const vf y = x * take(F32{}, c + j, count) + neighbours(x) * take(F32{}, mix + j, count);
          give(t, head + j, y, count);
        };
        auto apart = [&](int64_t j, int64_t count) __attribute__((always_inline)) {
          const vf x = take(t, head + j, count), y = take(t, head + half + j, count);
          const vf low = x * take(F32{}, c + j, count) + y * take(F32{}, mix + j, count);
          const vf high = y * take(F32{}, c + half + j, count) +
                          x * take(F32{}, mix + half + j, count);
          give(t, head + j, low, count);
          give(t, head + half + j, high, count);
        };
        if (halves) EVA_ROW(half, j, apart);
        else EVA_ROW(width, j, side_by_side);
      }
    }
  }
}

static void rotary(int type, int64_t batch, int64_t tokens, int64_t heads, int64_t width,
                   void* packed, int64_t placed, const float* sin, int64_t sin_row,
                   const float* cos, int64_t cos_row, int halves, int backward, int threads) {
  EVA_BY_TYPE(type, T,
              rotary_rows<T>(batch, tokens, heads, width, (T::type*)packed, placed, sin, sin_row,
                             cos, cos_row, halves, backward, threads));
}

}  // namespace EVA_ISA
