// Transposes a matrix of bytes: out[x * out_stride + y] = in[y * in_stride + x].
#pragma once
#include <cstdint>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace eva {

#ifdef __SSE2__
// Four rounds of interleaving rows that lie eight apart: after each, one more bit of the row number
// has moved into the column number.
inline void transpose_16x16(const uint8_t* in, int64_t in_stride, uint8_t* out,
                            int64_t out_stride) {
  __m128i a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm_loadu_si128((const __m128i*)(in + i * in_stride));
  for (int round = 0; round < 2; ++round) {
    for (int i = 0; i < 8; ++i) {
      b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 8]);
      b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 8]);
    }
    for (int i = 0; i < 8; ++i) {
      a[2 * i] = _mm_unpacklo_epi8(b[i], b[i + 8]);
      a[2 * i + 1] = _mm_unpackhi_epi8(b[i], b[i + 8]);
    }
  }
  for (int i = 0; i < 16; ++i) _mm_storeu_si128((__m128i*)(out + i * out_stride), a[i]);
}
#endif

inline void transpose(const uint8_t* in, int64_t height, int64_t width, int64_t in_stride,
                      uint8_t* out, int64_t out_stride) {
  int64_t y = 0;
#ifdef __SSE2__
  for (; y + 16 <= height; y += 16) {
    int64_t x = 0;
    for (; x + 16 <= width; x += 16)
      transpose_16x16(in + y * in_stride + x, in_stride, out + x * out_stride + y, out_stride);
    for (; x < width; ++x)
      for (int64_t i = 0; i < 16; ++i) out[x * out_stride + y + i] = in[(y + i) * in_stride + x];
  }
#endif
  for (; y < height; ++y)
    for (int64_t x = 0; x < width; ++x) out[x * out_stride + y] = in[y * in_stride + x];
}

}  // namespace eva
