#include <algorithm>
#include <cstring>

#include "input/jpeg.h"

namespace eva {
namespace {

// Zeros behind the unstuffed scan: more than a unit (six blocks of 64 coefficients of at most 32
// bits) can consume, so the position need be checked only once a unit.
constexpr int64_t kSlack = 6 * 64 * 4 + 64;

// Coefficient k of the file is at row v, column u of the block. Runs may point past the end in
// damaged files; all of those go to place 64.
constexpr uint8_t kZigzag[64 + 16] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33,
    40, 48, 41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36,
    29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54,
    47, 55, 62, 63, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64};

// The entropy-coded bytes without stuffing, and where each restart interval begins in them.
struct Scan {
  std::vector<uint8_t> bytes;
  std::vector<int64_t> intervals;  // and, last, the end

  // False where the scan does not run to the end-of-image marker or holds others than restarts.
  bool unstuff(Bytes file, int64_t at) {
    if (int64_t(bytes.size()) < file.size - at + kSlack) bytes.resize(file.size - at + kSlack);
    intervals.assign(1, 0);
    uint8_t* out = bytes.data();
    const uint8_t *in = file.data + at, *end = file.data + file.size;
    while (true) {
      const auto* mark = static_cast<const uint8_t*>(std::memchr(in, 0xff, end - in));
      if (!mark || mark + 1 >= end) return false;
      std::memcpy(out, in, mark - in);
      out += mark - in;
      in = mark + 2;
      const int code = mark[1];
      if (code == 0) {
        *out++ = 0xff;
      } else if (code >= 0xd0 && code <= 0xd7) {
        if (code - 0xd0 != int(intervals.size() - 1) % 8) return false;
        intervals.push_back(out - bytes.data());
      } else if (code == 0xd9) {
        intervals.push_back(out - bytes.data());
        std::memset(out, 0, kSlack);
        return true;
      } else {
        return false;
      }
    }
  }
};

class BitReader {
 public:
  void start(const uint8_t* at) {
    next_ = at;
    buffer_ = 0;
    bits_ = 0;
  }
  const uint8_t* position() const { return next_ - (bits_ >> 3); }

  void refill() {  // to at least 56 bits
    uint64_t word;
    std::memcpy(&word, next_, 8);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    buffer_ |= word >> bits_;
    next_ += (63 - bits_) >> 3;
    bits_ |= 56;
  }
  uint32_t peek(int n) const { return uint32_t(buffer_ >> (64 - n)); }  // 1 <= n <= 32
  void skip(int n) {
    buffer_ <<= n;
    bits_ -= n;
  }

  // The symbol after a look-up whose entry has no value; -1 for a code not in the table.
  int symbol(const HuffmanTable& table, uint32_t entry) {
    if (entry) {
      skip(entry & 255);
      return entry >> 8 & 255;
    }
    const int32_t code = int32_t(peek(16));
    for (int length = kFastBits + 1; length <= 16; ++length)
      if (code < table.limit[length]) {
        skip(length);
        return table.spec[16 + (code >> (16 - length)) + table.offset[length]];
      }
    return -1;
  }
  // Takes code and value bits of an entry that has them.
  int take(uint32_t entry) {
    const int length = entry & 15, size = entry >> 4 & 15;
    const uint64_t bits = buffer_ << length;
    skip(length + size);
    const int32_t negative = int32_t(~int64_t(bits) >> 63);
    return int32_t(bits >> (64 - size)) + (negative & (int32_t(entry) >> 16));
  }
  int value(int size) {  // 1 <= size <= 15
    const int bits = int(peek(size));
    skip(size);
    return bits < 1 << (size - 1) ? bits - (1 << size) + 1 : bits;
  }

 private:
  const uint8_t* next_ = nullptr;
  uint64_t buffer_ = 0;
  int bits_ = 0;
};

struct Block {
  alignas(32) int16_t coefficients[64 + 16];
  bool flat;  // nothing but the mean
};

// Reads a block; keep = false only moves past it. False: damaged.
template <bool keep>
inline bool read_block(BitReader& in, const HuffmanTable& dc, const HuffmanTable& ac, int& mean,
                       Block& block) {
  in.refill();
  const uint32_t first = dc.fast[in.peek(kFastBits)];
  if (int32_t(first) < 0) {
    mean = int16_t(mean + in.take(first));
  } else {
    const int size = in.symbol(dc, first);
    if (size < 0 || size > 15) return false;
    if (size) mean = int16_t(mean + in.value(size));
  }
  if (keep) {
    std::memset(block.coefficients, 0, sizeof block.coefficients);
    block.coefficients[0] = int16_t(mean);
  }
  int k = 1;
  while (true) {
    in.refill();
    // 56 bits are enough for a coefficient by look-up (25) and a second of any length (31).
    for (int i = 0; i < 2; ++i) {
      const uint32_t entry = ac.fast[in.peek(kFastBits)];
      int value;
      if (int32_t(entry) < 0) {
        value = in.take(entry);
        k += entry >> 8 & 15;
        if (keep) block.coefficients[kZigzag[k]] = int16_t(value);
        if (++k >= 64) {
          if (keep) block.flat = false;
          return true;
        }
        continue;
      }
      const int symbol = in.symbol(ac, entry);
      if (symbol <= 0) {
        if (keep) block.flat = k == 1;
        return symbol == 0;
      }
      const int size = symbol & 15;
      k += symbol >> 4;
      if (size) {
        value = in.value(size);
        if (keep) block.coefficients[kZigzag[k]] = int16_t(value);
      }
      if (++k >= 64) {
        if (keep) block.flat = false;
        return true;
      }
      break;
    }
  }
}

int64_t units(int64_t size, int64_t of) { return (size + of - 1) / of; }

}  // namespace

