#include "input/filter.h"

#include <algorithm>
#include <cmath>

#include "input/weighted_rows.h"

namespace eva {
namespace {

double keys(double x) {  // Keys' kernel with a = -1/2, as Pillow's
  x = std::fabs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

double triangle(double x) { return std::max(1 - std::fabs(x), 0.0); }

double sinc(double x) {
  const double angle = x * 3.14159265358979323846;
  return x == 0 ? 1 : std::sin(angle) / angle;
}

double lanczos(double x) { return std::fabs(x) < 3 ? sinc(x) * sinc(x / 3) : 0; }

double hamming(double x) {  // a sinc in Hamming's window
  return std::fabs(x) < 1 ? sinc(x) * (0.54 + 0.46 * std::cos(x * 3.14159265358979323846)) : 0;
}

// In the order of Filter.
struct Kernel {
  double (*at)(double);
  double radius;
};
constexpr Kernel kKernels[] = {{keys, 2}, {triangle, 1}, {lanczos, 3}, {hamming, 1}};

}  // namespace

void resize_taps(Filter kind, int64_t in, double low, double high, int64_t out,
                 Taps<double>& filter) {
  const auto [kernel, radius] = kKernels[int32_t(kind)];
  const double scale = (high - low) / double(out), stretch = std::max(scale, 1.0);
  const double support = radius * stretch, shrink = 1 / stretch;
  filter.taps = std::min(int64_t(std::ceil(support)) * 2 + 1, in);
  filter.first.resize(out);
  filter.weights.assign(out * filter.taps, 0);
  for (int64_t i = 0; i < out; ++i) {
    const double centre = low + (double(i) + 0.5) * scale;
    const int64_t begin = std::clamp(int64_t(centre - support + 0.5), int64_t(0), in - 1);
    const int64_t end = std::clamp(int64_t(centre + support + 0.5), begin + 1, in);
    const int64_t n = std::min(end - begin, filter.taps);
    double* weights = &filter.weights[i * filter.taps];
    double total = 0;
    for (int64_t t = 0; t < n; ++t)
      total += weights[t] = kernel((double(begin + t) - centre + 0.5) * shrink);
    for (int64_t t = 0; t < n; ++t) weights[t] /= total;
    filter.first[i] = begin;
  }
}

void quantise(const Taps<double>& filter, Taps<int16_t>& fixed) {
  const int64_t out = int64_t(filter.first.size());
  fixed.taps = (filter.taps + 1) & ~int64_t(1);
  fixed.first = filter.first;
  fixed.weights.assign(out * fixed.taps, 0);
  for (int64_t i = 0; i < out; ++i) {
    // Differences of rounded running sums: the rounding errors of many taps cancel.
    double sum = 0;
    int32_t before = 0;
    for (int64_t t = 0; t < filter.taps; ++t) {
      sum += filter.weights[i * filter.taps + t] * (1 << kWeightBits);
      const int32_t now = int32_t(std::floor(sum + 0.5));
      fixed.weights[i * fixed.taps + t] = int16_t(now - before);
      before = now;
    }
  }
}

}  // namespace eva
