// Tokens of all patches from the rows of those that were kept: see eva_fast/ops/unshuffle_tokens.py.
#pragma once
#include "rows.h"

namespace EVA_ISA {

// places[n] = k where kept[k] = n, else -1.
static inline void places_of(int32_t* places, int64_t patches, const int32_t* kept,
                             int64_t count) {
  for (int64_t n = 0; n < patches; ++n) places[n] = -1;
  for (int64_t k = 0; k < count; ++k) places[kept[k]] = (int32_t)k;
}

template <class T>
static void unshuffle_tokens_rows(int64_t batch, int64_t patches, int64_t width,
                                  const typename T::type* x, int64_t x_batch, int64_t x_row,
                                  const int32_t* kept, int64_t count, const float* mask_token,
                                  const float* pos, typename T::type* out, int threads) {
  const T t{};
  const int64_t tokens = patches + 1;
#pragma omp parallel for num_threads(threads) schedule(static) if (batch * tokens * width > 20000)
  for (int64_t b = 0; b < batch; ++b) {
    int32_t* places = (int32_t*)thread_scratch(patches + 1);
    places_of(places, patches, kept + b * count, count);
    for (int64_t token = 0; token < tokens; ++token) {
      const int64_t row = token ? places[token - 1] + 1 : 0;  // 0 where nothing was kept, too
      const bool masked = token > 0 && row == 0;
      auto step = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
        const vf value = masked ? take(F32{}, mask_token + j, n)
                                : take(t, x + b * x_batch + row * x_row + j, n);
        give(t, out + (b * tokens + token) * width + j,
             value + take(F32{}, pos + token * width + j, n), n);
      };
      EVA_ROW(width, j, step);
    }
  }
}

// dmask_token: sums of the images' chunks, each image's rows summed first.
template <class T>
static void unshuffle_tokens_backward_rows(int64_t batch, int64_t patches, int64_t width,
                                           const typename T::type* dout, int64_t d_batch,
                                           int64_t d_row, const int32_t* kept, int64_t count,
                                           typename T::type* dx, float* dmask_token, int threads) {
  const T t{};
  const int64_t chunk = (batch + MAX_CHUNKS - 1) / MAX_CHUNKS;
  const int64_t chunks = batch ? (batch + chunk - 1) / chunk : 0;
  const int64_t padded = (width + VL - 1) / VL * VL;
  float* partials = scratch(chunks * width + 1);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (batch * patches * width > 20000)
  for (int64_t c = 0; c < chunks; ++c) {
    float* column = thread_scratch(2 * padded + patches + 1);  // sums of the chunk, then of an image
    float* image_sum = column + padded;
    int32_t* places = (int32_t*)(image_sum + padded);
    memset(column, 0, (size_t)padded * 4);
    for (int64_t b = c * chunk; b < lesser(batch, (c + 1) * chunk); ++b) {
      places_of(places, patches, kept + b * count, count);
      memset(image_sum, 0, (size_t)padded * 4);
      for (int64_t token = 0; token <= patches; ++token) {
        const auto* row = dout + b * d_batch + token * d_row;
        const int64_t place = token ? places[token - 1] + 1 : 0;
        if (token > 0 && place == 0) {
          auto step = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
            *(vf_any*)(image_sum + j) += take(t, row + j, n);
          };
          EVA_ROW(width, j, step);
        } else {
          memcpy(dx + (b * (count + 1) + place) * width, row, (size_t)width * sizeof(*row));
        }
      }
      for (int64_t j = 0; j < padded; j += VL) *(vf_any*)(column + j) += *(vf_any*)(image_sum + j);
    }
    memcpy(partials + c * width, column, (size_t)width * 4);
  }
  add_partials(partials, chunks, width, dmask_token, threads);
}

static void unshuffle_tokens(int type, int64_t batch, int64_t patches, int64_t width,
                             const void* x, int64_t x_batch, int64_t x_row, const int32_t* kept,
                             int64_t count, const float* mask_token, const float* pos, void* out,
                             int threads) {
  EVA_BY_TYPE(type, T,
              unshuffle_tokens_rows<T>(batch, patches, width, (const T::type*)x, x_batch, x_row,
                                       kept, count, mask_token, pos, (T::type*)out, threads));
}

static void unshuffle_tokens_backward(int type, int64_t batch, int64_t patches, int64_t width,
                                      const void* dout, int64_t d_batch, int64_t d_row,
                                      const int32_t* kept, int64_t count, void* dx,
                                      float* dmask_token, int threads) {
  EVA_BY_TYPE(type, T,
              unshuffle_tokens_backward_rows<T>(batch, patches, width, (const T::type*)dout,
                                                d_batch, d_row, kept, count, (T::type*)dx,
                                                dmask_token, threads));
}

}  // namespace EVA_ISA
