// From the bytes of a JPEG to the resized crop, decoding only what the crop needs: libjpeg-turbo
// skips the rows above it and the colour conversion of the columns beside it, stops below it, and
// where the crop is large works at a half, a quarter or an eighth of the size.
//
// Everything unusual (CMYK, coarse chroma, endless scans) or damaged is reported as not handled: the caller then
// asks Pillow, which judges it. Built only where libjpeg-turbo and its headers are found (setup.py).
#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstdio>  // jpeglib.h needs it
#include <cstring>
#include <jpeglib.h>
#include <vector>

#include "export.h"
#include "input/jitter.h"
#include "input/resize.h"

namespace eva {
namespace {

// Chroma upsampling looks one sample to either side, which is two pixels; what libjpeg-turbo makes
// of a cropped row's end is not what it makes of it within the whole row.
constexpr int64_t kMargin = 4;

constexpr size_t kKeptBytes = 64 << 20;  // what a larger whole image needed is given back

struct Decoder {
  jpeg_decompress_struct info;
  jpeg_error_mgr errors;
  std::jmp_buf on_error;
  std::vector<uint8_t> pixels;

  Decoder() {
    info.err = jpeg_std_error(&errors);
    errors.error_exit = [](j_common_ptr common) {
      std::longjmp(static_cast<Decoder*>(common->client_data)->on_error, 1);
    };
    errors.emit_message = [](j_common_ptr common, int level) {
      if (level < 0) common->err->error_exit(common);  // a warning: the file is damaged
    };
    info.client_data = this;
    jpeg_create_decompress(&info);
    jpeg_save_markers(&info, JPEG_APP0 + 1, 1);  // only whether there are any
  }
  ~Decoder() { jpeg_destroy_decompress(&info); }
};

thread_local Decoder decoder;

// Whether the image's end marker is there. Searched from the end, past what cameras append: within
// the coded data of an image these two bytes cannot stand next to each other.
bool complete(const uint8_t* coded, size_t size) {
  for (const uint8_t* at = coded + size; at >= coded + 2; --at)
    if (at[-2] == 0xff && at[-1] == JPEG_EOI) return true;
  return false;
}

// Each scan of a progressive JPEG passes over all pixels again, however few its bytes: hundreds of
// them take minutes. Encoders write at most some dozens. What stands behind the image's end, other
// images or a film, has no scans of this one.
bool few_scans(const uint8_t* coded, size_t size) {
  constexpr int most = 500;
  constexpr uint8_t start_of_scan = 0xda, stuffed = 0x00, temporary = 0x01;
  int scans = 1;  // its marker is read already
  const uint8_t* const end = coded + size;
  for (const uint8_t* at = coded; scans <= most;) {
    at = static_cast<const uint8_t*>(std::memchr(at, 0xff, size_t(end - at)));
    if (!at || end - at < 4) return true;
    const uint8_t marker = *++at;
    if (marker == JPEG_EOI) return true;
    if (marker == 0xff) continue;
    ++at;
    if (marker == stuffed || marker == temporary || (marker >= JPEG_RST0 && marker < JPEG_EOI)) continue;
    scans += marker == start_of_scan;
    at += std::min<ptrdiff_t>(at[0] << 8 | at[1], end - at);
  }
  return false;
}

// Whether the chroma has at least half of luma's rows and columns. Other layouts (4:1:1, 4:1:0) lose
// too much colour when scaled, and libjpeg-turbo 2.1 makes wrong colours of a part of them.
bool fine_chroma(const jpeg_decompress_struct& info) {
  const jpeg_component_info& luma = info.comp_info[0];
  for (int i = 1; i < info.num_components; ++i) {
    const jpeg_component_info& chroma = info.comp_info[i];
    const int h = chroma.h_samp_factor, v = chroma.v_samp_factor;
    if (luma.h_samp_factor != h && luma.h_samp_factor != 2 * h) return false;
    if (luma.v_samp_factor != v && luma.v_samp_factor != 2 * v) return false;
  }
  return true;
}

bool read_header(Decoder& d, const uint8_t* data, int64_t size) {
  jpeg_mem_src(&d.info, data, static_cast<unsigned long>(size));
  if (jpeg_read_header(&d.info, TRUE) != JPEG_HEADER_OK) return false;
  const J_COLOR_SPACE space = d.info.jpeg_color_space;
  const bool known = space == JCS_GRAYSCALE || space == JCS_YCbCr || space == JCS_RGB;
  const uint8_t* const coded = d.info.src->next_input_byte;
  const size_t left = d.info.src->bytes_in_buffer;
  return known && fine_chroma(d.info) && complete(coded, left) &&
         (!d.info.progressive_mode || few_scans(coded, left));
}

// The pixels that a crop touches, and its corners among them: whole numbers unless scaled.
struct Part {
  Pixels pixels;
  double left, top, right, bottom;
};

// Not to be called with objects that need a destructor: errors leave it by longjmp. With `whole` the
// image is read as RGB with all of its rows and columns, and is told there.
bool decode(Decoder& d, const uint8_t* data, int64_t size, int64_t left, int64_t top,
            int64_t width, int64_t height, int divisor, Part& part, Pixels* whole) {
  jpeg_decompress_struct& info = d.info;
  if (setjmp(d.on_error) || !read_header(d, data, size) || left < 0 || top < 0 || width < 1 ||
      height < 1 || left + width > info.image_width || top + height > info.image_height) {
    jpeg_abort_decompress(&info);
    return false;
  }
  const bool grey = info.jpeg_color_space == JCS_GRAYSCALE && !whole;
  info.out_color_space = grey ? JCS_GRAYSCALE : JCS_RGB;
  info.scale_num = 1;
  info.scale_denom = unsigned(divisor);
  jpeg_start_decompress(&info);

  // The last pixel of a scaled image may stand for fewer of the original than the others do.
  const double scale = 1.0 / divisor, x0 = double(left) * scale, y0 = double(top) * scale;
  const double x1 = std::min(double(left + width) * scale, double(info.output_width));
  const double y1 = std::min(double(top + height) * scale, double(info.output_height));
  const int64_t x = int64_t(x0), y = int64_t(y0);
  const int64_t across = int64_t(std::ceil(x1)) - x, down = int64_t(std::ceil(y1)) - y;

  JDIMENSION column = 0, columns = info.output_width;
  if (!whole) {
    const int64_t begin = std::max<int64_t>(x - kMargin, 0);
    const int64_t end = std::min<int64_t>(x + across + kMargin, info.output_width);
    column = JDIMENSION(begin), columns = JDIMENSION(end - begin);
    jpeg_crop_scanline(&info, &column, &columns);  // to the left, to where a block begins
    if (y > 0) jpeg_skip_scanlines(&info, JDIMENSION(y));
  }
  const int64_t above = whole ? y : 0, rows = whole ? int64_t(info.output_height) : down;
  const int64_t channels = info.output_components, stride = int64_t(columns) * channels;
  uint8_t* pixels = room(d.pixels, rows * stride);
  for (int64_t row = 0; row < rows;) {
    JSAMPROW into = pixels + row * stride;
    row += jpeg_read_scanlines(&info, &into, 1);
  }
  if (whole) *whole = {pixels, rows, int64_t(columns), stride, channels, channels};
  part = {{pixels + above * stride + (x - column) * channels, down, across, stride, channels, channels},
          x0 - double(x), y0 - double(y), x1 - double(x), y1 - double(y)};
  jpeg_abort_decompress(&info);
  return true;
}

bool header(Decoder& d, const uint8_t* data, int64_t size, int64_t* out) {
  if (setjmp(d.on_error)) {
    jpeg_abort_decompress(&d.info);
    return false;
  }
  const bool known = read_header(d, data, size);
  out[0] = d.info.image_width;
  out[1] = d.info.image_height;
  out[2] = d.info.marker_list != nullptr;
  jpeg_abort_decompress(&d.info);
  return known;
}

}  // namespace
}  // namespace eva

