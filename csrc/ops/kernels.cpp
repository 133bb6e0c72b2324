#include "table.h"

Table table_base() { return {base::kernels, base::places}; }
