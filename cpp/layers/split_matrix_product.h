#pragma once

#include <cstdint>

#include "core/index.h"
#include "core/tensor.h"
#include "kernels/product_kernels.h"
#include "kernels/split_product.h"
#include "layers/write.h"

namespace blasformer {

// The kernels that make such a product at current_precision(), or null where the ProductKernels are the
// better way.
const SplitProductKernels* split_kernels_for(Index rows, Index columns, Index depth);

// matrix_product of float32 by these. False, and nothing is done, where there are none.
bool split_matrix_product(Index rows, Index columns, Index depth, MatrixView<float> left,
                          MatrixView<float> right, const float* bias, Write write, float* c, Index c_stride);
bool split_matrix_product(Index rows, Index columns, Index depth, MatrixView<float> left,
                          MatrixView<std::uint16_t> right, const float* bias, Write write, float* c,
                          Index c_stride);

// The right side of such products, in the parts of these kernels, as many as are not all zero: of bfloat16
// numbers that is one. See PackedRight.
class PackedSplitRight {
 public:
  template <class Stored>  // float, or std::uint16_t: bfloat16
  PackedSplitRight(const SplitProductKernels& kernels, Index depth, Index columns, MatrixView<Stored> right);

  const SplitProductKernels* kernels() const { return kernels_; }
  bool can_begin_at(Index column) const;
  Index nbytes() const { return memory_.size(); }
  void product(Index rows, Index columns, MatrixView<float> left, Index first_column, const float* bias,
               float* c, Index c_stride) const;

 private:
  const SplitProductKernels* kernels_;
  Index depth_, panels_, bundle_;
  Tensor<unsigned char> memory_;
};

}  // namespace blasformer
