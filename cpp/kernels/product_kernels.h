#pragma once

#include "core/index.h"

namespace blasformer {

// A matrix that is read where it lies: element (i, j) is data[i * row_stride + j * column_stride], and one of
// the strides is 1.
template <class T>
struct MatrixView {
  const T* data;
  Index row_stride, column_stride;
  MatrixView from(Index row, Index column) const {
    return {data + row * row_stride + column * column_stride, row_stride, column_stride};
  }
};

// The panels of every instruction set make up whole ones of so many columns.
template <class T>
constexpr Index kWidestPanel = 128 / Index{sizeof(T)};

// Columns of the right side of a product: panels of them, each line after line.
template <class Stored>
struct Panels {
  const Stored* data;
  Index panel_stride;  // from one panel to the next
  Index line_stride;   // from one line of a panel to the next
};

// The parts of a matrix product c = left right, (rows, depth) times (depth, columns). Both operands are
// packed in the order in which the product reads them: left in strips of rows, right in panels of `panel`
// columns; but whole panels whose lines are dense may also be read as they lie. An element of c is one sum
// over the depth in rising order, by fused multiply-adds where the CPU has them: it does not depend on what
// else is in the product.
//
// The right side may be Stored in bfloat16, dense along the depth: it is packed as such, the sums are those
// of one that was widened before, and the number before what is packed is read, too, whatever it is.
template <class T, class Stored = T>
struct ProductKernels {
  Index panel;

  void (*pack_left)(MatrixView<T> left, Index rows, Index depth, T* packed);  // rows * depth elements
  void (*pack_right)(MatrixView<Stored> right, Index depth, Index columns, Stored* packed);  // whole panels
  // c's rows are c_stride apart. The sums are added to `start`, whose rows are start_stride apart (0: one
  // row, a bias, for all; it may be c itself), unless it is null.
  using Multiply = void (*)(const T* left, Index rows, Index depth, Panels<Stored> right, Index columns,
                            const T* start, Index start_stride, T* c, Index c_stride);
  Multiply multiply;
  // The same where packed panels come from memory, or from caches far away: asks for each while the one
  // before it is multiplied.
  Multiply multiply_from_memory;
};

// The parts of such a product, of the same sums, whose right side is not packed: c^T is summed up, a whole
// vector of the rows of left at a time.
template <class T>
struct InPlaceProductKernels {
  Index lanes;         // of a vector
  Index most_columns;  // of one call

  // sums[column][row] += the product of that row and column, for whole vectors of rows; sums_stride: from one
  // column to the next. left^T is packed by pack_right of ProductKernels.
  void (*multiply)(MatrixView<T> right, Index columns, Index depth, const T* left, Index rows, T* sums,
                   Index sums_stride);
  // c[row][column] = sums[column][row]
  void (*write)(const T* sums, Index sums_stride, Index rows, Index columns, T* c, Index c_stride);
};

// Those of active_isa().
template <class T, class Stored = T>
const ProductKernels<T, Stored>& product_kernels();
template <class T>
const InPlaceProductKernels<T>& in_place_product_kernels();

}  // namespace blasformer
