#pragma once

// Few rows times many that are read once, where they lie. Every element is one sum along the depth in rising
// order, with the bits that block_product and the panels of a product give it: lanes are the many rows, which
// are transposed a few columns at a time. (Lanes along the depth would need no transposing, and give others.)

#include "kernels/isa/simd.h"
#include "kernels/isa/transpose.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

template <class T>
constexpr Index kOrderedLanes = 2 * Simd<T>::lanes;

// c (rows, kOrderedLanes) = left (rows, depth) right^T for the rows of `right`, `count` <= kOrderedLanes of
// them; lanes beyond them repeat the last. Asks for as many rows behind them, which may not be there.
template <class T, int rows>
inline void ordered_product(Index depth, const T* left, Index left_stride, Index left_depth_stride,
                            Index count, const T* right, Index right_stride, T* c) {
  using S = Simd<T>;
  constexpr Index lanes = kOrderedLanes<T>, columns = 64, line = 64 / Index{sizeof(T)};
  T transposed[columns * lanes];
  typename S::Vector sum[rows][2];
  for (auto& of_row : sum) of_row[0] = of_row[1] = S::zero();
  for (Index begin = 0; begin < depth; begin += columns) {
    const Index deep = smaller(columns, depth - begin);
    const Index ahead = begin + deep < depth ? deep : lanes * right_stride - begin;
    const T* row[lanes];
    for (Index l = 0; l < lanes; ++l) {
      row[l] = right + smaller(l, count - 1) * right_stride + begin;
      for (Index k = 0; k < deep; k += line) __builtin_prefetch(row[l] + ahead + k, 0, 2);
    }
    transpose_rows(row, lanes, deep, transposed);
    for (Index k = 0; k < deep; ++k) {
      const auto x = S::load(transposed + k * lanes), y = S::load(transposed + k * lanes + S::lanes);
      for (int r = 0; r < rows; ++r) {
        const auto factor = S::broadcast(left[r * left_stride + (begin + k) * left_depth_stride]);
        sum[r][0] = S::fma(factor, x, sum[r][0]);
        sum[r][1] = S::fma(factor, y, sum[r][1]);
      }
    }
  }
  for (int r = 0; r < rows; ++r) {
    S::store(c + r * lanes, sum[r][0]);
    S::store(c + r * lanes + S::lanes, sum[r][1]);
  }
}

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
