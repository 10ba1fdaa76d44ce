#pragma once

// The products of a tile that holds few queries, as the last one of a head of 129: most lanes of its one
// vector would compute what is thrown away. Here lanes are keys, or columns of values, and every element is
// the sum that block_product makes, in its order, with its bits. Operands and results are where those of a
// tile are.
//
// Old over new time with AVX-512, 12 heads of 64, two threads of a Zen 4, forward and forward + backward:
// float32 129 tokens 1.05, 1.06; 132 tokens 1.04, 1.04; float64 129 tokens 1.02, 1.02. Tiles of AVX2 are half
// as wide: 0.99.

#include <cmath>
#include <type_traits>

#include "kernels/isa/block_product.h"
#include "kernels/isa/key_block.h"
#include "kernels/isa/ordered_product.h"
#include "kernels/isa/query_tile.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

#if defined(BLASFORMER_ISA_avx512)
constexpr Index kFewLanes = 4;
#else
constexpr Index kFewLanes = 0;
#endif

// Whether the products of a tile with such rows are made so.
template <class T>
inline bool has_few_lanes(const QueryTile<T>& tile, const KeyBlock<T>& rows) {
  return tile.count <= kFewLanes && rows.column_stride == 1;
}

// Calls body(how many queries), a constant.
template <class Body>
inline void with_few(Index queries, const Body& body) {
  if (queries == 1) return body(std::integral_constant<int, 1>());
  if (queries == 2) return body(std::integral_constant<int, 2>());
  if (queries == 3) return body(std::integral_constant<int, 3>());
  body(std::integral_constant<int, 4>());
}

// out[row][lane] = rows[row] query[lane]^T, where rows are `stride` apart and queries transposed; lanes
// beyond the queries repeat the last.
template <class T>
void few_rows_product(const QueryTile<T>& tile, Index count, Index columns, const T* rows, Index stride,
                      const T* queries, T* out) {
  using S = Simd<T>;
  constexpr Index lanes = kOrderedLanes<T>;
  with_few(tile.count, [&](auto number) {
    constexpr int few = decltype(number)::value;
    T of_row[few * lanes];
    for (Index first = 0; first < count; first += lanes) {
      const Index block = smaller(lanes, count - first);
      ordered_product<T, few>(columns, queries, 1, tile.width, block, rows + first * stride, stride, of_row);
      for (Index r = 0; r < block; ++r) {
        auto x = S::broadcast(of_row[(few - 1) * lanes + r]);
        for (int q = 0; q < few - 1; ++q)
          x = S::select(S::from_bits(1u << q), S::broadcast(of_row[q * lanes + r]), x);
        S::store(out + (first + r) * S::lanes, x);
      }
    }
  });
}

// Some vectors of columns, of which only a single one may be cut off.
template <class T, Finish finish, int few, int vectors>
void few_columns(Index count, Index columns, const T* rows, Index stride, const T* weights, T* out,
                 const T* factor) {
  using S = Simd<T>;
  typename S::Vector sum[few][vectors];
  for (auto& of_query : sum) {
    for (auto& x : of_query) x = S::zero();
  }
  for (Index k = 0; k < count; ++k) {
    typename S::Vector row[vectors];
    for (int v = 0; v < vectors; ++v)
      row[v] = vectors == 1 ? S::load_first(rows + k * stride, columns)
                            : S::load(rows + k * stride + v * S::lanes);
    for (int q = 0; q < few; ++q) {
      const auto weight = S::broadcast(weights[k * S::lanes + q]);
      for (int v = 0; v < vectors; ++v) sum[q][v] = S::fma(row[v], weight, sum[q][v]);
    }
  }
  T of_column[vectors * S::lanes];
  for (int q = 0; q < few; ++q) {
    for (int v = 0; v < vectors; ++v) S::store(of_column + v * S::lanes, sum[q][v]);
    for (Index c = 0; c < columns; ++c) {
      T& target = out[c * S::lanes + q];
      if constexpr (finish == Finish::store) target = of_column[c];
      if constexpr (finish == Finish::add) target = target + of_column[c];
      if constexpr (finish == Finish::scale_add) target = std::fma(target, factor[q], of_column[c]);
    }
  }
}

// out[column][lane] (=, +=, = factor[lane] * out +) sum over `count` keys of rows[key][column] *
// weights[key][lane], for the lanes that hold queries.
template <class T, Finish finish>
void few_columns_product(const QueryTile<T>& tile, Index count, Index columns, const T* rows, Index stride,
                         const T* weights, T* out, const T* factor) {
  constexpr Index lanes = Simd<T>::lanes;
  with_few(tile.count, [&](auto number) {
    constexpr int few = decltype(number)::value;
    Index c = 0;
    for (; c + 4 * lanes <= columns; c += 4 * lanes)
      few_columns<T, finish, few, 4>(count, 4 * lanes, rows + c, stride, weights, out + c * lanes, factor);
    for (; c < columns; c += lanes) {
      few_columns<T, finish, few, 1>(count, smaller(lanes, columns - c), rows + c, stride, weights,
                                     out + c * lanes, factor);
    }
  });
}

// The same for any tile, and any strides.
template <class T, Finish finish>
void weighted_columns(const QueryTile<T>& tile, Index count, Index columns, const KeyBlock<T>& rows,
                      const T* weights, T* out, const T* factor, RowsAhead& ahead) {
  if (has_few_lanes(tile, rows)) {
    ahead.ask(product_tiles(columns));
    few_columns_product<T, finish>(tile, count, columns, rows.data, rows.row_stride, weights, out, factor);
    return;
  }
  block_product<T, finish>(columns, tile.vectors, count, {rows.data, rows.column_stride, rows.row_stride},
                           weights, tile.width, out, tile.width, factor, ahead);
}

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
