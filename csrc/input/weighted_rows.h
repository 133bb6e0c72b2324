// out[i] = clip8((sum over t of weights[t] * rows[t][i] + half) >> kWeightBits), i < n.
// taps is even, n a multiple of kLanes; every row and out may be read or written n bytes far.
// Integer throughout, so that all versions give the same bytes.
#pragma once
#include <cstdint>

namespace eva {

constexpr int kWeightBits = 14;
constexpr int64_t kLanes = 32;

using WeightedRows = void (*)(const uint8_t* const* rows, const int16_t* weights, int64_t taps,
                              int64_t n, uint8_t* out);

extern WeightedRows weighted_rows;  // the one for this machine
void weighted_rows_avx2(const uint8_t* const* rows, const int16_t* weights, int64_t taps, int64_t n,
                        uint8_t* out);
void weighted_rows_avx512(const uint8_t* const* rows, const int16_t* weights, int64_t taps,
                          int64_t n, uint8_t* out);

}  // namespace eva
