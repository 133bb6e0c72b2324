// What the library says of its kernels: their names and addresses, the types of their arguments, and
// how structures lie in memory that Python makes; one table for each instruction set.
#pragma once
#include <stdint.h>

struct Kernel {
  const char* name;
  void* function;
  const char* signature;  // a letter for each argument: see Letter
};

struct Place {
  const char* name;  // "Structure": its size; "Structure.field": the field's offset
  int64_t bytes;
};

struct Table {
  const Kernel* kernels;  // the last one has no name
  const Place* places;    // likewise
};

Table table_base();
Table table_avx2();
Table table_avx512();

// The letters that eva_fast/ops/native/calls.py reads. A type that is not here does not compile.
template <class T> struct Letter;
template <class T> struct Letter<T*> { static constexpr char value = 'p'; };
template <> struct Letter<int32_t> { static constexpr char value = 'i'; };
template <> struct Letter<int64_t> { static constexpr char value = 'l'; };
template <> struct Letter<bool> { static constexpr char value = 'b'; };
template <> struct Letter<float> { static constexpr char value = 'f'; };
template <> struct Letter<double> { static constexpr char value = 'd'; };

template <class Function> struct Signature;
template <class... Arguments>
struct Signature<void (*)(Arguments...)> {
  static constexpr char letters[] = {Letter<Arguments>::value..., 0};
};
