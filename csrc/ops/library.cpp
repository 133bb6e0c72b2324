// The instruction set is chosen once: the widest this CPU runs, unless a test asks for another.
#include <string.h>

#include "../export.h"
#include "kernels.h"

EVA_EXPORT int eva_set_isa(int isa);

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

Table table(int isa) {
#if defined(__x86_64__)
  if (isa == 2) return table_avx512();
  if (isa == 1) return table_avx2();
#endif
  return table_base();
}

int in_use() { return chosen < 0 ? eva_set_isa(-1) : chosen; }

const Kernel* find(const char* name) {
  for (const Kernel* k = table(in_use()).kernels; k->name; ++k)
    if (strcmp(k->name, name) == 0) return k;
  return nullptr;
}

}  // namespace

// 0 baseline, 1 AVX2, 2 AVX-512; anything else: the widest. Returns what is used from now on: never
// more than this CPU runs.
EVA_EXPORT int eva_set_isa(int isa) {
  const int most = widest();
  chosen = isa < 0 || isa > most ? most : isa;
  return chosen;
}

EVA_EXPORT int eva_isa() { return in_use(); }

// Address of a kernel for the instruction set in use; null where there is none of that name.
EVA_EXPORT void* eva_kernel(const char* name) {
  const Kernel* found = find(name);
  return found ? found->function : nullptr;
}

// The types of its arguments, a letter each as in kernels.h; null where there is none of that name.
EVA_EXPORT const char* eva_kernel_signature(const char* name) {
  const Kernel* found = find(name);
  return found ? found->signature : nullptr;
}

// Size of "Structure" or offset of "Structure.field" in bytes; -1 for another name.
EVA_EXPORT int64_t eva_offset(const char* name) {
  for (const Place* p = table(in_use()).places; p->name; ++p)
    if (strcmp(p->name, name) == 0) return p->bytes;
  return -1;
}
