#include <algorithm>
#include <cmath>

#include "input/dct.h"
#include "input/jpeg.h"

namespace eva {

void inverse_dct_plain(const int16_t* coefficients, const float* scale, uint8_t* out,
                       int64_t stride) {
  float block[8][8];  // [u][y] after the pass over v
  for (int u = 0; u < 8; ++u) {
    for (int v = 0; v < 8; ++v) block[u][v] = coefficients[v * 8 + u] * scale[v * 8 + u];
    inverse_dct_8(block[u]);
  }
  for (int y = 0; y < 8; ++y) {
    float line[8];
    for (int u = 0; u < 8; ++u) line[u] = block[u][y];
    line[0] += 128;
    inverse_dct_8(line);
    for (int x = 0; x < 8; ++x)
      out[x * stride + y] = uint8_t(std::nearbyintf(std::clamp(line[x], 0.0f, 255.0f)));
  }
}

}  // namespace eva
