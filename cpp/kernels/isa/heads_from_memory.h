#pragma once

// Where heads are so many that they come from memory, a head would wait for its rows, and the next one for
// its own. So whoever attends to a head asks meanwhile for the rows of the next one, which the same thread
// will mostly be given, and for what it will write itself.
//
// Where one head is more than a core's caches hold, every pass over its keys would wait for each block. So
// whoever is at a block asks for the next one. Old over new time, two threads of a Zen 4 (1 MB of L2),
// float32, two runs each where there are two figures, AVX-512 | AVX2. Forward: 4096 tokens of 4 heads of 96
// 1.05, 1.05 | 1.08, 1.03; of 160 1.07 | 1.15; 16384 of 64 1.05, 1.03 | 1.08, 1.03. Forward + backward: 4096
// tokens of 160 1.10, 1.06 | 1.19, 1.09; of 64 1.08, 1.02 | 1.08, 1.14. Where a pass is over 2 MB or less,
// nothing is gained: 0.99 to 1.04 | 0.93 to 1.02. Few queries of long caches, one pass: 32/4 heads of 128,
// 8192 keys 1.84 | 1.64, 32768 keys 1.76 | 1.49; 8 queries of 64 heads of 64, 2048 keys 1.45 | 1.28.
//
// A bias has an element for every pair of a query and a key, and comes from further away than either. So each
// tile of queries asks for what the next one adds and, in backward, for where its gradient is written.

#include "kernels/attention_kernels.h"
#include "kernels/isa/block_product.h"
#include "kernels/isa/query_tile.h"
#include "kernels/isa/rows_ahead.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

// Whether keys and values fill so many bytes.
inline bool heads_fill(const AttentionProblem& p, Index bytes) {
  const Index heads = p.batch * p.key_heads;
  return heads * p.key_length * (p.dim + p.value_dim) * item_size(p.key.dtype) >= bytes;
}

// Tiles of products that tell a tile of queries what `keys` keys are to it, and multiply with their values.
inline Index forward_product_tiles(const AttentionProblem& p, Index keys) {
  return keys <= 0 ? 0 : product_tiles(keys) + ceil_div(keys, kKeyBlock) * product_tiles(p.value_dim);
}

// The same of backward: scores and their gradients, those of values and keys, those of queries.
template <class T>
Index backward_product_tiles(const AttentionProblem& p, Index keys) {
  constexpr Index width = 2 * Simd<T>::lanes;
  return product_tiles(keys) * (2 + ceil_div(p.dim, width) + ceil_div(p.value_dim, width)) +
         ceil_div(keys, kKeyBlock) * product_tiles(p.dim);
}

// The rows of a run's queries in one of the arrays that have a row for each.
template <class Operand>
void add_rows_of_run(const AttentionProblem& p, const QueryRun& run, const Operand& x, Index columns,
                     RowsToAsk& ahead) {
  const Index end = run.first + run.count;
  for (Index i = run.first; i < end;) {
    const Index head = run.key_head * p.group() + i / p.query_length, row = i % p.query_length;
    const Index count = smaller(p.query_length - row, end - i);
    ahead.add(x, x.offset(run.batch, head) + row * x.row_stride, count, columns);
    i += count;
  }
}

// That share of the rows of keys or values which a run has of the queries that read them; of long heads the
// first ones.
inline void add_key_rows(const AttentionProblem& p, const QueryRun& run, const AttentionOperand& x,
                         Index columns, RowsToAsk& ahead) {
  constexpr Index most_bytes = 128 << 10;
  const Index rows = smaller(p.key_length, most_bytes / larger(columns * item_size(x.dtype), 1));
  const Index queries = p.group() * p.query_length;
  const Index first = rows * run.first / queries, last = rows * (run.first + run.count) / queries;
  ahead.add(x, x.offset(run.batch, run.key_head) + first * x.row_stride, last - first, columns);
}

// The same queries of the next key head, if there is one.
inline bool next_head(const AttentionProblem& p, QueryRun& run) {
  run.key_head = (run.key_head + 1) % p.key_heads;
  if (run.key_head == 0) ++run.batch;
  return run.batch < p.batch;
}

// What forward asks for during a run, with so many tiles of products.
inline RowsToAsk rows_ahead_of_forward(const AttentionProblem& p, QueryRun run, Index tiles,
                                       const MutableAttentionOperand& output) {
  RowsToAsk ahead;
  if (!heads_fill(p, 8 << 20)) return ahead;  // below that caches keep them, and asking costs up to 6 %
  add_rows_of_run(p, run, output, p.value_dim, ahead);
  if (next_head(p, run)) {
    add_key_rows(p, run, p.key, p.dim, ahead);
    add_key_rows(p, run, p.value, p.value_dim, ahead);
    add_rows_of_run(p, run, p.query, p.dim, ahead);
  }
  ahead.spread(tiles);
  return ahead;
}

