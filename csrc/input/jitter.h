// Colour jitter of 8-bit RGB pixels, to the byte as Pillow's ImageEnhance has it.
#pragma once
#include <cstdint>

namespace eva {

// Numbered as in eva_fast/data/samples/jitter.py.
enum class Colour : int32_t { kBrightness = 0, kContrast = 1, kSaturation = 2 };

// One blend: with black, with the image's mean grey, with each pixel's own grey. A factor of 1 leaves
// the pixels as they are, one of 0 leaves the other image, above 1 goes away from it.
struct Blend {
  Colour kind;
  float factor;
};

// The blends one after the other on the pixels of a part [top, bottom) x [left, right) of an image of
// interleaved RGB, in place. The mean grey is that of the whole image, after the blends before it.
struct Rectangle {
  int64_t left, top, right, bottom;
};
void jitter(uint8_t* pixels, int64_t height, int64_t width, int64_t row_stride, const Blend* blends,
            int64_t count, const Rectangle& part);

}  // namespace eva
