// Names and addresses of kernels; one table for each instruction set.
#pragma once

struct Kernel {
  const char* name;
  void* function;
};

const Kernel* kernels_base();
const Kernel* kernels_avx2();
const Kernel* kernels_avx512();
