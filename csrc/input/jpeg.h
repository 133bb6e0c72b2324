// The common kind of JPEG, decoded only where a crop needs it: baseline or extended sequential
// Huffman coding, 8 bits, one scan, grey or YCbCr with chroma at full (4:4:4), half (4:2:2) or
// quarter (4:2:0) resolution. Everything else, and everything damaged, is reported as not handled:
// the caller then asks a complete decoder. Source: ITU-T T.81; colour and upsampling as libjpeg's.
#pragma once
#include <cstdint>
#include <vector>

namespace eva {

struct Bytes {
  const uint8_t* data;
  int64_t size;
};

constexpr int kFastBits = 10;

// Code table with a direct look-up of the next kFastBits bits. An entry for a code that fits is
// negative where a value follows: bits 0-3 the code's length, 4-7 the value's, 8-11 the zeros before
// it, 16-31 what makes a value without its leading one negative, 1 - 2^length. Where none follows:
// bits 0-3 the code's length, 8-15 the symbol. 0: the code is longer.
struct HuffmanTable {
  uint8_t spec[16 + 256] = {};  // counts by length, then symbols: as in the file
  bool defined = false;
  uint32_t fast[1 << kFastBits];
  int32_t limit[17];   // first code beyond those of this length, aligned to 16 bits
  int32_t offset[17];  // index of a length's first symbol minus its first code

  bool define(const uint8_t* counts, const uint8_t* symbols, int n);  // false: not a prefix code
};

struct Component {
  int id = 0, across = 1, down = 1;      // sampling factors
  int quantisation = 0, dc = 0, ac = 0;  // tables
};

struct JpegHeader {
  int64_t width = 0, height = 0;
  int components = 0;
  Component component[3];
  int orientation = 1;  // EXIF, 1 to 8
  int64_t restart_interval = 0;
  uint16_t quantisation[4][64];  // in zigzag order
  bool quantisation_defined[4] = {};
  int64_t scan = 0;  // where the entropy-coded bytes begin
};

// Reads all markers up to the scan. The Huffman tables (dc 0-3, ac 4-7) are kept from image to
// image, as most files have the same ones. False: not handled.
bool read_header(Bytes file, JpegHeader& header, HuffmanTable* tables);

// The samples of one component around a crop, on their side: sample (y, x) of the component is at
// data[(x - left) * stride + y - top].
struct Plane {
  std::vector<uint8_t> data;
  int64_t left = 0, top = 0, width = 0, height = 0, stride = 0;
};

// Decodes what the crop [left, left + width) x [top, top + height), in pixels, depends on.
bool decode_scan(Bytes file, const JpegHeader& header, const HuffmanTable* tables, int64_t left,
                 int64_t top, int64_t width, int64_t height, Plane* planes);

// 8x8 inverse DCT of coefficients[v * 8 + u] (u horizontal frequency) times scale, plus 128, rounded
// and clipped: sample (y, x) to out[x * stride + y].
using InverseDct = void (*)(const int16_t* coefficients, const float* scale, uint8_t* out,
                            int64_t stride);
extern InverseDct inverse_dct;  // the one for this machine
void inverse_dct_plain(const int16_t* coefficients, const float* scale, uint8_t* out,
                       int64_t stride);
void inverse_dct_avx2(const int16_t* coefficients, const float* scale, uint8_t* out,
                      int64_t stride);

// What turns a quantisation table into `scale`: the factors of Arai, Agui and Nakajima's DCT.
constexpr float kDctScale[8] = {1.0f,       1.3870399f, 1.3065630f, 1.1758756f,
                                1.0f,       0.7856950f, 0.5411961f, 0.2758994f};

}  // namespace eva
