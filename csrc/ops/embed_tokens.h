// Mask tokens, CLS and positions in one pass: see eva_fast/ops/embed_tokens.py.
#pragma once
#include "rows.h"

namespace EVA_ISA {

// flags[n] = 1 where patch n is masked.
static inline void mark(uint8_t* flags, int64_t patches, const int32_t* mask, int64_t masked) {
  memset(flags, 0, (size_t)patches);
  for (int64_t k = 0; k < masked; ++k)
    if (mask[k] >= 0 && mask[k] < patches) flags[mask[k]] = 1;
}

template <class T>
static void embed_tokens_rows(int64_t batch, int64_t patches, int64_t width,
                              const typename T::type* x, int64_t x_batch, int64_t x_row,
                              const int32_t* mask, int64_t masked, const float* mask_token,
                              const float* cls, const float* pos, const float* bias,
                              typename T::type* out, int threads) {
  const T t{};
  uint8_t* flags = (uint8_t*)scratch(batch * patches / 4 + 1);
  for (int64_t b = 0; b < batch; ++b) mark(flags + b * patches, patches, mask + b * masked, masked);
#pragma omp parallel for num_threads(threads) schedule(static) if (batch * patches * width > 20000)
  for (int64_t item = 0; item < batch * (patches + 1); ++item) {
    const int64_t b = item / (patches + 1), token = item % (patches + 1), n = token - 1;
    const bool replaced = token > 0 && flags[b * patches + n];
    auto step = [&](int64_t j, int64_t count) __attribute__((always_inline)) {
      vf value;
      if (token == 0) value = take(F32{}, cls + j, count);
      else if (replaced) value = take(F32{}, mask_token + j, count);
      else {
        value = take(t, x + b * x_batch + n * x_row + j, count);
        if (bias) value += take(F32{}, bias + j, count);
      }
      give(t, out + item * width + j, value + take(F32{}, pos + token * width + j, count), count);
    };
    EVA_ROW(width, j, step);
  }
}

// dtokens: [2, width], the sums over masked patches (mask token) and over the others (patch bias).
template <class T>
static void embed_tokens_backward_rows(int64_t batch, int64_t patches, int64_t width,
                                       const typename T::type* dout, int64_t d_batch,
                                       int64_t d_row, const int32_t* mask, int64_t masked,
                                       typename T::type* dx, float* dtokens, float* dpos,
                                       int threads) {
  const T t{};
  const int64_t tokens = patches + 1, chunk = chunk_rows(tokens);
  const int64_t chunks = (tokens + chunk - 1) / chunk, padded = (width + VL - 1) / VL * VL;
  const int64_t flag_floats = (batch * patches / 4 + 64) / 16 * 16;
  float* partials = scratch(chunks * 2 * width + 64 + flag_floats);
  uint8_t* flags = (uint8_t*)(partials + chunks * 2 * width + 64);
  for (int64_t b = 0; b < batch; ++b) mark(flags + b * patches, patches, mask + b * masked, masked);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (batch * patches * width > 20000)
  for (int64_t c = 0; c < chunks; ++c) {
    float* column = thread_scratch(4 * padded);  // sums of the chunk, then of one token
    float* token_sum = column + 2 * padded;
    memset(column, 0, (size_t)padded * 8);
    for (int64_t token = c * chunk; token < lesser(tokens, (c + 1) * chunk); ++token) {
      memset(token_sum, 0, (size_t)padded * 8);
      for (int64_t b = 0; b < batch; ++b) {
        const auto* row = dout + b * d_batch + token * d_row;
        const bool replaced = token > 0 && flags[b * patches + token - 1];
        float* part = token_sum + (replaced ? 0 : padded);
        auto* target = dx + (b * patches + token - 1) * width;
        auto step = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
          vf d = take(t, row + j, n);
          *(vf_any*)(part + j) += d;
          if (token > 0) give(t, target + j, replaced ? vf{} : d, n);
        };
        EVA_ROW(width, j, step);
      }
      auto step = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
        const vf masked_sum = *(vf_any*)(token_sum + j), sum = *(vf_any*)(token_sum + padded + j);
        give(F32{}, dpos + token * width + j, masked_sum + sum, n);
        if (token == 0) return;
        *(vf_any*)(column + j) += masked_sum;
        *(vf_any*)(column + padded + j) += sum;
      };
      EVA_ROW(width, j, step);
    }
    memcpy(partials + c * 2 * width, column, (size_t)width * 4);
    memcpy(partials + (c * 2 + 1) * width, column + padded, (size_t)width * 4);
  }
  add_partials(partials, chunks, 2 * width, dtokens, threads);
}

static void embed_tokens(int type, int64_t batch, int64_t patches, int64_t width, const void* x,
                         int64_t x_batch, int64_t x_row, const int32_t* mask, int64_t masked,
                         const float* mask_token, const float* cls, const float* pos,
                         const float* bias, void* out, int threads) {
  EVA_BY_TYPE(type, T,
              embed_tokens_rows<T>(batch, patches, width, (const T::type*)x, x_batch, x_row, mask,
                                   masked, mask_token, cls, pos, bias, (T::type*)out, threads));
}

static void embed_tokens_backward(int type, int64_t batch, int64_t patches, int64_t width,
                                  const void* dout, int64_t d_batch, int64_t d_row,
                                  const int32_t* mask, int64_t masked, void* dx, float* dtokens,
                                  float* dpos, int threads) {
  EVA_BY_TYPE(type, T,
              embed_tokens_backward_rows<T>(batch, patches, width, (const T::type*)dout, d_batch,
                                            d_row, mask, masked, (T::type*)dx, dtokens, dpos,
                                            threads));
}

}  // namespace EVA_ISA
