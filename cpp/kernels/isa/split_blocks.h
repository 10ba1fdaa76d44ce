#pragma once

// The products of attention from tiles of bfloat16 parts, where a problem has kernels for them (p.split, see
// kernels/split_product.h). They take the place of block_product, and of nothing else: lanes stay queries,
// scores stay scores[key][query], and every mask, bias, cap and dropout is the one loop over them.
//
//   scores          = keys queries^T         rows of a block packed left, the queries of a tile right
//   output^T       += values^T weights       columns of a block packed left, the weights of a tile right
//   d_key          += d_scores query          the gradients of scores packed left, rows of a tile right
//
// Keys and values are packed once per block for all tiles of a task, queries once per tile, weights for each
// block. A strip holds 32 lines, a step of the depth 32 elements: tiles whose range begins within a block
// begin with the strip, or step, that holds their first key, and what they may not see is hidden as always.
//
// What parts cannot represent in a line is found while packing and concerns the products of that line alone:
// a score depends on its own query and key, and on nothing else. A line of values^T runs across keys that
// some queries must not see, so a row with such an element is zeroed before it is packed, and its share is
// added where it is seen (replace_unsafe_rows, add_unsafe_rows). Weights are small, too small for parts where
// a key hardly counts: they are raised by a power of two before they are packed, and their products lowered
// again, which is exact.

#include "kernels/isa/block_product.h"
#include "kernels/isa/carver.h"
#include "kernels/isa/few_lanes.h"
#include "kernels/isa/key_block.h"
#include "kernels/split_product.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

inline Index strips_bytes(const SplitProductKernels& split, Index lines, Index depth) {
  return ceil_div(lines, split.lines) * split.packed_bytes(depth);
}
// Bytes that the rows of a block take, packed, and its columns.
inline Index packed_rows_bytes(const AttentionProblem& p, Index columns) {
  return p.split == nullptr ? 0 : strips_bytes(*p.split, kMostKeys, columns);
}
inline Index packed_columns_bytes(const AttentionProblem& p, Index columns) {
  return p.split == nullptr ? 0 : strips_bytes(*p.split, columns, kMostKeys);
}
// Elements that queries of a tile take as the other operand of a product with rows: transposed, or packed.
template <class T>
Index query_operand_size(const AttentionProblem& p, Index columns) {
  if (p.split == nullptr) return columns * kTileQueries<T>;
  return strips_bytes(*p.split, kTileQueries<T>, columns) / static_cast<Index>(sizeof(T));
}

// Where the part of a block of keys that a tile begins to see at key `begin` begins: with a strip.
inline Index part_begin(const AttentionProblem& p, Index block, Index begin) {
  return p.split == nullptr ? begin : block + (begin - block) / p.split->lines * p.split->lines;
}

// Scratch memory of split products; nothing where a problem has none.
template <class T>
struct SplitScratch {
  T *turned, *raised, *product;
  unsigned char *strips, *panel;

  void take(const AttentionProblem& p, Index product_size, Carver& carver) {
    constexpr Index queries = kTileQueries<T>;
    const bool split = p.split != nullptr;
    turned = carver.take<T>(split ? larger(p.dim, p.value_dim) * queries : 0);
    raised = carver.take<T>(split ? kMostKeys * queries : 0);
    product = carver.take<T>(split ? product_size : 0);
    strips = carver.take<unsigned char>(packed_rows_bytes(p, queries));
    panel = carver.take<unsigned char>(packed_columns_bytes(p, queries));
  }
};

// Whether a product of rows and queries is one of pairs of bfloat16 numbers.
inline bool is_of_pairs(const AttentionProblem& p, Index columns) {
  return p.pairs != nullptr && columns % 2 == 0;
}

// Queries of bfloat16 numbers as out[pair][lane]; a pair is moved as the float that its bits would be.
inline void pack_pairs(const AttentionOperand& x, const QueryTile<float>& tile, Index columns, float* dense,
                       float* out) {
  const float* row[kTileQueries<float>];
  for (Index l = 0; l < tile.width; ++l) {
    float* pairs = dense + l * (columns / 2);
    copy_halves(x, tile.offset(x, l), 1, columns, reinterpret_cast<std::uint16_t*>(pairs));
    row[l] = pairs;
  }
  transpose_rows(row, tile.width, columns / 2, out);
}

