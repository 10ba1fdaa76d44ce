#pragma once

// The one matrix product of attention, forward and backward:
//
//   C[m][lane] (=, +=, = C * factor[lane] +) sum over k of A[m, k] * B[k][lane]
//
// B and C are rows of whole vectors; A is read element by element by broadcasting loads, so it may lie
// anywhere with any strides: keys and values are used where the caller keeps them, never transposed and
// hardly ever copied (key_block.h). A register tile is kMaxRows x 2 vectors (24 of 32 registers with
// AVX-512, 12 of 16 otherwise), which needs 14 loads for 24 multiply-adds: the multiply-add units are the
// limit. An odd vector goes with two others, of fewer rows. Rows are split evenly (64 = 11 + 11 + 11 + 11 +
// 10 + 10), so that no tile is left with too few accumulators to hide their latency. Measured against
// calling BLAS on the same blocks: see benchmarks/README.md.

#include <cstddef>
#include <utility>

#include "kernels/isa/rows_ahead.h"
#include "kernels/isa/simd.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

enum class Finish { store, add, scale_add };

#if defined(BLASFORMER_ISA_avx512)
constexpr int kMaxRows = 12;
#else
constexpr int kMaxRows = 6;
#endif
constexpr int most_rows(int vectors) { return vectors == 1 ? 12 : 2 * kMaxRows / vectors; }

// Rows of A that lie whole pages apart share one set of the L1 cache, of which many CPUs have eight ways:
// with more rows at once each of their lines would have left it before its next element is read. Old over
// new time with AVX-512 (Zen 4, two threads): linear 128 x 3072 -> 768 1.09, 48 x 3072 -> 768 1.15, 128 x
// 1024 -> 1024 1.03, 128 x 4096 -> 4096 1.08; attention of 16 heads of 64 whose rows lie so, forward 1.04 to
// 1.08.
template <class T>
constexpr Index most_rows_at_once(int vectors, Index row_stride) {
  constexpr Index page_bytes = 4096, ways = 8;
  const bool in_one_set = row_stride != 0 && row_stride * Index{sizeof(T)} % page_bytes == 0;
  return in_one_set && most_rows(vectors) > ways ? ways : most_rows(vectors);
}

// How many tiles of two vectors multiply so many rows, at least.
constexpr Index product_tiles(Index rows) { return ceil_div(rows, most_rows(2)); }

// A strided matrix that is only ever read one element at a time.
template <class T>
struct Broadcast {
  const T* data;
  Index row_stride, depth_stride;
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
#pragma GCC unroll 3
    for (int v = 0; v < vectors; ++v) sum[r][v] = S::zero();
  }
  // One pointer for three rows: twelve would not fit into the general registers.
  constexpr int groups = (rows + 2) / 3;
  const T* group[groups];
#pragma GCC unroll 4
  for (int g = 0; g < groups; ++g) group[g] = a + 3 * g * row_stride;
  for (Index k = 0; k < depth; ++k) {
    typename S::Vector right[vectors];
#pragma GCC unroll 3
    for (int v = 0; v < vectors; ++v) right[v] = S::load(b + v * S::lanes);
    b += b_stride;
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      const typename S::Vector left = S::broadcast(group[r / 3][(r % 3) * row_stride]);
#pragma GCC unroll 3
      for (int v = 0; v < vectors; ++v) sum[r][v] = S::fma(left, right[v], sum[r][v]);
    }
#pragma GCC unroll 4
    for (int g = 0; g < groups; ++g) group[g] += depth_stride;
  }
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 3
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

template <class T>
using ProductTile = void (*)(Index depth, const T* a, Index row_stride, Index depth_stride, const T* b,
                             Index b_stride, T* c, Index c_stride, const T* factor);

// The tiles of 1, 2, ... rows.
template <class T, int vectors, Finish finish, class Rows>
struct ProductTiles;
template <class T, int vectors, Finish finish, std::size_t... less>
struct ProductTiles<T, vectors, finish, std::index_sequence<less...>> {
  static constexpr ProductTile<T> of_rows[] = {
      product_tile<T, static_cast<int>(less) + 1, vectors, finish>...};
};

// `groups` times so many vectors. Rows are outside: those of A are then near while the groups go by.
template <class T, int vectors, Finish finish>
inline void product_groups(Index rows, Index groups, Index depth, Broadcast<T> a, const T* b, Index b_stride,
                           T* c, Index c_stride, const T* factor, RowsAhead& ahead) {
  constexpr Index width = vectors * Simd<T>::lanes;
  using Tiles = ProductTiles<T, vectors, finish, std::make_index_sequence<most_rows(vectors)>>;
  if (rows == 0) return;
  const Index most = most_rows_at_once<T>(vectors, a.row_stride);
  const Index parts = ceil_div(rows, most), least = rows / parts, higher = rows - parts * least;
  Index row = 0;
  for (Index part = 0; part < parts; ++part) {
    const Index height = part < higher ? least + 1 : least;
    for (Index column = 0; column < groups * width; column += width) {
      ahead.ask();
      Tiles::of_rows[height - 1](depth, a.data + row * a.row_stride, a.row_stride, a.depth_stride, b + column,
                                 b_stride, c + row * c_stride + column, c_stride,
                                 finish == Finish::scale_add ? factor + column : nullptr);
    }
    row += height;
  }
}

// rows x (vectors * lanes) outputs, a sum of depth products each. factor: one per lane, for
// Finish::scale_add. Every tile asks for some of the rows ahead.
template <class T, Finish finish>
inline void block_product(Index rows, Index vectors, Index depth, Broadcast<T> a, const T* b, Index b_stride,
                          T* c, Index c_stride, const T* factor, RowsAhead& ahead) {
  const Index rest = vectors % 2 == 0 ? 0 : vectors == 1 ? 1 : 3;
  const Index column = (vectors - rest) * Simd<T>::lanes;
  const T* const rest_factor = finish == Finish::scale_add ? factor + column : nullptr;
  product_groups<T, 2, finish>(rows, (vectors - rest) / 2, depth, a, b, b_stride, c, c_stride, factor, ahead);
  if (rest == 1)
    product_groups<T, 1, finish>(rows, 1, depth, a, b + column, b_stride, c + column, c_stride, rest_factor,
                                 ahead);
  if (rest == 3)
    product_groups<T, 3, finish>(rows, 1, depth, a, b + column, b_stride, c + column, c_stride, rest_factor,
                                 ahead);
}

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
