// Antialiased filters: how every output position is a weighted sum of input positions.
#pragma once
#include <cstdint>
#include <vector>

namespace eva {

// Output i = sum over t < taps of weights[i * taps + t] * input[first[i] + t].
template <class Weight>
struct Taps {
  int64_t taps = 0;
  std::vector<int64_t> first;
  std::vector<Weight> weights;
};

// Numbered as in eva_fast/data/decode/filters.py.
enum class Filter : int32_t { kBicubic = 0, kBilinear = 1, kLanczos = 2, kHamming = 3 };

// Pillow's filter of that kind for resizing [low, high) of an axis of `in` pixels to `out` pixels;
// pixels outside the axis do not exist, the weights of the others are normalised.
void resize_taps(Filter kind, int64_t in, double low, double high, int64_t out,
                 Taps<double>& filter);

// Weights in kWeightBits fixed point with an even number of taps, for weighted_rows. Taps added to
// make it even have weight 0. Each output's weights add up to exactly 1, so flat areas stay flat.
void quantise(const Taps<double>& filter, Taps<int16_t>& fixed);

}  // namespace eva
