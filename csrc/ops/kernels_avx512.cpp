#include "table.h"

Table table_avx512() { return {avx512::kernels, avx512::places}; }