// The queries of a tile as the other operand of a product with rows; `dense` as for pack_queries.
template <class T>
void pack_query_operand(const AttentionProblem& p, const AttentionOperand& x, const QueryTile<T>& tile,
                        Index columns, T* dense, const SplitScratch<T>& scratch, T* out) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (p.split != nullptr) {
      pack_queries(x, tile, columns, dense, scratch.turned);
      p.split->pack_right({scratch.turned, tile.width, 1}, columns, tile.width, out);
      return;
    }
    if (is_of_pairs(p, columns)) return pack_pairs(x, tile, columns, dense, out);
  }
  pack_queries(x, tile, columns, dense, out);
}

// out[key][query] = rows[key] queries[query]^T, over `columns`.
template <class T>
void rows_product(const AttentionProblem& p, const QueryTile<T>& tile, Index count, Index columns,
                  const KeyBlock<T>& rows, const T* queries, T* out, RowsAhead& ahead) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (p.split != nullptr || is_of_pairs(p, columns)) ahead.ask(product_tiles(count));
    if (p.split != nullptr) {
      p.split->multiply_within(rows.strips, count, columns, 0, queries, 0, columns, tile.width, nullptr, 0,
                               out, tile.width);
      return;
    }
    if (is_of_pairs(p, columns)) {
      p.pairs(count, tile.vectors, columns / 2, rows.halves, rows.halves_stride, queries, tile.width, out,
              tile.width);
      return;
    }
  }
  if (has_few_lanes(tile, rows)) {
    ahead.ask(product_tiles(count));
    return few_rows_product(tile, count, columns, rows.data, rows.row_stride, queries, out);
  }
  block_product<T, Finish::store>(count, tile.vectors, columns,
                                  {rows.data, rows.row_stride, rows.column_stride}, queries, tile.width, out,
                                  tile.width, nullptr, ahead);
}

// Rows of a tile's queries as right operand of products over the queries: elements they take.
template <class T>
Index row_operand_size(const AttentionProblem& p, Index columns) {
  if (p.split == nullptr) return 0;
  return strips_bytes(*p.split, columns, kTileQueries<T>) / static_cast<Index>(sizeof(T));
}

// Whether all of a row are zeros or numbers whose parts, and whose products with raised weights and their
// sums, are ordinary numbers.
template <class T>
bool is_ordinary_row(const T* row, Index columns, Index) {
  static_assert(sizeof(T) == sizeof(float));
  constexpr std::uint32_t lowest = (127u - 102u) << 23, highest = (127u + 56u) << 23;
  std::uint32_t extraordinary = 0;
  for (Index c = 0; c < columns; ++c) {
    std::uint32_t magnitude;
    __builtin_memcpy(&magnitude, row + c, sizeof magnitude);
    magnitude &= 0x7fffffffu;
    extraordinary |= magnitude != 0 && magnitude - lowest >= highest - lowest ? 1u : 0u;
  }
  return extraordinary == 0;
}

// raised = x times a power of two, whose reciprocal is returned: one that brings the largest number to some
// 2^60. Weights and gradients of scores may be as small as float32 allows, too small for parts.
inline float raise(Index size, const float* x, float* raised) {
  using S = Simd<float>;
  auto top = S::zero();
  for (Index i = 0; i < size; i += S::lanes) top = S::max(S::abs(S::load(x + i)), top);  // NaN: top
  const float largest = S::largest(top);
  std::uint32_t bits;
  __builtin_memcpy(&bits, &largest, sizeof bits);
  const std::uint32_t exponent = bits >> 23, wanted = 127 + 60;
  const std::uint32_t shift = exponent >= wanted ? 0 : wanted - exponent < 100 ? wanted - exponent : 100;
  const std::uint32_t factor_bits = (127 + shift) << 23, reciprocal_bits = (127 - shift) << 23;
  float factor, reciprocal;
  __builtin_memcpy(&factor, &factor_bits, sizeof factor);
  __builtin_memcpy(&reciprocal, &reciprocal_bits, sizeof reciprocal);
  for (Index i = 0; i < size; i += S::lanes) S::store(raised + i, S::load(x + i) * S::broadcast(factor));
  return reciprocal;
}

// The columns of a block as left operand of split products, from its key `first` on.
struct PackedColumns {
  const unsigned char* strips;
  Index columns, keys, first;
  UnsafeRows unsafe;  // which are zeros here; counted from `first`

