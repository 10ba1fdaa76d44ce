#pragma once

// c = left right, the product that layers consist of, on all cores.

#include <cstdint>
#include <optional>

#include "core/index.h"
#include "core/tensor.h"
#include "kernels/product_kernels.h"
#include "layers/split_matrix_product.h"
#include "layers/write.h"

namespace blasformer {

// c (rows, columns), whose rows are c_stride apart, = left (rows, depth) right (depth, columns) + bias, or
// +=; bias (columns,) or null. c is apart from the others.
template <class T>
void matrix_product(Index rows, Index columns, Index depth, MatrixView<T> left, MatrixView<T> right,
                    const T* bias, Write write, T* c, Index c_stride);

// The same for a right side in bfloat16, dense along the depth: the bits are those of one that was widened
// before.
void matrix_product(Index rows, Index columns, Index depth, MatrixView<float> left,
                    MatrixView<std::uint16_t> right, const float* bias, Write write, float* c,
                    Index c_stride);

// The right side of products, packed for the kernels that make them: for a matrix that many products read.
// The same bits either way.
template <class T>
class PackedRight {
 public:
  // For the kernels that make such a product now.
  PackedRight(Index rows, Index columns, Index depth, MatrixView<T> right);

  // Whether such a product is made by kernels that pack; by those of this copy.
  static bool is_wanted(Index rows, Index columns, Index depth);
  bool fits(Index rows, Index columns) const;
  bool is_split() const { return split_.has_value(); }
  // Whether a product may begin at this column.
  bool can_begin_at(Index column) const;
  Index nbytes() const;

  // matrix_product with columns [first_column, first_column + columns) of it.
  void product(Index rows, Index columns, MatrixView<T> left, Index first_column, const T* bias, T* c,
               Index c_stride) const;

 private:
  std::optional<PackedSplitRight> split_;  // or else:
  const ProductKernels<T>* kernels_ = nullptr;
  Index depth_;
  Tensor<T> memory_;
};

}  // namespace blasformer
