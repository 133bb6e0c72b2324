#include "input/resize.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "export.h"
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

}  // namespace

int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

uint8_t* room(std::vector<uint8_t>& buffer, int64_t size) {
  if (int64_t(buffer.size()) < size) buffer.resize(size);
  return buffer.data();
}

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

}  // namespace eva

// Antialiased bicubic resize, by Pillow's algorithm (its weights have 22 bits, these 14), of the box
// to planar out [3, size, size]. Channel c of pixel (y, x) is at
// data[y * row_stride + x * pixel_stride + c]; one channel is written three times. The corners of
// the box are in pixels and need not be whole. Mirrored left to right when flip is set.
EVA_EXPORT void eva_resize(const uint8_t* data, int64_t height, int64_t width, int64_t row_stride,
                           int64_t pixel_stride, int64_t channels, double left, double top,
                           double right, double bottom, int64_t size, int32_t flip, uint8_t* out) {
  using namespace eva;
  bicubic_taps(width, left, right, size, scratch.exact);
  quantise(scratch.exact, 0, scratch.across);
  bicubic_taps(height, top, bottom, size, scratch.exact);
  quantise(scratch.exact, 0, scratch.down);
  const int64_t tall = padded(height);
  uint8_t* columns = room(scratch.columns, width * pixel_stride * tall);
  transpose(data, height, width * pixel_stride, row_stride, columns, tall);
  for (int64_t c = 0; c < channels; ++c)
    filter_plane({columns + c * tall, pixel_stride * tall, width, height}, scratch.across,
                 scratch.down, size, flip != 0, out + c * size * size);
  for (int64_t c = channels; c < 3; ++c)
    std::memcpy(out + c * size * size, out, size * size);
}
