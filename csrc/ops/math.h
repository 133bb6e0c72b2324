// exp and the normal distribution in float32 vectors.
#pragma once
#include "vec.h"

namespace EVA_ISA {

// exp(x) for x <= 88, below -87.3 zero: 2^n exp(r), |r| <= ln(2)/2, exp(r) by its series to r^7.
static inline vf exponential(vf x) {
  const float log2e = 1.44269504f, ln2_high = 0.693145752f, ln2_low = 1.42860677e-6f;
  const vi tiny = x < -87.3f;
  x = minimum(x, splat(88.0f));
  const vf magic = splat(12582912.0f);  // 1.5 2^23: adding it rounds to an integer
  vf shifted = x * log2e + magic;
  vf n = shifted - magic;
  vf r = x - n * ln2_high;
  r = r - n * ln2_low;
  vf p = splat(1.0f / 5040.0f);
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * (r * r) + r;
  p = p + 1.0f;
  vf power = (vf)((((vi)shifted) << 23) + (vi)splat(1.0f));
  return select(tiny, vf{}, p * power);
}

// Upper tail of the standard normal distribution at |z|, and its density there.
//
// Q(z) = density(z) R(z) with Mills' ratio R(z) = sqrt(pi/2) erfcx(z / sqrt 2), here a polynomial
// in t = 1 / (1 + 0.3 z), fitted for the least maximal relative error (6e-8) on 0 <= z <= 14. The
// tail keeps its relative accuracy, which (1 + erf) / 2 loses for negative z.
static inline vf upper_tail(vf z, vf* density) {
  z = absolute(z);
  vf t = 1.0f / (1.0f + 0.3f * z);
  vf p = splat(0.0962003917f);
  p = p * t - 0.424037874f;
  p = p * t + 0.573168337f;
  p = p * t - 0.191775993f;
  p = p * t + 0.357285291f;
  p = p * t + 0.237335742f;
  p = p * t + 0.305609137f;
  p = p * t + 0.299511194f;
  p = p * t + 1.79706494e-5f;
  *density = exponential(z * z * -0.5f) * 0.398942280f;
  return p * *density;
}

// The normal distribution function at z.
static inline vf normal_cdf(vf z, vf* density) {
  vf tail = upper_tail(z, density);
  return select(z < 0.0f, tail, 1.0f - tail);
}

static inline vf root(vf x) {
#if EVA_VL == 16
  return (vf)_mm512_sqrt_ps((__m512)x);
#elif EVA_VL == 8
  return (vf)_mm256_sqrt_ps((__m256)x);
#else
  for (int i = 0; i < VL; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

}  // namespace EVA_ISA
