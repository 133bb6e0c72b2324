// CLS and the patches that were kept, with their positions: see eva_fast/ops/embed_kept.py.
#pragma once
#include "rows.h"

namespace EVA_ISA {

template <class T>
static void embed_kept_rows(int64_t batch, int64_t count, int64_t width,
                            const typename T::type* x, int64_t x_batch, int64_t x_row,
                            const int32_t* kept, const float* cls, const float* pos,
                            const float* bias, typename T::type* out, int threads) {
  const T t{};
#pragma omp parallel for num_threads(threads) schedule(static) if (batch * count * width > 20000)
  for (int64_t item = 0; item < batch * (count + 1); ++item) {
    const int64_t b = item / (count + 1), k = item % (count + 1) - 1;
    const int64_t token = k < 0 ? 0 : 1 + (int64_t)kept[b * count + k];
    auto step = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
      vf value;
      if (k < 0) value = take(F32{}, cls + j, n);
      else {
        value = take(t, x + b * x_batch + k * x_row + j, n);
        if (bias) value += take(F32{}, bias + j, n);
      }
      give(t, out + item * width + j, value + take(F32{}, pos + token * width + j, n), n);
    };
    EVA_ROW(width, j, step);
  }
}

static void embed_kept(int type, int64_t batch, int64_t count, int64_t width, const void* x,
                       int64_t x_batch, int64_t x_row, const int32_t* kept, const float* cls,
                       const float* pos, const float* bias, void* out, int threads) {
  EVA_BY_TYPE(type, T,
              embed_kept_rows<T>(batch, count, width, (const T::type*)x, x_batch, x_row, kept, cls,
                                 pos, bias, (T::type*)out, threads));
}

}  // namespace EVA_ISA
