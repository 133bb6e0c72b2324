#include "table.h"

const Kernel* kernels_avx2() { return avx2::kernels; }
