#pragma once

// The one matrix product of attention, forward and backward:
//
//   C[m][lane] (=, +=, = C * factor[lane] +) sum over k of A[m, k] * B[k][lane]
//
// B and C are rows of whole vectors; A is read element by element by broadcasting loads, so it may lie
// anywhere with any strides: keys and values are used where the caller keeps them, never transposed and never
// copied. A register tile is kMaxRows x 2 vectors (24 of 32 registers with AVX-512, 12 of 16 otherwise),
// which needs 14 loads for 24 multiply-adds: the multiply-add units are the limit. Rows are split evenly (64
// = 11 + 11 + 11 + 11 + 10 + 10), so that no tile is left with too few accumulators to hide their latency.
// Measured against calling BLAS on the same blocks: see benchmarks/README.md.

#include "kernels/isa/simd.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

enum class Finish { store, add, scale_add };

#if defined(BLASFORMER_ISA_avx512)
constexpr int kMaxRows = 12;
#else
constexpr int kMaxRows = 6;
#endif

// A strided matrix that is only ever read one element at a time.
template <class T>
struct Broadcast {
  const T* data;
  Index row_stride, depth_stride;
  Broadcast from_row(Index row) const { return {data + row * row_stride, row_stride, depth_stride}; }
};

// A is passed as three numbers: a structure of them would go through memory, written in halves that the next
// call reads at once, which it can only do when all of this tile is done. That costs a tile 40 cycles.
template <class T, int rows, int vectors, Finish finish>
[[gnu::noinline]] void product_tile(Index depth, const T* a, Index row_stride, Index depth_stride, const T* b,
                                    Index b_stride, T* c, Index c_stride, const T* factor) {
  using S = Simd<T>;
  typename S::Vector sum[rows][vectors];
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) sum[r][v] = S::zero();
  }
  // One pointer for three rows: twelve would not fit into the general registers.
  constexpr int groups = (rows + 2) / 3;
  const T* group[groups];
#pragma GCC unroll 4
  for (int g = 0; g < groups; ++g) group[g] = a + 3 * g * row_stride;
  for (Index k = 0; k < depth; ++k) {
    typename S::Vector right[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) right[v] = S::load(b + v * S::lanes);
    b += b_stride;
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      const typename S::Vector left = S::broadcast(group[r / 3][(r % 3) * row_stride]);
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sum[r][v] = S::fma(left, right[v], sum[r][v]);
    }
#pragma GCC unroll 4
    for (int g = 0; g < groups; ++g) group[g] += depth_stride;
  }
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      T* target = c + r * c_stride + v * S::lanes;
      if constexpr (finish == Finish::add) sum[r][v] = S::load(target) + sum[r][v];
      if constexpr (finish == Finish::scale_add) {
        sum[r][v] = S::fma(S::load(target), S::load(factor + v * S::lanes), sum[r][v]);
      }
      S::store(target, sum[r][v]);
    }
  }
}

template <class T, int vectors, Finish finish>
inline void product_rows(int rows, Index depth, Broadcast<T> a, const T* b, Index b_stride, T* c,
                         Index c_stride, const T* factor) {
  using Tile = void (*)(Index, const T*, Index, Index, const T*, Index, T*, Index, const T*);
  static constexpr Tile tiles[] = {
      product_tile<T, 1, vectors, finish>,  product_tile<T, 2, vectors, finish>,
      product_tile<T, 3, vectors, finish>,  product_tile<T, 4, vectors, finish>,
      product_tile<T, 5, vectors, finish>,  product_tile<T, 6, vectors, finish>,
#if defined(BLASFORMER_ISA_avx512)
      product_tile<T, 7, vectors, finish>,  product_tile<T, 8, vectors, finish>,
      product_tile<T, 9, vectors, finish>,  product_tile<T, 10, vectors, finish>,
      product_tile<T, 11, vectors, finish>, product_tile<T, 12, vectors, finish>,
#endif
  };
  tiles[rows - 1](depth, a.data, a.row_stride, a.depth_stride, b, b_stride, c, c_stride, factor);
}

// rows x (vectors * lanes) outputs, a sum of depth products each. factor: one per lane, for
// Finish::scale_add.
template <class T, Finish finish>
inline void block_product(Index rows, Index vectors, Index depth, Broadcast<T> a, const T* b, Index b_stride,
                          T* c, Index c_stride, const T* factor = nullptr) {
  constexpr Index lanes = Simd<T>::lanes;
  const Index parts = ceil_div(rows, kMaxRows);
  Index row = 0;
  for (Index part = 0; part < parts; ++part) {
    const int height = static_cast<int>(ceil_div(rows - row, parts - part));
    Index v = 0;
    for (; v + 2 <= vectors; v += 2) {
      product_rows<T, 2, finish>(height, depth, a.from_row(row), b + v * lanes, b_stride,
                                 c + row * c_stride + v * lanes, c_stride,
                                 finish == Finish::scale_add ? factor + v * lanes : nullptr);
    }
    if (v < vectors) {
      product_rows<T, 1, finish>(height, depth, a.from_row(row), b + v * lanes, b_stride,
                                 c + row * c_stride + v * lanes, c_stride,
                                 finish == Finish::scale_add ? factor + v * lanes : nullptr);
    }
    row += height;
  }
}

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
