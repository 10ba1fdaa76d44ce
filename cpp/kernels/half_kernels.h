#pragma once

#include <cstdint>

#include "core/index.h"

namespace blasformer {

// Whole arrays of half types to float32 and back, as core/half.h does it for one number, and products by
// them.
struct HalfKernels {
  using Widen = void (*)(const std::uint16_t* x, Index size, float* y);
  Widen widen_float16, widen_bfloat16;
  using Narrow = void (*)(const float* x, Index size, std::uint16_t* y);
  Narrow narrow_float16, narrow_bfloat16;

  // RowKernels<float>::few_rows_linear for a weight in bfloat16, which is widened as it is read: the same
  // bits as for one that was widened before, for half the reading.
  using FewRowsLinear = void (*)(const float* x, Index rows, Index features, const std::uint16_t* weight,
                                 Index weight_stride, const float* bias, Index outputs, float* y,
                                 Index y_stride);
  FewRowsLinear few_rows_linear_bfloat16;
};

// Those of active_isa().
const HalfKernels& half_kernels();

}  // namespace blasformer
