#include "input/resize.h"

#include <algorithm>
#include <cstring>

#include "export.h"
#include "input/filter.h"
#include "input/transpose.h"
#include "input/weighted_rows.h"

namespace eva {
namespace {

// Kept a thread, so that a worker does not go back to the system for every image.
struct Scratch {
  std::vector<uint8_t> columns, narrow, lines;
  std::vector<const uint8_t*> rows;
  Taps<double> exact;
  Taps<int16_t> across, down;
};

thread_local Scratch scratch;
constexpr int64_t kKeptBytes = 16 << 20;  // what a larger crop needed is given back

// Rounds a row length up to what weighted_rows works on.
int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// One channel of an image lying on its side: column x begins at data + x * stride and holds
// padded(height) readable bytes.
struct Columns {
  const uint8_t* data;
  int64_t stride, width, height;
};

// Applies `across` to the columns, rounds to 8 bits, then `down` to the rows: Pillow's order.
// out [size, size] row-major, mirrored when `flip`.
void filter_plane(const Columns& in, const Taps<int16_t>& across, const Taps<int16_t>& down,
                  int64_t size, bool flip, uint8_t* out) {
  const int64_t tall = padded(in.height), wide = padded(size);
  scratch.rows.resize(std::max(across.taps, down.taps));
  const uint8_t** rows = scratch.rows.data();
  uint8_t* narrow = room(scratch.narrow, size * tall);
  uint8_t* lines = room(scratch.lines, (in.height + 1) * wide);
  uint8_t* line = lines + in.height * wide;
  for (int64_t x = 0; x < size; ++x) {
    for (int64_t t = 0; t < across.taps; ++t)  // past the edge the weights are 0
      rows[t] = in.data + std::min(across.first[x] + t, in.width - 1) * in.stride;
    weighted_rows(rows, &across.weights[x * across.taps], across.taps, tall,
                  narrow + (flip ? size - 1 - x : x) * tall);
  }
  transpose(narrow, size, in.height, tall, lines, wide);
  for (int64_t y = 0; y < size; ++y) {
    for (int64_t t = 0; t < down.taps; ++t)
      rows[t] = lines + std::min(down.first[y] + t, in.height - 1) * wide;
    weighted_rows(rows, &down.weights[y * down.taps], down.taps, wide, line);
    std::memcpy(out + y * size, line, size);
  }
}

}  // namespace

uint8_t* room(std::vector<uint8_t>& buffer, int64_t size) {
  if (int64_t(buffer.size()) < size) buffer.resize(size);
  return buffer.data();
}

void resize(const Pixels& in, double left, double top, double right, double bottom, int64_t size,
            bool flip, Filter filter, uint8_t* out) {
  resize_taps(filter, in.width, left, right, size, scratch.exact);
  quantise(scratch.exact, scratch.across);
  resize_taps(filter, in.height, top, bottom, size, scratch.exact);
  quantise(scratch.exact, scratch.down);
  const int64_t tall = padded(in.height), area = size * size;
  uint8_t* columns = room(scratch.columns, in.width * in.pixel_stride * tall);
  transpose(in.data, in.height, in.width * in.pixel_stride, in.row_stride, columns, tall);
  for (int64_t c = 0; c < in.channels; ++c)
    filter_plane({columns + c * tall, in.pixel_stride * tall, in.width, in.height}, scratch.across,
                 scratch.down, size, flip, out + c * area);
  for (int64_t c = in.channels; c < 3; ++c) std::memcpy(out + c * area, out, area);
  if (int64_t(scratch.columns.size()) > kKeptBytes) scratch = Scratch();
}

}  // namespace eva

// eva::resize for Python.
EVA_EXPORT void eva_resize(const uint8_t* data, int64_t height, int64_t width, int64_t row_stride,
                           int64_t pixel_stride, int64_t channels, double left, double top,
                           double right, double bottom, int64_t size, int32_t flip,
                           int32_t filter, uint8_t* out) {
  eva::resize({data, height, width, row_stride, pixel_stride, channels}, left, top, right, bottom,
              size, flip != 0, eva::Filter(filter), out);
}
