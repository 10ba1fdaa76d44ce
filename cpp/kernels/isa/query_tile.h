#pragma once

// A tile of queries, one query per vector lane, against a block of keys: what all attention kernels are made
// of.
//
// Lanes are queries, so a row of a tile belongs to one key: scores[key][query]. The statistics of the softmax
// are then plain vectors (no horizontal reductions), rescaling the output is one multiply-add in the product
// that updates it, and keys and values are read by broadcasting loads from wherever the caller keeps them.
// Only the queries are packed and transposed, once per tile.

#include <cstdint>
#include <limits>

#include "kernels/attention_problem.h"
#include "kernels/isa/operand_rows.h"
#include "kernels/isa/simd.h"
#include "kernels/isa/transpose.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

constexpr Index kTileVectors = 2;
constexpr Index kKeyBlock = 128;
constexpr Index kMostKeys = kKeyBlock + 32;
template <class T>
constexpr Index kTileQueries = kTileVectors * Simd<T>::lanes;

template <class T>
constexpr T kMinusInfinity = -std::numeric_limits<T>::infinity();

// The queries of a tile: rows of one query head, or of all that read one key head. Lanes beyond `count`
// repeat the last query, so that they compute what is thrown away and disturb nothing.
template <class T>
struct QueryTile {
  Index batch, key_head;
  Index count;    // queries in use
  Index vectors;  // that hold them: 1 or kTileVectors
  Index width;    // vectors * lanes: from one key to the next in an array (key, query)
  Index head[kTileQueries<T>], row[kTileQueries<T>];
  // Keys [first, last) are those that window, causality and lengths leave to each query.
  Index first[kTileQueries<T>], last[kTileQueries<T>];
  // Over all lanes; with nothing to attend to, lowest_first >= highest_last.
  Index lowest_first, highest_first, lowest_last, highest_last;
  bool one_head;

  std::uint32_t every() const { return width == 32 ? ~0u : (1u << width) - 1u; }
  Index offset(const AttentionOperand& x, Index l) const {
    return x.offset(batch, head[l]) + row[l] * x.row_stride;
  }
  Index offset(const MutableAttentionOperand& x, Index l) const {
    return x.offset(batch, head[l]) + row[l] * x.row_stride;
  }
  // Index into (batch, query_heads, query_length).
  Index statistic(const AttentionProblem& p, Index l) const {
    return (batch * p.query_heads + head[l]) * p.query_length + row[l];
  }
};

// How many keys the block has that begins with key `first`. A short rest is no block of its own: it would
// cost more than it holds (129 tokens would take 1.02 to 1.04 times as long). Where the order of a sum must
// not depend on the length of other sequences, it is.
inline Index keys_of_block(const AttentionProblem& p, Index first) {
  const Index left = p.key_length - first;
  return left <= (p.ordered_scores ? kKeyBlock : kMostKeys) ? left : kKeyBlock;
}

// Fills in the rest of a tile whose batch, key_head, count and first `count` heads and rows are set.
template <class T>
void place_tile(const AttentionProblem& p, QueryTile<T>& tile) {
  tile.vectors = ceil_div(tile.count, Simd<T>::lanes);
  tile.width = tile.vectors * Simd<T>::lanes;
  const AttentionMasks& masks = p.masks;
  const Index offset = masks.offset == nullptr ? 0 : masks.offset[tile.batch];
  const Index keys =
      masks.key_lengths == nullptr ? p.key_length : smaller(p.key_length, masks.key_lengths[tile.batch]);
  const Index queries = masks.query_lengths == nullptr ? p.query_length : masks.query_lengths[tile.batch];
  tile.lowest_first = tile.lowest_last = p.key_length;
  tile.highest_first = tile.highest_last = 0;
  tile.one_head = true;
  for (Index l = 0; l < tile.width; ++l) {
    if (l >= tile.count) {
      tile.head[l] = tile.head[tile.count - 1];
      tile.row[l] = tile.row[tile.count - 1];
    }
    const Index position = tile.row[l] + offset;
    Index first = larger(0, position - masks.left);
    Index last = smaller(keys, position + masks.right + 1);
    const bool blind = tile.row[l] >= queries || first >= last;
    if (blind) first = last = 0;
    tile.first[l] = first;
    tile.last[l] = last;
    if (!blind) {
      tile.lowest_first = smaller(tile.lowest_first, first);
      tile.highest_last = larger(tile.highest_last, last);
    }
    tile.highest_first = larger(tile.highest_first, first);
    tile.lowest_last = smaller(tile.lowest_last, last);
    tile.one_head = tile.one_head && tile.head[l] == tile.head[0];
  }
}

// The next tile of a run of queries, counted through the heads of a group: query i is row i % query_length of
// head i / query_length. Where heads are long, tiles end with them, so that causal tiles stay short; where
// they are short, a tile holds several.
template <class T>
Index place_run(const AttentionProblem& p, const QueryRun& run, Index done, QueryTile<T>& tile) {
  const Index next = run.first + done;
  const Index head_left = p.query_length - next % p.query_length;
  tile.batch = run.batch;
  tile.key_head = run.key_head;
  tile.count = smaller(kTileQueries<T>, run.count - done);
  if (!p.shares_tiles(kTileQueries<T>)) tile.count = smaller(tile.count, head_left);
  for (Index l = 0; l < tile.count; ++l) {
    tile.head[l] = run.key_head * p.group() + (next + l) / p.query_length;
    tile.row[l] = (next + l) % p.query_length;
  }
  place_tile(p, tile);
  return tile.count;
}

// Given rows of one head.
template <class T>
void place_rows(const AttentionProblem& p, Index batch, Index head, const Index* rows, Index count,
                QueryTile<T>& tile) {
  tile.batch = batch;
  tile.key_head = p.key_head(head);
  tile.count = count;
  for (Index l = 0; l < count; ++l) {
    tile.head[l] = head;
    tile.row[l] = rows[l];
  }
  place_tile(p, tile);
}

// Queries of a tile as q[c][lane] = query[row[lane], c]; `dense` holds kTileQueries x columns when a copy is
// needed first.
template <class T>
void pack_queries(const AttentionOperand& x, const QueryTile<T>& tile, Index columns, T* dense, T* out) {
  const T* row[kTileQueries<T>];
  const bool direct = x.dtype == dtype_of<T>() && x.column_stride == 1;
  for (Index l = 0; l < tile.width; ++l) {
    const Index start = tile.offset(x, l);
    if (direct) {
      row[l] = static_cast<const T*>(x.data) + start;
    } else {
      copy_rows(x, start, 1, columns, dense + l * columns, columns);
      row[l] = dense + l * columns;
    }
  }
  transpose_rows(row, tile.width, columns, out);
}

// row[lane][c] = x[c][lane] * factor[lane] into the caller's array; `dense` as above.
template <class T>
void write_queries(const QueryTile<T>& tile, Index columns, const T* x, const T* factor, T* dense,
                   const MutableAttentionOperand& out) {
  const bool direct = out.dtype == dtype_of<T>() && out.column_stride == 1;
  T* row[kTileQueries<T>];
  for (Index l = 0; l < tile.count; ++l) {
    row[l] = direct ? static_cast<T*>(out.data) + tile.offset(out, l) : dense + l * columns;
  }
  untranspose_rows(x, tile.width, columns, factor, tile.count, row);
  for (Index l = 0; l < tile.count && !direct; ++l) write_row(row[l], columns, out, tile.offset(out, l));
}

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
