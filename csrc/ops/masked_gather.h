// Rows of the masked patches, and back: see eva_fast/ops/masked_gather.py.
#pragma once
#include "rows.h"

namespace EVA_ISA {

// Rows are copied as bytes: any dtype. Strides in bytes.
static void masked_gather(int64_t batch, int64_t masked, int64_t row_bytes, const char* x,
                          int64_t x_batch, int64_t x_row, const int32_t* mask, char* out,
                          int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (batch * masked * row_bytes > 80000)
  for (int64_t i = 0; i < batch * masked; ++i)
    memcpy(out + i * row_bytes, x + i / masked * x_batch + (1 + (int64_t)mask[i]) * x_row,
           (size_t)row_bytes);
}

static void masked_gather_backward(int64_t batch, int64_t tokens, int64_t masked,
                                   int64_t row_bytes, const char* dout, int64_t d_row,
                                   const int32_t* mask, char* dx, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (batch * tokens * row_bytes > 80000)
  for (int64_t b = 0; b < batch; ++b) {
    int32_t* source = (int32_t*)thread_scratch(tokens + 1);  // which row of dout; -1: none
    for (int64_t i = 0; i < tokens; ++i) source[i] = -1;
    for (int64_t k = 0; k < masked; ++k) source[1 + mask[b * masked + k]] = (int32_t)k;
    char* target = dx + b * tokens * row_bytes;
    for (int64_t i = 0; i < tokens; ++i, target += row_bytes) {
      if (source[i] < 0) memset(target, 0, (size_t)row_bytes);
      else memcpy(target, dout + (b * masked + source[i]) * d_row, (size_t)row_bytes);
    }
  }
}

}  // namespace EVA_ISA
