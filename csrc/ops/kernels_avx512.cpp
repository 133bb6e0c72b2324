#include "table.h"

const Kernel* kernels_avx512() { return avx512::kernels; }
