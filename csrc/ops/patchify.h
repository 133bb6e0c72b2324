// uint8 images to normalised patch rows, `columns` from row to row: see eva_fast/ops/patchify.py.
#pragma once
#include "rows.h"

namespace EVA_ISA {

template <class T>
static void patchify_rows(int64_t batch, int64_t height, int64_t width, int64_t patch,
                          const uint8_t* images, const float* table, typename T::type* out,
                          int64_t columns, int threads) {
  const T t{};
  const int64_t down = height / patch, across = width / patch;
#pragma omp parallel for num_threads(threads) schedule(static) if (batch * height * width > 20000)
  for (int64_t strip = 0; strip < batch * down; ++strip) {
    const int64_t b = strip / down, i = strip % down;
    for (int64_t c = 0; c < 3; ++c)
      for (int64_t u = 0; u < patch; ++u) {
        const uint8_t* line = images + ((b * 3 + c) * height + i * patch + u) * width;
        for (int64_t j = 0; j < across; ++j) {
          auto* target = out + (strip * across + j) * columns + (c * patch + u) * patch;
          for (int64_t v = 0; v < patch; ++v)
            put(t, target + v, table[c * 256 + line[j * patch + v]]);
        }
      }
  }
}

// The same of `count` patches an image, kept[b, k].
template <class T>
static void patchify_kept_rows(int64_t batch, int64_t height, int64_t width, int64_t patch,
                               const uint8_t* images, const int32_t* kept, int64_t count,
                               const float* table, typename T::type* out, int64_t columns,
                               int threads) {
  const T t{};
  const int64_t across = width / patch;
#pragma omp parallel for num_threads(threads) schedule(static) if (batch * count * columns > 20000)
  for (int64_t item = 0; item < batch * count; ++item) {
    const int64_t b = item / count, i = kept[item] / across, j = kept[item] % across;
    auto* target = out + item * columns;
    for (int64_t c = 0; c < 3; ++c)
      for (int64_t u = 0; u < patch; ++u) {
        const uint8_t* line = images + ((b * 3 + c) * height + i * patch + u) * width + j * patch;
        for (int64_t v = 0; v < patch; ++v) put(t, target++, table[c * 256 + line[v]]);
      }
  }
}

static void patchify(int type, int64_t batch, int64_t height, int64_t width, int64_t patch,
                     const uint8_t* images, const int32_t* kept, int64_t count, const float* table,
                     void* out, int64_t columns, int threads) {
  if (kept) {
    EVA_BY_TYPE(type, T,
                patchify_kept_rows<T>(batch, height, width, patch, images, kept, count, table,
                                      (T::type*)out, columns, threads));
  } else {
    EVA_BY_TYPE(type, T,
                patchify_rows<T>(batch, height, width, patch, images, table, (T::type*)out,
                                 columns, threads));
  }
}

}  // namespace EVA_ISA
