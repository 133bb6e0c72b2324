#include "memory.h"

#include <stdlib.h>

namespace {
struct Block {
  float* data = nullptr;
  int64_t size = 0;
  float* at_least(int64_t floats) {
    if (floats > size) {
      free(data);
      size = floats + floats / 8;
      void* memory = nullptr;
      if (posix_memalign(&memory, 64, (size_t)size * 4) != 0) abort();
      data = (float*)memory;
    }
    return data;
  }
  ~Block() { free(data); }
};
thread_local Block shared_block, own_block;
}  // namespace

float* scratch(int64_t floats) { return shared_block.at_least(floats); }
float* thread_scratch(int64_t floats) { return own_block.at_least(floats); }
