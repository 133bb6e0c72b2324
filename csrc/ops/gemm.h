// C = op(A) op(B) (+ bias per column) (+ C), float32, row-major, any leading dimension.
//
// The blocking is Goto's (Goto, van de Geijn: Anatomy of high-performance matrix multiplication,
// 2008): B is packed once into panels of NR columns; a task packs MC rows of A into panels of MR
// rows that stay in the L2 cache, and a micro-kernel keeps an MR x NR tile of C in registers.
// Tasks are handed out one by one, smaller ones towards the end, so that all cores finish together
// even where one is busy elsewhere.
#pragma once
#include <omp.h>

#include "memory.h"
#include "vec.h"

namespace EVA_ISA {

constexpr int MR = EVA_VL == 16 ? 12 : EVA_VL == 8 ? 6 : 6;
constexpr int NV = 2;  // vectors across a tile
constexpr int NR = NV * VL;
constexpr int64_t KC = 384;  // depth of one pass: an A panel of it fits the L1 cache
constexpr int64_t NC = 384;  // columns of B a task works on at a time: kc x NC fits L2
constexpr int64_t MC = 72;   // rows of A in the largest task
constexpr int64_t PACKED_FLOATS = 1 << 20;  // of packed B at a time

// Panels of W rows: panel[i / W][k][i % W] = source(i, k) for i < width, zero up to a multiple of W.
// `along`: the source's rows are neighbours in memory and `stride` leads from k to k + 1; else its
// columns are and `stride` leads from row to row.
template <int W>
static void pack(float* panel, const float* source, int64_t stride, bool along, int64_t width,
                 int64_t depth) {
  typedef float v4 __attribute__((vector_size(16)));
  typedef float v4_any __attribute__((vector_size(16), aligned(4), may_alias));
  if (along) {  // row by row of the source across all panels: it is read in order
    for (int64_t k = 0; k < depth; ++k, source += stride) {
      float* target = panel + k * W;
      int64_t i = 0;
      // rows lie pages apart, where the hardware does not read ahead
      for (int64_t line = 0; line < width; line += 16) __builtin_prefetch(source + 8 * stride + line);
      for (; i + W <= width; i += W, target += depth * W)
        __builtin_memcpy(target, source + i, W * 4);
      if (i < width)
        for (int j = 0; j < W; ++j) target[j] = i + j < width ? source[i + j] : 0.0f;
    }
    return;
  }
  for (; width > W; width -= W, panel += W * depth, source += W * stride)
    pack<W>(panel, source, stride, false, W, depth);
  int64_t k = 0;
  for (int i = (int)width; i < W; ++i)
    for (int64_t j = 0; j < depth; ++j) panel[j * W + i] = 0.0f;
  for (; k + 4 <= depth; k += 4) {
    int i = 0;
    for (; i + 4 <= width; i += 4) {  // 4 x 4 transposes
      const float* s = source + i * stride + k;
      v4 a = *(const v4_any*)s, b = *(const v4_any*)(s + stride);
      v4 c = *(const v4_any*)(s + 2 * stride), d = *(const v4_any*)(s + 3 * stride);
      v4 ab0 = __builtin_shuffle(a, b, (__typeof__(v4{} == v4{})){0, 4, 1, 5});
      v4 ab1 = __builtin_shuffle(a, b, (__typeof__(v4{} == v4{})){2, 6, 3, 7});
      v4 cd0 = __builtin_shuffle(c, d, (__typeof__(v4{} == v4{})){0, 4, 1, 5});
      v4 cd1 = __builtin_shuffle(c, d, (__typeof__(v4{} == v4{})){2, 6, 3, 7});
      float* t = panel + k * W + i;
      *(v4_any*)t = __builtin_shuffle(ab0, cd0, (__typeof__(v4{} == v4{})){0, 1, 4, 5});
      *(v4_any*)(t + W) = __builtin_shuffle(ab0, cd0, (__typeof__(v4{} == v4{})){2, 3, 6, 7});
      *(v4_any*)(t + 2 * W) = __builtin_shuffle(ab1, cd1, (__typeof__(v4{} == v4{})){0, 1, 4, 5});
      *(v4_any*)(t + 3 * W) = __builtin_shuffle(ab1, cd1, (__typeof__(v4{} == v4{})){2, 3, 6, 7});
    }
    for (; i < width; ++i)
      for (int j = 0; j < 4; ++j) panel[(k + j) * W + i] = source[i * stride + k + j];
  }
  for (; k < depth; ++k)
    for (int64_t i = 0; i < width; ++i) panel[k * W + i] = source[i * stride + k];
}

// One tile: C[rows, columns] (+)= A panel x B panel, of which the first N vectors are computed.
template <int N>
static inline void tile(const float* __restrict a, const float* __restrict b, int64_t depth,
                        float* c, int64_t ldc, int64_t rows, int64_t columns, bool accumulate,
                        const float* bias) {
  vf acc[MR][N];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) acc[i][j] = vf{};
  for (int64_t k = 0; k < depth; ++k, a += MR, b += NR) {
    vf bk[N];
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) {
      __builtin_prefetch(b + 8 * NR + j * VL);
      bk[j] = *(const vf_any*)(b + j * VL);
    }
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const vf ai = splat(a[i]);
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) acc[i][j] += ai * bk[j];
    }
  }
  if (rows == MR && columns == N * VL) {
    vf shift[N];
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) shift[j] = bias ? *(const vf_any*)(bias + j * VL) : vf{};
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) {
        float* p = c + i * ldc + j * VL;
        vf x = acc[i][j] + shift[j];
        if (accumulate) x += *(const vf_any*)p;
        *(vf_any*)p = x;
      }
    return;
  }
  float edge[MR * N * VL];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) *(vf_any*)(edge + (i * N + j) * VL) = acc[i][j];
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) {
      const float x = edge[i * N * VL + j] + (bias ? bias[j] : 0.0f);
      c[i * ldc + j] = accumulate ? c[i * ldc + j] + x : x;
    }
}