// Whether a pass over the keys of a head, of which so many bytes belong to each, is more than the caches of a
// core hold.
inline bool passes_from_memory(const AttentionProblem& p, Index bytes_of_key) {
  constexpr Index held_bytes = 2 << 20;
  return p.key_length * bytes_of_key > held_bytes;
}

// Where a run has all queries of a head there is one pass over its keys, and they come from wherever those of
// all heads are.
inline bool forward_passes_from_memory(const AttentionProblem& p, const QueryRun& run) {
  constexpr Index least_keys = 8 * kKeyBlock;
  if (run.count >= p.group() * p.query_length) return p.key_length >= least_keys && heads_fill(p, 16 << 20);
  return passes_from_memory(p, (p.dim + p.value_dim) * item_size(p.key.dtype));
}

// The keys and values of the block from `first` on, as far as `end`.
inline void add_block(const AttentionProblem& p, const QueryRun& run, Index first, Index end,
                      RowsToAsk& ahead) {
  const Index count = smaller(kKeyBlock, end - first);
  ahead.add(p.key, p.key.offset(run.batch, run.key_head) + first * p.key.row_stride, count, p.dim);
  ahead.add(p.value, p.value.offset(run.batch, run.key_head) + first * p.value.row_stride, count,
            p.value_dim);
}

// What forward asks for during a block of `count` keys for so many tiles of queries, where passes come from
// memory.
inline RowsToAsk rows_ahead_of_forward_block(const AttentionProblem& p, const QueryRun& run, Index first,
                                             Index count, Index end, Index tiles) {
  RowsToAsk ahead;
  add_block(p, run, first + count, end, ahead);
  ahead.spread(tiles * forward_product_tiles(p, count));
  return ahead;
}

// What backward asks for during a run of all queries of a key head.
template <class T>
RowsToAsk rows_ahead_of_backward(const AttentionProblem& p, QueryRun run, const BackwardInputs<T>& inputs,
                                 const BackwardOutputs<T>& outputs) {
  RowsToAsk ahead;
  if (run.count == 0 || run.count < p.group() * p.query_length || !heads_fill(p, 5 << 20)) return ahead;
  add_rows_of_run(p, run, outputs.d_query, p.dim, ahead);
  ahead.add_written(outputs.d_key, p.key_length, p.dim, outputs.d_key_stride);
  ahead.add_written(outputs.d_value, p.key_length, p.value_dim, outputs.d_value_stride);
  if (next_head(p, run)) {
    add_rows_of_run(p, run, p.query, p.dim, ahead);
    add_rows_of_run(p, run, inputs.d_output, p.value_dim, ahead);
    add_rows_of_run(p, run, inputs.output, p.value_dim, ahead);
    add_key_rows(p, run, p.key, p.dim, ahead);
    add_key_rows(p, run, p.value, p.value_dim, ahead);
  }
  ahead.spread(ceil_div(run.count, kTileQueries<T>) * backward_product_tiles<T>(p, p.key_length));
  return ahead;
}

// The same of backward, which adds to the gradients of the keys of a pass, too.
template <class T>
RowsToAsk rows_ahead_of_backward_block(const AttentionProblem& p, const QueryRun& run, Index first,
                                       Index count, Index end, Index tiles, T* d_key, Index key_width,
                                       T* d_value, Index value_width) {
  RowsToAsk ahead;
  const Index next = first + count, rows = smaller(kKeyBlock, end - next);
  add_block(p, run, next, end, ahead);
  ahead.add_written(d_key + next * key_width, rows, key_width, key_width);
  ahead.add_written(d_value + next * value_width, rows, value_width, value_width);
  ahead.spread(tiles * backward_product_tiles<T>(p, count));
  return ahead;
}

// What a bias, or its gradient, has for a tile and keys [first, last).
template <class T, class Operand>
void add_pairs(const Operand& x, const QueryTile<T>& tile, Index first, Index last, RowsToAsk& ahead) {
  if (x.data == nullptr || x.row_stride == 0) return;
  for (Index lane = 0, end = 0; lane < tile.count; lane = end) {
    while (end < tile.count && tile.head[end] == tile.head[lane]) ++end;
    ahead.add(x, tile.offset(x, lane) + first, end - lane, last - first);
  }
}

// What tile t asks for, with so many tiles of products, at a block of `count` keys: the pairs of the next
// tile. The first one comes after the last, at the next block.
template <class T, class Tile, class... Operands>
RowsToAsk pairs_of_next_tile(const Tile* tile, Index tiles, Index t, Index first, Index count,
                             Index product_tiles, const Operands&... x) {
  RowsToAsk ahead;
  const bool last_tile = t + 1 == tiles;
  const QueryTile<T>& next = tile[last_tile ? 0 : t + 1].queries;
  const Index block = last_tile ? first + count : first;
  const Index begin = larger(block, next.lowest_first), end = smaller(block + kKeyBlock, next.highest_last);
  if (begin >= end) return ahead;
  (add_pairs(x, next, begin, end, ahead), ...);
  ahead.spread(product_tiles);
  return ahead;
}

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