  PackedColumns from(Index key) const {
    PackedColumns part = {strips, columns, keys, first + key, {}};
    for (Index u = 0; u < unsafe.count; ++u) {
      if (unsafe.key[u] >= key) part.unsafe.key[part.unsafe.count++] = unsafe.key[u] - key;
    }
    return part;
  }
};

// Nothing where a problem has no split products. `safe` holds kMostKeys x columns.
template <class T>
PackedColumns pack_columns(const AttentionProblem& p, const KeyBlock<T>& rows, Index count, Index columns,
                           T* safe, unsigned char* strips) {
  PackedColumns result = {strips, columns, count, 0, {}};
  if constexpr (sizeof(T) == sizeof(float)) {
    if (p.split != nullptr) {
      const KeyBlock<T> ordinary =
          replace_unsafe_rows(rows, count, columns, safe, result.unsafe, is_ordinary_row<T>);
      p.split->pack_left({ordinary.data, ordinary.column_stride, ordinary.row_stride}, columns, count,
                         strips);
    }
  }
  return result;
}

// out[c][query] (=, +=, = factor[query] * out +) sum over `count` keys of rows[key][c] * weights[key][query],
// where `columns` are those of rows.
template <class T, Finish finish>
void columns_product(const AttentionProblem& p, const QueryTile<T>& tile, Index count,
                     const PackedColumns& columns, const KeyBlock<T>& rows, VisibleQueries& visible,
                     const T* weights, const SplitScratch<T>& scratch, T* out, const T* factor = nullptr) {
  using S = Simd<T>;
  if constexpr (sizeof(T) == sizeof(float)) {
    const Index width = tile.width;
    const auto lowered = S::broadcast(raise(count * width, weights, scratch.raised));
    p.split->pack_right({scratch.raised, width, 1}, count, width, scratch.panel);
    p.split->multiply_within(columns.strips, columns.columns, columns.keys, columns.first, scratch.panel, 0,
                             count, width, nullptr, 0, scratch.product, width);
    for (Index c = 0; c < columns.columns; ++c) {
      for (Index v = 0; v < tile.vectors; ++v) {
        const Index i = c * width + v * S::lanes;
        auto sum = S::load(scratch.product + i) * lowered;
        if constexpr (finish == Finish::add) sum = S::load(out + i) + sum;
        if constexpr (finish == Finish::scale_add)
          sum = S::fma(S::load(out + i), S::load(factor + v * S::lanes), sum);
        S::store(out + i, sum);
      }
    }
    if (columns.unsafe.count == 0) return;
    if (visible.all) {
      for (Index k = 0; k < count; ++k) visible.bits[k] = tile.every();
    }
    UnsafeRows unsafe;
    for (Index u = 0; u < columns.unsafe.count && columns.unsafe.key[u] < count; ++u)
      unsafe.key[unsafe.count++] = columns.unsafe.key[u];
    add_unsafe_rows(tile, rows, columns.columns, unsafe, visible, weights, out);
  }
}

// gradient[key] += sum over queries of weights[key][query] * the rows that `packed` holds; the gradient's
// rows are `stride` apart.
template <class T>
void add_rows_product(const AttentionProblem& p, const QueryTile<T>& tile, Index count, const T* weights,
                      const T* packed, Index columns, const SplitScratch<T>& scratch, T* gradient,
                      Index stride) {
  using S = Simd<T>;
  if constexpr (sizeof(T) == sizeof(float)) {
    const Index width = tile.width;
    const auto lowered = S::broadcast(raise(count * width, weights, scratch.raised));
    p.split->pack_left({scratch.raised, width, 1}, count, width, scratch.strips);
    p.split->multiply_within(scratch.strips, count, width, 0, packed, p.split->packed_bytes(width), width,
                             columns, nullptr, 0, scratch.product, stride);
    for (Index k = 0; k < count; ++k) {
      for (Index c = 0; c < columns; c += S::lanes) {
        const Index left = smaller(S::lanes, columns - c);
        T* const sum = gradient + k * stride + c;
        const auto product = S::load_first(scratch.product + k * stride + c, left);
        S::store_first(sum, S::fma(product, lowered, S::load_first(sum, left)), left);
      }
    }
  }
}

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
