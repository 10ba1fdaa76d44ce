#pragma once

#include <cstdint>

#include "core/index.h"

namespace blasformer {

// Whole arrays of half types to float32 and back, as core/half.h does it for one number.
struct HalfKernels {
  using Widen = void (*)(const std::uint16_t* x, Index size, float* y);
  Widen widen_float16, widen_bfloat16;
  using Narrow = void (*)(const float* x, Index size, std::uint16_t* y);
  Narrow narrow_float16, narrow_bfloat16;
};

// Those of active_isa().
const HalfKernels& half_kernels();

}  // namespace blasformer
