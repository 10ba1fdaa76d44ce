#pragma once

#include "kernels/isa/simd.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

// y[i] = function(x[i]) for whole vectors; y may be x.
template <class T, class Function>
inline void map(const T* x, Index size, T* y, Function function) {
  using S = Simd<T>;
  Index i = 0;
  for (; i + S::lanes <= size; i += S::lanes) S::store(y + i, function(S::load(x + i)));
  if (i < size) S::store_first(y + i, function(S::load_first(x + i, size - i)), size - i);
}

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
