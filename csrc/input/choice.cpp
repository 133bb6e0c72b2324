// Which instruction set the input path uses: the best that this machine has.
#include <algorithm>

#include "export.h"
#include "input/weighted_rows.h"

namespace eva {
namespace {

void weighted_rows_plain(const uint8_t* const* rows, const int16_t* weights, int64_t taps,
                         int64_t n, uint8_t* out) {
  for (int64_t i = 0; i < n; i += kLanes) {
    int32_t sum[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) sum[l] = 1 << (kWeightBits - 1);
    for (int64_t t = 0; t < taps; ++t)
      for (int64_t l = 0; l < kLanes; ++l) sum[l] += weights[t] * rows[t][i + l];
    for (int64_t l = 0; l < kLanes; ++l)
      out[i + l] = uint8_t(std::clamp(sum[l] >> kWeightBits, 0, 255));
  }
}

enum Level { kPlain, kAvx2, kAvx512 };

Level best_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2")) {
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) return kAvx512;
    return kAvx2;
  }
#endif
  return kPlain;
}

bool use(Level level) {
  if (level > best_level()) return false;
  weighted_rows = weighted_rows_plain;
#if defined(__x86_64__)
  if (level == kAvx2) weighted_rows = weighted_rows_avx2;
  if (level == kAvx512) weighted_rows = weighted_rows_avx512;
#endif
  return true;
}

}  // namespace

WeightedRows weighted_rows;
const bool chosen = use(best_level());

}  // namespace eva

// Forces plain C++ (0), AVX2 (1) or AVX-512 (2), for tests. Returns 0 where this machine lacks it.
EVA_EXPORT int32_t eva_input_use(int32_t level) {
  return level >= 0 && level <= 2 && eva::use(eva::Level(level));
}
