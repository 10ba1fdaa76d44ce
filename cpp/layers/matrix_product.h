#pragma once

// c = left right, the product that layers consist of, on all cores.

#include <cstdint>
#include <memory>

#include "core/index.h"
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
  virtual ~PackedRight() = default;

  // Whether such a product is made by the kernels of this copy.
  virtual bool fits(Index rows, Index columns) const = 0;
  virtual bool is_split() const = 0;
  // Whether a product may begin at this column.
  virtual bool can_begin_at(Index column) const = 0;
  virtual Index nbytes() const = 0;

  // matrix_product with columns [first_column, first_column + columns) of it.
  virtual void product(Index rows, Index columns, MatrixView<T> left, Index first_column, const T* bias, T* c,
                       Index c_stride) const = 0;
};

// Packed for the kernels that make such a product now; null where those of OpenBLAS do, which pack nothing.
template <class T>
std::shared_ptr<const PackedRight<T>> packed_right(Index rows, Index columns, Index depth,
                                                   MatrixView<T> right);

// The same for a right side in bfloat16, which stays so: half the memory.
std::shared_ptr<const PackedRight<float>> packed_right(Index rows, Index columns, Index depth,
                                                       MatrixView<std::uint16_t> right);

}  // namespace blasformer
