#include "export.h"

// Raised whenever a signature changes, so that a stale build is noticed instead of crashing.
EVA_EXPORT int eva_native_version() { return 1; }
