#include "input/jitter.h"

#include <cstring>
#include <vector>

#include "export.h"
#include "input/resize.h"

namespace eva {
namespace {

constexpr int64_t kChannels = 3;
thread_local std::vector<uint8_t> line;

// ITU-R 601's luma in 16-bit fixed point, as Pillow's conversion to grey.
int grey_of(const uint8_t* p) { return (p[0] * 19595 + p[1] * 38470 + p[2] * 7471 + 0x8000) >> 16; }

// from + factor (to - from), cut off, not rounded.
uint8_t blended(int from, int to, float factor) {
  const float value = float(from) + factor * float(to - from);
  return value <= 0 ? 0 : value >= 255 ? 255 : uint8_t(value);
}

// What a blend makes of each value where the other image is flat: black, or a grey.
struct Flat {
  uint8_t of[256];
  Flat() = default;
  Flat(int other, float factor) {
    for (int value = 0; value < 256; ++value) of[value] = blended(other, value, factor);
  }
};

struct Prepared {
  Colour kind;
  float factor;
  Flat flat;
};

void apply(uint8_t* pixels, int64_t count, const Prepared& blend) {
  if (blend.kind != Colour::kSaturation) {
    for (int64_t i = 0; i < kChannels * count; ++i) pixels[i] = blend.flat.of[pixels[i]];
    return;
  }
  for (uint8_t* p = pixels; p < pixels + kChannels * count; p += kChannels) {
    const int grey = grey_of(p);
    for (int64_t c = 0; c < kChannels; ++c) p[c] = blended(grey, p[c], blend.factor);
  }
}

// The image's mean grey after the blends before, rounded.
int mean_grey(const uint8_t* pixels, int64_t height, int64_t width, int64_t row_stride,
              const Prepared* blends, int64_t count) {
  uint8_t* const row = room(line, kChannels * width);
  int64_t sum = 0;
  for (int64_t y = 0; y < height; ++y) {
    std::memcpy(row, pixels + y * row_stride, size_t(kChannels * width));
    for (int64_t i = 0; i < count; ++i) apply(row, width, blends[i]);
    for (int64_t x = 0; x < width; ++x) sum += grey_of(row + kChannels * x);
  }
  return int(double(sum) / double(height * width) + 0.5);
}

}  // namespace

void jitter(uint8_t* pixels, int64_t height, int64_t width, int64_t row_stride, const Blend* blends,
            int64_t count, const Rectangle& part) {
  std::vector<Prepared> prepared;
  for (int64_t i = 0; i < count; ++i) {
    const auto [kind, factor] = blends[i];
    int other = 0;
    if (kind == Colour::kContrast)
      other = mean_grey(pixels, height, width, row_stride, prepared.data(), i);
    prepared.push_back({kind, factor, Flat(other, factor)});
  }
  for (int64_t y = part.top; y < part.bottom; ++y)
    for (const Prepared& blend : prepared)
      apply(pixels + y * row_stride + kChannels * part.left, part.right - part.left, blend);
}

}  // namespace eva

// eva::jitter of a whole image, for Python.
EVA_EXPORT void eva_jitter(uint8_t* pixels, int64_t height, int64_t width, int64_t row_stride,
                           const void* blends, int64_t count) {
  eva::jitter(pixels, height, width, row_stride, static_cast<const eva::Blend*>(blends), count,
              {0, 0, width, height});
}
