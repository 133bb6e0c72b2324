// Vectors of the instruction set this file is compiled for, and what kernels do with them.
//
// Every kernel is written once in a header and compiled once per instruction set, inside its own
// namespace EVA_ISA. Nothing here may call inline functions of the standard library: the linker
// would keep one copy of them for all instruction sets, perhaps the one this CPU cannot run.
#pragma once
#include <stdint.h>

#if defined(__AVX512F__)
#define EVA_ISA avx512
#define EVA_VL 16
#elif defined(__AVX2__)
#define EVA_ISA avx2
#define EVA_VL 8
#else
#define EVA_ISA base
#define EVA_VL 4
#endif
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace EVA_ISA {

constexpr int VL = EVA_VL;
typedef float vf __attribute__((vector_size(VL * 4)));
typedef int32_t vi __attribute__((vector_size(VL * 4)));
typedef uint32_t vu __attribute__((vector_size(VL * 4)));
typedef uint16_t vh __attribute__((vector_size(VL * 2)));
// The same at any address.
typedef float vf_any __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef uint16_t vh_any __attribute__((vector_size(VL * 2), aligned(2), may_alias));

static inline vf splat(float x) { return x - vf{}; }  // x - 0 is x, -0 included
static inline int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
static inline vf select(vi condition, vf a, vf b) {
  return (vf)(((vi)a & condition) | ((vi)b & ~condition));
}
static inline vf absolute(vf x) { return (vf)((vi)x & 0x7fffffff); }
static inline vf maximum(vf a, vf b) { return select(a > b, a, b); }
static inline vf minimum(vf a, vf b) { return select(a < b, a, b); }

// Sum of the lanes, pairwise: halves are added until one lane is left.
static inline float sum(vf x) {
#if EVA_VL == 16
  return _mm512_reduce_add_ps((__m512)x);
#elif EVA_VL == 8
  __m128 half = _mm256_castps256_ps128((__m256)x) + _mm256_extractf128_ps((__m256)x, 1);
  half += _mm_movehl_ps(half, half);
  return half[0] + half[1];
#else
  return (x[0] + x[2]) + (x[1] + x[3]);
#endif
}

// ---- storage types: what lies in memory; arithmetic is always float32 ----
struct F32 { typedef float type; };
struct BF16 { typedef uint16_t type; };
struct F16 { typedef uint16_t type; };

static inline float bits_to_float(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}
static inline uint32_t float_to_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}

// IEEE half precision by integer arithmetic, round to nearest even.
static inline float half_to_float(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
  if (rest >= 0x7c00) return bits_to_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  // Scaling by 2^112 moves the exponent's bias and makes subnormals normal, exactly.
  return bits_to_float(sign | float_to_bits(bits_to_float(rest << 13) * 5.192296858534828e+33f));
}
static inline uint16_t float_to_half(float x) {
  uint32_t bits = float_to_bits(x), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
  if (rest > 0x7f800000) return (uint16_t)(sign | 0x7e00);
  if (rest >= 0x477ff000) return (uint16_t)(sign | 0x7c00);
  if (rest < 0x38800000)  // subnormal half: adding 0.5 lets the FPU round at the right place
    return (uint16_t)(sign | (float_to_bits(bits_to_float(rest) + 0.5f) - 0x3f000000));
  rest += 0xc8000000 + 0xfff + (rest >> 13 & 1);
  return (uint16_t)(sign | rest >> 13);
}
static inline uint16_t float_to_bfloat(float x) {
  uint32_t bits = float_to_bits(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline float get(F32, const float* p) { return *p; }
static inline float get(BF16, const uint16_t* p) { return bits_to_float((uint32_t)*p << 16); }
static inline float get(F16, const uint16_t* p) { return half_to_float(*p); }
static inline void put(F32, float* p, float x) { *p = x; }
static inline void put(BF16, uint16_t* p, float x) { *p = float_to_bfloat(x); }
static inline void put(F16, uint16_t* p, float x) { *p = float_to_half(x); }

static inline vf load(F32, const float* p) { return *(const vf_any*)p; }
static inline vf load(BF16, const uint16_t* p) {
  vh h = *(const vh_any*)p;
  return (vf)(__builtin_convertvector(h, vu) << 16);
}
static inline vf load(F16, const uint16_t* p) {
#if EVA_VL == 16
  return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif EVA_VL == 8
  return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  vf x;
  for (int i = 0; i < VL; ++i) x[i] = half_to_float(p[i]);
  return x;
#endif
}
static inline void store(F32, float* p, vf x) { *(vf_any*)p = x; }
static inline void store(BF16, uint16_t* p, vf x) {
  vu bits = (vu)x;
  vu rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  vu quiet = bits >> 16 | 0x40;
  vu nan = (vu)((bits & 0x7fffffff) > 0x7f800000);
  vu chosen = (quiet & nan) | (rounded & ~nan);
  *(vh_any*)p = __builtin_convertvector(chosen, vh);
}
static inline void store(F16, uint16_t* p, vf x) {
#if EVA_VL == 16
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
#elif EVA_VL == 8
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < VL; ++i) p[i] = float_to_half(x[i]);
#endif
}
// The last count (< VL) elements of a row; lanes beyond them read as zero and are not written.
template <class T>
static inline vf load(T t, const typename T::type* p, int64_t count) {
  float lanes[VL] = {};
  for (int64_t i = 0; i < count && i < VL; ++i) lanes[i] = get(t, p + i);
  return *(const vf_any*)lanes;
}
template <class T>
static inline void store(T t, typename T::type* p, vf x, int64_t count) {
  float lanes[VL];
  *(vf_any*)lanes = x;
  for (int64_t i = 0; i < count && i < VL; ++i) put(t, p + i, lanes[i]);
}

}  // namespace EVA_ISA
