#include <immintrin.h>

#include "input/dct.h"
#include "input/jpeg.h"

namespace eva {
namespace {

inline __attribute__((always_inline)) void transpose_8x8(__m256* r) {
  __m256 t[8], s[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    s[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    s[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    s[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    s[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2f128_ps(s[i], s[i + 4], 0x20);
    r[i + 4] = _mm256_permute2f128_ps(s[i], s[i + 4], 0x31);
  }
}

// Four columns of eight samples, to 8 bits with saturation.
inline __attribute__((always_inline)) void store_4(const __m256* r, uint8_t* out, int64_t stride) {
  const __m256i low = _mm256_packs_epi32(_mm256_cvtps_epi32(r[0]), _mm256_cvtps_epi32(r[1]));
  const __m256i high = _mm256_packs_epi32(_mm256_cvtps_epi32(r[2]), _mm256_cvtps_epi32(r[3]));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order);
  const __m128i first = _mm256_castsi256_si128(bytes), last = _mm256_extracti128_si256(bytes, 1);
  _mm_storel_epi64((__m128i*)out, first);
  _mm_storeh_pd((double*)(out + stride), _mm_castsi128_pd(first));
  _mm_storel_epi64((__m128i*)(out + 2 * stride), last);
  _mm_storeh_pd((double*)(out + 3 * stride), _mm_castsi128_pd(last));
}

}  // namespace

void inverse_dct_avx2(const int16_t* coefficients, const float* scale, uint8_t* out,
                      int64_t stride) {
  __m256 r[8];
  for (int v = 0; v < 8; ++v) {
    const __m128i row = _mm_loadu_si128((const __m128i*)(coefficients + v * 8));
    r[v] = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(row)),
                         _mm256_loadu_ps(scale + v * 8));
  }
  inverse_dct_8(r);
  transpose_8x8(r);
  r[0] = _mm256_add_ps(r[0], _mm256_set1_ps(128));
  inverse_dct_8(r);
  store_4(r, out, stride);
  store_4(r + 4, out + 4 * stride, stride);
}

}  // namespace eva
