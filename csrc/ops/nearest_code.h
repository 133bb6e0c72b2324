// The code with the largest product, and sums over each code's rows: see eva_fast/ops/nearest_code.py.
#pragma once
#include "gemm.h"
#include "rows.h"

namespace EVA_ISA {

// The first of the largest numbers of each lane so far.
struct Best {
  vf value;
  vi at;
};

// Takes in `count` products of one row, the codes from `first` on.
static inline void look_at(Best* best, const float* products, int64_t first, int64_t count) {
  vi lanes;
  for (int j = 0; j < VL; ++j) lanes[j] = (int32_t)first + j;
  vf value = best->value;
  vi at = best->at;
  for (int64_t j = 0; j < count; j += VL) {
    const vf x = *(const vf_any*)(products + j);
    const vi better = x > value;
    value = select(better, x, value);
    at = (lanes & better) | (at & ~better);
    lanes += VL;
  }
  best->value = value;
  best->at = at;
}

// z [rows, width], codebook w [codes, width]; counts [codes] and sums [codes, width], or null.
static void nearest_code(int64_t rows, int64_t codes, int64_t width, const float* z,
                         int64_t z_stride, const float* w, int64_t w_stride, int64_t* index,
                         float* counts, float* sums, int threads) {
  const float least = -__builtin_inff();
  const int64_t panels = (codes + NR - 1) / NR, blocks = (rows + MC - 1) / MC;
  float* packed_w = (float*)__builtin_assume_aligned(scratch(panels * NR * width + 16 * NR), 64);
  pack<NR>(packed_w, w, w_stride, false, codes, width);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) \
    if (rows * codes * width > 100000)
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t i0 = block * MC, count = lesser(MC, rows - i0);
    float* packed_z = thread_scratch((MC + MR) * width + MC * NC);
    float* products = packed_z + (MC + MR) * width;
    Best best[MC];
    for (int64_t i = 0; i < count; ++i) best[i] = {splat(least), vi{}};
    pack<MR>(packed_z, z + i0 * z_stride, z_stride, false, count, width);
    for (int64_t j0 = 0; j0 < codes; j0 += NC) {
      const int64_t n = lesser(NC, codes - j0), whole = (n + VL - 1) / VL * VL;
      tiles(count, n, width, packed_z, packed_w + j0 * width, products, NC, false, nullptr);
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t j = n; j < whole; ++j) products[i * NC + j] = least;
        look_at(&best[i], products + i * NC, j0, n);
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      float value = least;
      int32_t at = 0;
      for (int j = 0; j < VL; ++j) {
        const float x = best[i].value[j];
        if (x > value || (x == value && best[i].at[j] < at)) value = x, at = best[i].at[j];
      }
      index[i0 + i] = at;
    }
  }
  if (!counts) return;
  // In the order of the rows, whoever found their codes.
  memset(counts, 0, (size_t)codes * 4);
  memset(sums, 0, (size_t)(codes * width) * 4);
  for (int64_t i = 0; i < rows; ++i) {
    counts[index[i]] += 1.0f;
    float* sum = sums + index[i] * width;
    for (int64_t j = 0; j < width; ++j) sum[j] += z[i * z_stride + j];
  }
}

}  // namespace EVA_ISA
