// The instruction set is chosen once: the widest this CPU runs, unless a test asks for another.
#include <string.h>

#include "../export.h"
#include "kernels.h"

namespace {

int widest() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    return 2;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
  return 0;
}

int chosen = -1;

const Kernel* table(int isa) {
#if defined(__x86_64__)
  if (isa == 2) return kernels_avx512();
  if (isa == 1) return kernels_avx2();
#endif
  return kernels_base();
}

}  // namespace

// 0 baseline, 1 AVX2, 2 AVX-512; anything else: the widest. Returns what is used from now on: never
// more than this CPU runs.
EVA_EXPORT int eva_set_isa(int isa) {
  const int most = widest();
  chosen = isa < 0 || isa > most ? most : isa;
  return chosen;
}

EVA_EXPORT int eva_isa() { return chosen < 0 ? eva_set_isa(-1) : chosen; }

// Address of a kernel for the instruction set in use; null where there is none of that name.
EVA_EXPORT void* eva_kernel(const char* name) {
  for (const Kernel* k = table(eva_isa()); k->name; ++k)
    if (strcmp(k->name, name) == 0) return k->function;
  return nullptr;
}
