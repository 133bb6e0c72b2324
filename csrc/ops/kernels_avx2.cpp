#include "table.h"

Table table_avx2() { return {avx2::kernels, avx2::places}; }
