// Work memory of the kernels: one growing block a thread and purpose, kept between calls.
#pragma once
#include <stdint.h>

// For the thread that calls a kernel; shared with the threads of its parallel region.
float* scratch(int64_t floats);
// For the thread that asks, inside a parallel region; distinct from scratch().
float* thread_scratch(int64_t floats);
