#pragma once
#include <cstdint>
#include <vector>

#include "input/filter.h"

namespace eva {

// Rounds a row length up to what weighted_rows works on.
int64_t padded(int64_t n);

// At least `size` bytes; buffers are kept a thread, not freed for every image.
uint8_t* room(std::vector<uint8_t>& buffer, int64_t size);

// One channel of an image lying on its side: column x begins at data + x * stride and holds
// padded(height) readable bytes.
struct Columns {
  const uint8_t* data;
  int64_t stride, width, height;
};

// Applies `across` to the columns, rounds to 8 bits, then `down` to the rows: Pillow's order.
// out [size, size] row-major, mirrored when `flip`.
void filter_plane(const Columns& in, const Taps<int16_t>& across, const Taps<int16_t>& down,
                  int64_t size, bool flip, uint8_t* out);

}  // namespace eva
