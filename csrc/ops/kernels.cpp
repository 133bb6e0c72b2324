#include "table.h"

const Kernel* kernels_base() { return base::kernels; }
