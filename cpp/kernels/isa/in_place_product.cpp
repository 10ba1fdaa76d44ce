// Products of few rows by a right side whose columns are dense, as x W^T by a weight W, that is read only
// once or a few times: it is not packed, but read where it lies. The operands change places: what is summed
// up is c^T = right^T left^T. The rows of right^T, which are those of the weight, are read element by element
// by broadcasting loads, as in attention (block_product.h), so that they may lie anywhere; left^T, small, is
// packed. When all of the depth is summed up, c^T is transposed, about a hundredth of the work. An element of
// c is the same sum as in product_kernels.cpp. What is gained: see faster_in_place() in matrix_product.cpp.

#include "kernels/isa/block_product.h"
#include "kernels/isa/table.h"
#include "kernels/isa/transpose.h"
#include "kernels/product_kernels.h"

namespace blasformer::BLASFORMER_ISA {

namespace {

// Of right, in one call: a panel of left^T is read from the L2 cache once for all of them. More (192) are no
// faster, half of them take 1.01 times as long.
constexpr Index kMostColumns = 96;

template <class T>
void multiply(MatrixView<T> right, Index columns, Index depth, const T* left, Index rows, T* sums,
              Index sums_stride) {
  constexpr Index lanes = Simd<T>::lanes, panel = 2 * lanes;
  const Broadcast<T> a{right.data, right.column_stride, right.row_stride};
  RowsAhead nothing_ahead;
  for (Index row = 0; row < rows; row += panel, left += panel * depth) {
    const auto groups = rows - row > lanes ? product_groups<T, 2, Finish::add>  // of as many vectors
                                           : product_groups<T, 1, Finish::add>;
    groups(columns, 1, depth, a, left, panel, sums + row, sums_stride, nullptr, nothing_ahead);
  }
}

// A row of c is written at once: where rows lie a multiple of the page size apart, a line of which a part is
// written would have left the L1 cache before the rest comes (3072 columns: 1.05 times as long).
template <class T>
void write(const T* sums, Index sums_stride, Index rows, Index columns, T* c, Index c_stride) {
  constexpr Index lanes = Simd<T>::lanes;
  T part[lanes * kMostColumns];
  T* part_row[lanes];
  for (Index l = 0; l < lanes; ++l) part_row[l] = part + l * kMostColumns;
  for (Index first = 0; first < rows; first += lanes) {
    const Index count = smaller(lanes, rows - first);
    write_transposed(sums + first, sums_stride, columns, false, count, part_row);
    for (Index l = 0; l < count; ++l) {
      T* const target = c + (first + l) * c_stride;
      Index i = 0;
      for (; i + lanes <= columns; i += lanes) Simd<T>::store(target + i, Simd<T>::load(part_row[l] + i));
      for (; i < columns; ++i) target[i] = part_row[l][i];
    }
  }
}

template <class T>
constexpr InPlaceProductKernels<T> kInPlaceProductKernels = {
    .lanes = Simd<T>::lanes,
    .most_columns = kMostColumns,
    .multiply = multiply<T>,
    .write = write<T>,
};

}  // namespace

template <>
const InPlaceProductKernels<float>& table() {
  return kInPlaceProductKernels<float>;
}
template <>
const InPlaceProductKernels<double>& table() {
  return kInPlaceProductKernels<double>;
}

}  // namespace blasformer::BLASFORMER_ISA