// Terms that one accumulator sums before they are added to C: shorter sums round less. C is in the
// L1 cache then, so that costs next to nothing.
constexpr int64_t TERMS = 96;

// All tiles of packed A [m, depth] x packed B [depth, n]; A's panels stay in the L1 cache.
static void tiles(int64_t m, int64_t n, int64_t depth, const float* packed_a,
                  const float* packed_b, float* c, int64_t ldc, bool accumulate,
                  const float* bias) {
  const int64_t parts = (depth + TERMS - 1) / TERMS, part = (depth + parts - 1) / parts;
  for (int64_t i = 0; i < m; i += MR)
    for (int64_t j = 0; j < n; j += NR) {
      const int64_t rows = lesser(MR, m - i), columns = lesser(NR, n - j);
      const auto one = columns <= VL ? tile<1> : tile<NV>;
      for (int64_t k = 0; k < depth; k += part)
        one(packed_a + i * depth + k * MR, packed_b + j * depth + k * NR, lesser(part, depth - k),
            c + i * ldc + j, ldc, rows, columns, accumulate || k > 0,
            bias && k == 0 ? bias + j : nullptr);
    }
}

// A product within one thread. work: at least multiply_floats(m, n, depth).
static inline int64_t multiply_floats(int64_t m, int64_t n, int64_t depth) {
  return (m + MR) * depth + (n + NR) * depth + 8 * NR;
}
static void multiply(int64_t m, int64_t n, int64_t depth, const float* a, int64_t a_row,
                     int64_t a_column, const float* b, int64_t b_row, int64_t b_column, float* c,
                     int64_t ldc, bool accumulate, float* work) {
  float* packed_b = work + (m + MR) * depth;
  pack<MR>(work, a, a_row == 1 ? a_column : a_row, a_row == 1, m, depth);
  pack<NR>(packed_b, b, b_column == 1 ? b_row : b_column, b_column == 1, n, depth);
  tiles(m, n, depth, work, packed_b, c, ldc, accumulate, nullptr);
}

