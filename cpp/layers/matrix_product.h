#pragma once

// c = left right, the product that layers consist of, on all cores.

#include "core/index.h"
#include "core/tensor.h"
#include "kernels/product_kernels.h"
#include "layers/write.h"

namespace blasformer {

// c (rows, columns), whose rows are c_stride apart, = left (rows, depth) right (depth, columns) + bias, or
// +=; bias (columns,) or null. c is apart from the others.
template <class T>
void matrix_product(Index rows, Index columns, Index depth, MatrixView<T> left, MatrixView<T> right,
                    const T* bias, Write write, T* c, Index c_stride);

// The right side of products, packed for the kernels in use when it was made: for a matrix that many products
// read. The same bits either way.
template <class T>
class PackedRight {
 public:
  PackedRight(Index depth, Index columns, MatrixView<T> right);

  // Whether products are made by these kernels still, or such products by kernels that pack at all.
  bool fits() const;
  static bool wanted();
  // Whether a product may begin at this column.
  bool can_begin_at(Index column) const { return column % kernels_->panel == 0; }
  Index nbytes() const { return memory_.size() * static_cast<Index>(sizeof(T)); }

  // matrix_product with columns [first_column, first_column + columns) of it.
  void product(Index rows, Index columns, MatrixView<T> left, Index first_column, const T* bias, T* c,
               Index c_stride) const;

 private:
  const ProductKernels<T>* kernels_;
  Index depth_;
  Tensor<T> memory_;
};

}  // namespace blasformer