bool decode_scan(Bytes file, const JpegHeader& header, const HuffmanTable* tables, int64_t left,
                 int64_t top, int64_t width, int64_t height, Plane* planes) {
  static thread_local Scan scan;
  if (!scan.unstuff(file, header.scan)) return false;

  // The minimum coded units the crop touches; half-resolution chroma looks one sample further.
  const int64_t across = header.component[0].across, down = header.component[0].down;
  const int64_t unit_width = 8 * across, unit_height = 8 * down;
  const int64_t columns = units(header.width, unit_width), rows = units(header.height, unit_height);
  const int64_t margin_x = across - 1, margin_y = down - 1;
  const int64_t x0 = std::max(left - margin_x, int64_t(0)) / unit_width;
  const int64_t x1 = std::min(units(left + width + margin_x, unit_width), columns);
  const int64_t y0 = std::max(top - margin_y, int64_t(0)) / unit_height;
  const int64_t y1 = std::min(units(top + height + margin_y, unit_height), rows);

  float scale[3][64];
  for (int c = 0; c < header.components; ++c) {
    const Component& component = header.component[c];
    for (int k = 0; k < 64; ++k) {
      const int place = kZigzag[k];
      scale[c][place] = header.quantisation[component.quantisation][k] *
                        kDctScale[place / 8] * kDctScale[place % 8] / 8;
    }
    Plane& plane = planes[c];
    plane.left = x0 * 8 * component.across;
    plane.top = y0 * 8 * component.down;
    plane.width = (x1 - x0) * 8 * component.across;
    plane.height = (y1 - y0) * 8 * component.down;
    plane.stride = (plane.height + 31) / 32 * 32;
    const int64_t size = plane.width * plane.stride;
    if (int64_t(plane.data.size()) < size) plane.data.resize(size);
  }

  const int64_t interval = header.restart_interval ? header.restart_interval : columns * rows;
  const int64_t begin = (y0 * columns + x0) / interval * interval;
  const int64_t end = (y1 - 1) * columns + x1;
  BitReader in;
  Block block;
  int mean[3] = {};
  const uint8_t* limit = nullptr;
  for (int64_t unit = begin; unit < end; ++unit) {
    if (unit % interval == 0) {
      const int64_t index = unit / interval;
      if (index + 1 >= int64_t(scan.intervals.size())) return false;
      in.start(scan.bytes.data() + scan.intervals[index]);
      limit = scan.bytes.data() + scan.intervals[index + 1];
      std::fill(mean, mean + 3, 0);
    }
    const int64_t ux = unit % columns - x0, uy = unit / columns - y0;
    const bool wanted = ux >= 0 && ux < x1 - x0 && uy >= 0;
    for (int c = 0; c < header.components; ++c) {
      const Component& component = header.component[c];
      const HuffmanTable &dc = tables[component.dc], &ac = tables[4 + component.ac];
      Plane& plane = planes[c];
      for (int by = 0; by < component.down; ++by)
        for (int bx = 0; bx < component.across; ++bx) {
          if (!wanted) {
            if (!read_block<false>(in, dc, ac, mean[c], block)) return false;
            continue;
          }
          if (!read_block<true>(in, dc, ac, mean[c], block)) return false;
          uint8_t* out = plane.data.data() +
                         (ux * component.across + bx) * 8 * plane.stride +
                         (uy * component.down + by) * 8;
          if (block.flat) {
            const float level = float(block.coefficients[0]) * scale[c][0] + 128.5f;
            const int sample = int(std::clamp(level, 0.0f, 255.0f));
            for (int x = 0; x < 8; ++x) std::memset(out + x * plane.stride, sample, 8);
          } else {
            inverse_dct(block.coefficients, scale[c], out, plane.stride);
          }
        }
    }
    if (in.position() > limit) return false;
  }
  return true;
}

}  // namespace eva
