// How row kernels share rows among threads and sum columns.
//
// Column sums must not depend on the number of threads or on who was quick, or a run could not be
// repeated. So rows are cut into chunks that depend on their number alone, each chunk sums into its
// own partial, and the partials are added in order.
#pragma once
#include <omp.h>
#include <string.h>

#include "memory.h"
#include "vec.h"

namespace EVA_ISA {

constexpr int64_t MAX_CHUNKS = 64;

static inline int64_t chunk_rows(int64_t rows) {
  const int64_t wanted = (rows + MAX_CHUNKS - 1) / MAX_CHUNKS;
  return wanted < 8 ? 8 : wanted;
}

// out[j] = sum over chunks of partials[chunk * width + j]
static void add_partials(const float* partials, int64_t chunks, int64_t width, float* out,
                         int threads) {
  constexpr int64_t block = 1024;
#pragma omp parallel for num_threads(threads) schedule(static) if (chunks * width > 100000)
  for (int64_t j0 = 0; j0 < width; j0 += block) {
    const int64_t count = lesser(block, width - j0);
    double sum[block] = {};  // in float32 the last few of 64 additions cost twice the error
    for (int64_t c = 0; c < chunks; ++c) {
      const float* p = partials + c * width + j0;
      for (int64_t j = 0; j < count; ++j) sum[j] += p[j];
    }
    for (int64_t j = 0; j < count; ++j) out[j0 + j] = (float)sum[j];
  }
}

// Calls f(element offset, number of elements) for each vector of a row: a whole one or the rest.
#define EVA_ROW(width, j, ...)                                     \
  do {                                                             \
    int64_t j = 0;                                                 \
    for (; j + VL <= (width); j += VL) { __VA_ARGS__(j, (int64_t)VL); } \
    if (j < (width)) { __VA_ARGS__(j, (width) - j); }              \
  } while (0)

// A vector or the rest of a row; with `count` VL the compiler drops the slow branch.
template <class T>
static inline __attribute__((always_inline)) vf take(T t, const typename T::type* p,
                                                     int64_t count) {
  return count == VL ? load(t, p) : load(t, p, count);
}
template <class T>
static inline __attribute__((always_inline)) void give(T t, typename T::type* p, vf x,
                                                       int64_t count) {
  if (count == VL) store(t, p, x);
  else store(t, p, x, count);
}

template <class T>
static inline vf rounded(T t, vf x) {  // what comes back when x is stored and read
  typename T::type lanes[VL];
  store(t, lanes, x);
  return load(t, lanes);
}
template <>
inline vf rounded(F32, vf x) { return x; }

// f(F32{}), f(BF16{}) or f(F16{}) by the code Python passes: 0, 1, 2.
#define EVA_BY_TYPE(code, T, ...)                  \
  do {                                             \
    if ((code) == 0) { typedef F32 T; __VA_ARGS__; }  \
    else if ((code) == 1) { typedef BF16 T; __VA_ARGS__; } \
    else { typedef F16 T; __VA_ARGS__; }           \
  } while (0)

}  // namespace EVA_ISA
