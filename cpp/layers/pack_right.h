#pragma once

// Packing the right side of a product by SplitProductKernels.

#include <cstdint>

#include "core/index.h"
#include "core/workspace.h"
#include "kernels/half_kernels.h"
#include "kernels/split_product.h"

namespace blasformer {

inline void pack_right(const SplitProductKernels& kernels, MatrixView<float> right, Index depth,
                       Index columns, void* packed) {
  kernels.pack_right(right, depth, columns, packed);
}

// Columns in bfloat16, dense along the depth, are widened first: few at a time, which stay in the caches.
inline void pack_right(const SplitProductKernels& kernels, MatrixView<std::uint16_t> right, Index depth,
                       Index columns, void* packed) {
  struct OfWidened;
  const Index stride = depth + 16;  // no power of two: columns do not share sets of the cache
  float* const widened =
      static_cast<float*>(workspace_for<OfWidened>(columns * stride * static_cast<Index>(sizeof(float))));
  for (Index column = 0; column < columns; ++column)
    half_kernels().widen_bfloat16(right.from(0, column).data, depth, widened + column * stride);
  kernels.pack_right(MatrixView<float>{widened, 1, stride}, depth, columns, packed);
}

}  // namespace blasformer
