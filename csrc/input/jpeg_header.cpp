#include <algorithm>
#include <cstring>

#include "input/jpeg.h"

namespace eva {
namespace {

// A segment's bytes; every read is checked.
struct Segment {
  Bytes bytes;
  int64_t at = 0;
  bool good = true;

  int byte() {
    if (at >= bytes.size) return good = false, 0;
    return bytes.data[at++];
  }
  int word() {
    const int high = byte();
    return high << 8 | byte();
  }
  const uint8_t* take(int64_t n) {
    if (n > bytes.size - at) return good = false, nullptr;
    at += n;
    return bytes.data + at - n;
  }
};

bool read_quantisation(Segment s, JpegHeader& header) {
  while (s.good && s.at < s.bytes.size) {
    const int kind = s.byte(), wide = kind >> 4, table = kind & 15;
    if (wide > 1 || table > 3) return false;
    for (int k = 0; k < 64; ++k)
      header.quantisation[table][k] = uint16_t(wide ? s.word() : s.byte());
    header.quantisation_defined[table] = s.good;
  }
  return s.good;
}

bool read_huffman(Segment s, HuffmanTable* tables, bool* defined) {
  while (s.good && s.at < s.bytes.size) {
    const int kind = s.byte(), ac = kind >> 4, table = kind & 15;
    const uint8_t* counts = s.take(16);
    if (ac > 1 || table > 3 || !counts) return false;
    int n = 0;
    for (int i = 0; i < 16; ++i) n += counts[i];
    const uint8_t* symbols = n <= 256 ? s.take(n) : nullptr;
    if (!symbols || !tables[4 * ac + table].define(counts, symbols, n)) return false;
    defined[4 * ac + table] = true;
  }
  return s.good;
}

bool read_frame(Segment s, JpegHeader& header) {
  if (header.components || s.byte() != 8) return false;
  header.height = s.word();
  header.width = s.word();
  header.components = s.byte();
  if (header.components != 1 && header.components != 3) return false;
  for (int c = 0; c < header.components; ++c) {
    Component& component = header.component[c];
    component.id = s.byte();
    const int sampling = s.byte();
    component.across = sampling >> 4;
    component.down = sampling & 15;
    component.quantisation = s.byte();
    if (component.quantisation > 3) return false;
  }
  Component *y = header.component, *cb = y + 1, *cr = y + 2;
  if (header.components == 1) {
    y->across = y->down = 1;  // a single component is never interleaved: its factors mean nothing
  } else {
    const bool chroma_one = cb->across * cb->down * cr->across * cr->down == 1;
    const bool luma_known = (y->across == 1 && y->down == 1) || (y->across == 2 && y->down == 1) ||
                            (y->across == 2 && y->down == 2);
    if (!chroma_one || !luma_known) return false;
  }
  return s.good && header.width > 0 && header.height > 0;
}

// The EXIF orientation tag (0x0112) of the first image directory, else 1.
int read_orientation(Segment s) {
  const uint8_t* name = s.take(6);
  if (!name || std::memcmp(name, "Exif\0", 6) != 0) return 1;
  const uint8_t* tiff = s.bytes.data + 6;
  const int64_t size = s.bytes.size - 6;
  if (size < 8) return 1;
  const bool little = tiff[0] == 'I';
  const auto number = [&](int64_t at, int bytes) -> int64_t {
    if (at < 0 || at + bytes > size) return -1;
    int64_t value = 0;
    for (int i = 0; i < bytes; ++i) value = value << 8 | tiff[at + (little ? bytes - 1 - i : i)];
    return value;
  };
  const int64_t directory = number(4, 4);
  const int64_t entries = number(directory, 2);
  for (int64_t i = 0; i < entries; ++i) {
    const int64_t entry = directory + 2 + 12 * i;
    if (number(entry, 2) != 0x0112) continue;
    const int64_t value = number(entry + 8, 2);
    return value >= 1 && value <= 8 ? int(value) : 1;
  }
  return 1;
}

bool read_scan(Segment s, JpegHeader& header, const bool* defined) {
  if (!header.components || s.byte() != header.components) return false;
  for (int c = 0; c < header.components; ++c) {
    Component& component = header.component[c];
    if (s.byte() != component.id) return false;
    const int selected = s.byte();
    component.dc = selected >> 4;
    component.ac = selected & 15;
    if (component.dc > 3 || component.ac > 3 || !defined[component.dc] ||
        !defined[4 + component.ac] || !header.quantisation_defined[component.quantisation])
      return false;
  }
  const int first = s.byte(), last = s.byte(), approximation = s.byte();
  return s.good && first == 0 && last == 63 && approximation == 0;
}

}  // namespace

bool HuffmanTable::define(const uint8_t* counts, const uint8_t* symbols, int n) {
  uint8_t given[16 + 256] = {};
  std::memcpy(given, counts, 16);
  std::memcpy(given + 16, symbols, n);
  if (defined && std::memcmp(given, spec, sizeof spec) == 0) return true;
  defined = false;
  std::memcpy(spec, given, sizeof spec);
  std::memset(fast, 0, sizeof fast);
  int32_t code = 0;
  int index = 0;
  for (int length = 1; length <= 16; ++length) {
    offset[length] = index - code;
    for (int i = 0; i < counts[length - 1]; ++i, ++index, ++code) {
      if (code >= 1 << length) return false;
      if (length > kFastBits) continue;
      const int symbol = symbols[index], size = symbol & 15, spare = kFastBits - length;
      uint32_t entry = uint32_t(length | symbol << 8);
      if (size)
        entry = uint32_t(length | size << 4 | (symbol >> 4) << 8) |
                uint32_t(1 - (1 << size)) << 16;
      std::fill(fast + (code << spare), fast + ((code + 1) << spare), entry);
    }
    limit[length] = code << (16 - length);
    code <<= 1;
  }
  return defined = true;
}

bool read_header(Bytes file, JpegHeader& header, HuffmanTable* tables) {
  if (file.size < 4 || file.data[0] != 0xff || file.data[1] != 0xd8) return false;
  bool defined[8] = {};
  int adobe_transform = -1;
  bool jfif = false;
  for (int64_t at = 2; at + 4 <= file.size;) {
    if (file.data[at] != 0xff) return false;
    const int marker = file.data[at + 1];
    if (marker == 0xff) {  // fill byte
      ++at;
      continue;
    }
    const int64_t length = file.data[at + 2] << 8 | file.data[at + 3];
    if (length < 2 || length > file.size - at - 2) return false;
    const Segment segment{{file.data + at + 4, length - 2}};
    const uint8_t* data = segment.bytes.data;
    at += 2 + length;
    bool good = true;
    if (marker == 0xdb) good = read_quantisation(segment, header);
    else if (marker == 0xc4) good = read_huffman(segment, tables, defined);
    else if (marker == 0xc0 || marker == 0xc1) good = read_frame(segment, header);
    else if (marker == 0xdd && length == 4) header.restart_interval = data[0] << 8 | data[1];
    else if (marker == 0xe0) jfif |= length >= 7 && std::memcmp(data, "JFIF", 5) == 0;
    else if (marker == 0xe1 && header.orientation == 1)
      header.orientation = read_orientation(segment);
    else if (marker == 0xee && length >= 14 && std::memcmp(data, "Adobe", 5) == 0)
      adobe_transform = data[11];
    else if (marker == 0xda) {
      const bool rgb = header.component[0].id == 'R' && header.component[1].id == 'G';
      if (header.components == 3 && !jfif && (adobe_transform == 0 || rgb)) return false;
      header.scan = at;
      return read_scan(segment, header, defined);
    } else good = (marker & 0xf0) == 0xe0 || marker == 0xfe;  // application data, comments
    if (!good) return false;
  }
  return false;
}

}  // namespace eva
