// Antialiased resize by Pillow's algorithm (its weights have 22 bits, these 14).
#pragma once
#include <cstdint>
#include <vector>

#include "input/filter.h"

namespace eva {

// Channel c of pixel (y, x) is at data[y * row_stride + x * pixel_stride + c].
struct Pixels {
  const uint8_t* data;
  int64_t height, width, row_stride, pixel_stride, channels;
};

// The box of the image to planar out [3, size, size], mirrored left to right when `flip`; one channel
// is written three times. The corners of the box are in pixels and need not be whole.
void resize(const Pixels& in, double left, double top, double right, double bottom, int64_t size,
            bool flip, Filter filter, uint8_t* out);

// At least `size` bytes; buffers are kept a thread, not freed for every image.
uint8_t* room(std::vector<uint8_t>& buffer, int64_t size);

}  // namespace eva
