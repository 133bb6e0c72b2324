// Block-wise masks with an exact count, one independent random stream a seed.
// The arithmetic is integer but for one correctly rounded square root, so that the numpy version in
// eva_fast/data/samples/mask.py gives the same bits; change both together.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "export.h"

namespace {

constexpr uint64_t kStream = 0x6d61736b5f626c6bull;   // sets the mask draws apart from crop and flip
constexpr uint64_t kGolden = 0x9e3779b97f4a7c15ull;   // splitmix64's increment
constexpr uint64_t kTopUp = 1ull << 32;               // first draw of the top-up
constexpr int kTries = 10;                            // failures in a row that end the block phase
constexpr double kRootScale = 1.0 / (1 << 18);        // square root of area (Q16) times aspect (Q20)

uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

struct Draws {
  uint64_t key;
  explicit Draws(uint64_t seed) : key(mix(seed ^ kStream)) {}
  int64_t at(uint64_t n) const { return int64_t(mix(key + (n + 1) * kGolden) >> 32); }  // 32 bits
  int64_t below(uint64_t n, int64_t limit) const { return (at(n) * limit) >> 32; }
};

int64_t rounded_root(int64_t square) {
  return int64_t(std::floor(std::sqrt(double(square)) * kRootScale + 0.5));
}

class Masker {
 public:
  Masker(int64_t height, int64_t width, int64_t count, int64_t min_block, int64_t max_block,
         const int64_t* aspects, int64_t levels)
      : height_(height), width_(width), count_(count), min_block_(min_block), max_block_(max_block),
        aspects_(aspects), levels_(levels), mask_(height * width) {}

  void draw(uint64_t seed, int32_t* out) {
    const Draws draws(seed);
    std::fill(mask_.begin(), mask_.end(), 0);
    int64_t masked = 0;
    int failures = 0;
    for (uint64_t t = 0; masked < count_ && failures < kTries; ++t) {
      const int64_t added = block(draws, 4 * t, std::min(count_ - masked, max_block_));
      failures = added ? 0 : failures + 1;
      masked += added;
    }
    for (uint64_t n = kTopUp; masked < count_; ++n, ++masked) top_up(draws, n);
    for (int64_t i = 0; i < height_ * width_; ++i)
      if (mask_[i]) *out++ = int32_t(i);
  }

 private:
  int64_t block(const Draws& draws, uint64_t n, int64_t wanted) {
    const int64_t low = wanted < min_block_ ? wanted : min_block_;
    const int64_t high = wanted < min_block_ ? min_block_ : wanted;
    const int64_t area = (low << 16) + (((high - low) * draws.at(n)) >> 16);
    const int64_t level = draws.below(n + 1, levels_);
    const int64_t h = rounded_root(area * aspects_[level]);
    const int64_t w = rounded_root(area * aspects_[levels_ - 1 - level]);
    if (h >= height_ || w >= width_) return 0;
    uint8_t* corner = &mask_[draws.below(n + 2, height_ - h + 1) * width_ +
                             draws.below(n + 3, width_ - w + 1)];
    int64_t added = h * w;
    for (int64_t y = 0; y < h; ++y)
      for (int64_t x = 0; x < w; ++x) added -= corner[y * width_ + x];
    if (added > wanted) return 0;
    if (added)
      for (int64_t y = 0; y < h; ++y)
        for (int64_t x = 0; x < w; ++x) corner[y * width_ + x] = 1;
    return added;
  }

  int64_t neighbours(int64_t y, int64_t x) const {
    const uint8_t* at = &mask_[y * width_ + x];
    return (y > 0 && at[-width_]) + (y + 1 < height_ && at[width_]) + (x > 0 && at[-1]) +
           (x + 1 < width_ && at[1]);
  }

  void top_up(const Draws& draws, uint64_t n) {
    candidates_.clear();
    int64_t best = 0;
    for (int64_t y = 0; y < height_; ++y)
      for (int64_t x = 0; x < width_; ++x) {
        if (mask_[y * width_ + x]) continue;
        const int64_t touching = neighbours(y, x);
        if (touching > best) {
          best = touching;
          candidates_.clear();
        }
        if (touching == best) candidates_.push_back(y * width_ + x);
      }
    mask_[candidates_[draws.below(n, int64_t(candidates_.size()))]] = 1;
  }

  const int64_t height_, width_, count_, min_block_, max_block_;
  const int64_t* aspects_;
  const int64_t levels_;
  std::vector<uint8_t> mask_;
  std::vector<int64_t> candidates_;
};

}  // namespace

// seeds [batch]; aspects [levels] Q20, ascending and symmetric (a[levels-1-i] = 1/a[i]);
// out [batch, count]: the masked patches' indices, ascending.
EVA_EXPORT void eva_block_masks(const uint64_t* seeds, int64_t batch, int64_t height, int64_t width,
                                int64_t count, int64_t min_block, int64_t max_block,
                                const int64_t* aspects, int64_t levels, int32_t* out) {
  Masker masker(height, width, count, min_block, max_block, aspects, levels);
  for (int64_t i = 0; i < batch; ++i) masker.draw(seeds[i], out + i * count);
}
