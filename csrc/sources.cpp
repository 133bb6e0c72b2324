#include "export.h"

// The hash of the sources that the library was built from, given by setup.py: eva_fast/native.py
// compares it with those beside it and refuses a stale build.
EVA_EXPORT const char* eva_sources() { return EVA_SOURCES; }
