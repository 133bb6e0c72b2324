// From the bytes of a JPEG to the resized crop, touching only what the crop needs. Luma and chroma
// are resized each at its own resolution (resizing and chroma upsampling are both linear, so the
// filter of one is folded into the other) and become RGB only at the size of the crop.
#include <algorithm>

#include "export.h"
#include "input/jpeg.h"
#include "input/resize.h"

namespace eva {
namespace {

struct Scratch {
  HuffmanTable tables[8];
  Plane planes[3];
  Taps<double> across, down, composed;
  Taps<int16_t> fixed_across, fixed_down;
};

thread_local Scratch scratch;

int64_t samples(int64_t pixels, bool halved) { return halved ? (pixels + 1) / 2 : pixels; }

// BT.601 full range as libjpeg's, to a sixteenth of a level: each factor is in 13 bits, the colour
// difference in 7, and the high half of the product keeps four.
void to_rgb(uint8_t* planes, int64_t n) {
  uint8_t *y = planes, *cb = planes + n, *cr = planes + 2 * n;
  const auto times = [](int16_t colour, int16_t factor) {
    return int16_t((int32_t(colour) * factor) >> 16);
  };
  const auto byte = [](int16_t value) {
    return uint8_t(std::clamp<int16_t>(int16_t((value + 8) >> 4), 0, 255));
  };
  for (int64_t i = 0; i < n; ++i) {
    const int16_t luma = int16_t(y[i] << 4);
    const int16_t blue = int16_t((cb[i] - 128) * 128), red = int16_t((cr[i] - 128) * 128);
    y[i] = byte(int16_t(luma + times(red, 11485)));
    cb[i] = byte(int16_t(luma - times(blue, 2819) - times(red, 5850)));
    cr[i] = byte(int16_t(luma + times(blue, 14516)));
  }
}

}  // namespace
}  // namespace eva

// info [3]: width, height, EXIF orientation. Returns 1, or 0 where this decoder does not handle the
// file, damaged ones included.
EVA_EXPORT int32_t eva_jpeg_info(const uint8_t* data, int64_t size, int64_t* info) {
  eva::JpegHeader header;
  if (!eva::read_header({data, size}, header, eva::scratch.tables)) return 0;
  info[0] = header.width;
  info[1] = header.height;
  info[2] = header.orientation;
  return 1;
}

// The crop, in pixels as stored (before EXIF orientation), to out [3, out_size, out_size].
// Returns 1, or 0 where this decoder does not handle the file.
EVA_EXPORT int32_t eva_jpeg_crop(const uint8_t* data, int64_t size, int64_t left, int64_t top,
                                 int64_t width, int64_t height, int64_t out_size, int32_t flip,
                                 uint8_t* out) {
  using namespace eva;
  JpegHeader header;
  if (!read_header({data, size}, header, scratch.tables)) return 0;
  if (left < 0 || top < 0 || width < 1 || height < 1 || left + width > header.width ||
      top + height > header.height)
    return 0;
  if (!decode_scan({data, size}, header, scratch.tables, left, top, width, height, scratch.planes))
    return 0;
  bicubic_taps(width, 0, double(width), out_size, scratch.across);
  bicubic_taps(height, 0, double(height), out_size, scratch.down);
  const int64_t area = out_size * out_size;
  for (int c = 0; c < header.components; ++c) {
    const Plane& plane = scratch.planes[c];
    const bool half_x = header.component[c].across < header.component[0].across;
    const bool half_y = header.component[c].down < header.component[0].down;
    if (c < 2) {  // both chroma planes have the same geometry
      on_component(scratch.across, left, half_x, samples(header.width, half_x), scratch.composed);
      quantise(scratch.composed, -plane.left, scratch.fixed_across);
      on_component(scratch.down, top, half_y, samples(header.height, half_y), scratch.composed);
      quantise(scratch.composed, -plane.top, scratch.fixed_down);
    }
    filter_plane({plane.data.data(), plane.stride, plane.width, plane.height},
                 scratch.fixed_across, scratch.fixed_down, out_size, flip != 0, out + c * area);
  }
  if (header.components == 3) {
    to_rgb(out, area);
  } else {
    std::copy(out, out + area, out + area);
    std::copy(out, out + area, out + 2 * area);
  }
  return 1;
}
