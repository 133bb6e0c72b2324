#include <immintrin.h>

#include <cstring>

#include "input/weighted_rows.h"

namespace eva {

void weighted_rows_avx2(const uint8_t* const* rows, const int16_t* weights, int64_t taps, int64_t n,
                        uint8_t* out) {
  const __m256i half = _mm256_set1_epi32(1 << (kWeightBits - 1));
  for (int64_t i = 0; i < n; i += 16) {
    __m256i low = half, high = half;
    for (int64_t t = 0; t < taps; t += 2) {
      const __m256i a = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)(rows[t] + i)));
      const __m256i b = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)(rows[t + 1] + i)));
      int32_t pair;
      std::memcpy(&pair, weights + t, 4);
      const __m256i w = _mm256_set1_epi32(pair);
      low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), w));
      high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), w));
    }
    const __m256i words = _mm256_packs_epi32(_mm256_srai_epi32(low, kWeightBits),
                                             _mm256_srai_epi32(high, kWeightBits));
    const __m128i bytes =
        _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128((__m128i*)(out + i), bytes);
  }
}

}  // namespace eva
