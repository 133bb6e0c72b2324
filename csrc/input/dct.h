// One-dimensional inverse DCT of eight values: Arai, Agui and Nakajima (1988), five multiplications,
// with the scale factors kDctScale taken out. V is float or a vector of floats.
#pragma once

namespace eva {

template <class V>
inline __attribute__((always_inline)) void inverse_dct_8(V* x) {
  const V even0 = x[0] + x[4], even1 = x[0] - x[4];
  const V even2 = x[2] + x[6], even3 = (x[2] - x[6]) * 1.414213562f - even2;
  const V a0 = even0 + even2, a3 = even0 - even2, a1 = even1 + even3, a2 = even1 - even3;

  const V z13 = x[5] + x[3], z10 = x[5] - x[3], z11 = x[1] + x[7], z12 = x[1] - x[7];
  const V z5 = (z10 + z12) * 1.847759065f;
  const V b7 = z11 + z13;
  const V b6 = z5 - z10 * 2.613125930f - b7;
  const V b5 = (z11 - z13) * 1.414213562f - b6;
  const V b4 = z5 - z12 * 1.082392200f - b5;

  x[0] = a0 + b7, x[7] = a0 - b7;
  x[1] = a1 + b6, x[6] = a1 - b6;
  x[2] = a2 + b5, x[5] = a2 - b5;
  x[3] = a3 + b4, x[4] = a3 - b4;
}

}  // namespace eva