// info [3]: width, height, whether there is a segment of EXIF or XMP data (APP1). Returns 1, or 0
// where the file is not for this decoder.
EVA_EXPORT int32_t eva_jpeg_info(const uint8_t* data, int64_t size, int64_t* info) {
  return eva::header(eva::decoder, data, size, info);
}

// The crop, in pixels as stored (before orientation), to out [3, out_size, out_size], from an
// image decoded at 1 / divisor of its size (1, 2, 4 or 8). blends: `count` eva::Blend of the whole
// image's colours, before the crop. Returns 1, or 0 as above.
EVA_EXPORT int32_t eva_jpeg_crop(const uint8_t* data, int64_t size, int64_t left, int64_t top,
                                 int64_t width, int64_t height, int32_t divisor, int64_t out_size,
                                 int32_t flip, int32_t filter, const void* blends, int64_t count,
                                 uint8_t* out) {
  using namespace eva;
  Part part;
  Pixels whole;
  if (!decode(decoder, data, size, left, top, width, height, divisor, part, count ? &whole : nullptr))
    return 0;
  if (count) {
    uint8_t* const pixels = decoder.pixels.data();
    const int64_t offset = part.pixels.data - pixels, stride = whole.row_stride;
    const int64_t top_row = offset / stride, first = offset % stride / whole.pixel_stride;
    jitter(pixels, whole.height, whole.width, stride, static_cast<const Blend*>(blends), count,
           {first, top_row, first + part.pixels.width, top_row + part.pixels.height});
  }
  resize(part.pixels, part.left, part.top, part.right, part.bottom, out_size, flip != 0,
         Filter(filter), out);
  if (count && decoder.pixels.size() > kKeptBytes) decoder.pixels = {};
  return 1;
}