// The next task: its first row in *start, its rows as result; 0 when all are taken. A task is half of
// what is left for a thread, whole panels, at most MC rows.
static inline int64_t take_rows(int64_t m, int threads, int64_t* taken, int64_t* start) {
  int64_t first = __atomic_load_n(taken, __ATOMIC_RELAXED), rows;
  do {
    if (first >= m) return 0;
    rows = ((m - first) / (2 * threads) + MR - 1) / MR * MR;
    rows = lesser(m - first, rows < MR ? MR : lesser(rows, MC));
  } while (!__atomic_compare_exchange_n(taken, &first, first + rows, true, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED));
  *start = first;
  return rows;
}

// A: element (i, k) at a[i * a_row + k * a_column], one of the two strides being 1; B likewise.
static void gemm(int64_t m, int64_t n, int64_t depth, const float* a, int64_t a_row,
                 int64_t a_column, const float* b, int64_t b_row, int64_t b_column, float* c,
                 int64_t ldc, const float* bias, bool accumulate, int threads) {
  if (m <= 0 || n <= 0) return;
  if (depth <= 0) {
    for (int64_t i = 0; i < m && !accumulate; ++i)
      for (int64_t j = 0; j < n; ++j) c[i * ldc + j] = bias ? bias[j] : 0.0f;
    return;
  }
  const int64_t passes = (depth + KC - 1) / KC;
  const int64_t kc = (depth + passes - 1) / passes;
  const int64_t panels = (n + NR - 1) / NR;
  // As many passes at a time as leave packed B in a cache: it is read anew for every task.
  const int64_t pass_floats = panels * NR * kc;
  int64_t span = kc * (PACKED_FLOATS / pass_floats > 0 ? PACKED_FLOATS / pass_floats : 1);
  span = lesser(span, depth);
  float* packed_b = (float*)__builtin_assume_aligned(scratch(panels * NR * span + 16 * NR), 64);
  int64_t taken = 0;  // rows of A that some task has
#pragma omp parallel num_threads(threads) if (m * n * depth > 100000)
  {
    float* packed_a = thread_scratch(MC * KC + 64);
    for (int64_t from = 0; from < depth; from += span) {
      const int64_t to = lesser(from + span, depth), blocks = (to - from + kc - 1) / kc;
      // Blocks of B: pass after pass, in each all panels of kc x NR.
#pragma omp for schedule(dynamic, 4)
      for (int64_t item = 0; item < blocks * panels; ++item) {
        const int64_t k0 = from + item / panels * kc, kd = lesser(kc, to - k0);
        const int64_t j0 = item % panels * NR;
        pack<NR>(packed_b + panels * NR * (k0 - from) + j0 * kd, b + k0 * b_row + j0 * b_column,
                 b_column == 1 ? b_row : b_column, b_column == 1, lesser(NR, n - j0), kd);
      }
      for (int64_t i0, rows; (rows = take_rows(m, threads, &taken, &i0)) > 0;)
        for (int64_t k0 = from; k0 < to; k0 += kc) {
          const int64_t kd = lesser(kc, to - k0);
          pack<MR>(packed_a, a + i0 * a_row + k0 * a_column, a_row == 1 ? a_column : a_row,
                   a_row == 1, rows, kd);
          for (int64_t j0 = 0; j0 < n; j0 += NC)
            tiles(rows, lesser(NC, n - j0), kd, packed_a,
                  packed_b + panels * NR * (k0 - from) + j0 * kd, c + i0 * ldc + j0, ldc,
                  accumulate || k0 > 0, bias && k0 == 0 ? bias + j0 : nullptr);
        }
      if (to < depth) {
#pragma omp barrier
#pragma omp single
        taken = 0;
      }
    }
  }
}

}  // namespace EVA_ISA
