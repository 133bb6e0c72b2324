#include <immintrin.h>

#include <cstring>

#include "input/weighted_rows.h"

namespace eva {

void weighted_rows_avx512(const uint8_t* const* rows, const int16_t* weights, int64_t taps,
                          int64_t n, uint8_t* out) {
  const __m512i half = _mm512_set1_epi32(1 << (kWeightBits - 1));
  for (int64_t i = 0; i < n; i += 32) {
    __m512i low = half, high = half;
    for (int64_t t = 0; t < taps; t += 2) {
      const __m512i a = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)(rows[t] + i)));
      const __m512i b = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)(rows[t + 1] + i)));
      int32_t pair;
      std::memcpy(&pair, weights + t, 4);
      const __m512i w = _mm512_set1_epi32(pair);
      low = _mm512_add_epi32(low, _mm512_madd_epi16(_mm512_unpacklo_epi16(a, b), w));
      high = _mm512_add_epi32(high, _mm512_madd_epi16(_mm512_unpackhi_epi16(a, b), w));
    }
    const __m512i words = _mm512_packs_epi32(_mm512_srai_epi32(low, kWeightBits),
                                             _mm512_srai_epi32(high, kWeightBits));
    const __m512i positive = _mm512_max_epi16(words, _mm512_setzero_si512());
    _mm256_storeu_si256((__m256i*)(out + i), _mm512_cvtusepi16_epi8(positive));
  }
}

}  // namespace eva
