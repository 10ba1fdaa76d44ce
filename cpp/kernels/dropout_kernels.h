#pragma once

#include <cstdint>

#include "core/index.h"

namespace blasformer {

template <class T>
struct DropoutKernels {
  // y[i] = x[i] * scale if random word i reaches `threshold`, else 0, plus residual[i] unless that is null:
  // elements [first, last), first a multiple of 4. Words 4 k to 4 k + 3 are philox(counter = k, key = seed).
  // y may be x or residual.
  void (*dropout)(const T* x, Index first, Index last, std::uint32_t threshold, T scale, std::uint64_t seed,
                  const T* residual, T* y);
};

// Those of active_isa().
template <class T>
const DropoutKernels<T>& dropout_kernels();

}  // namespace blasformer
