#pragma once

// Where heads are so many that they come from memory, a head would wait for its rows, and the next one for
// its own. So whoever attends to a head asks meanwhile for the rows of the next one, which the same thread
// will mostly be given, and for what it will write itself.

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

// The rows of a run's queries in one of the arrays that have a row for each.
template <class Operand>
void add_rows_of_run(const AttentionProblem& p, const QueryRun& run, const Operand& x, Index columns,
                     RowsAhead& ahead) {
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
                         Index columns, RowsAhead& ahead) {
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
inline RowsAhead rows_ahead_of_forward(const AttentionProblem& p, QueryRun run, Index tiles,
                                       const MutableAttentionOperand& output) {
  RowsAhead ahead;
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

// What backward asks for during a run of all queries of a key head.
template <class T>
RowsAhead rows_ahead_of_backward(const AttentionProblem& p, QueryRun run, const BackwardInputs<T>& inputs,
                                 const BackwardOutputs<T>& outputs) {
  RowsAhead ahead;
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
  // Scores and their gradients, those of values and keys, those of queries.
  const Index keys = p.key_length, width = 2 * Simd<T>::lanes;
  const Index tiles_of_block =
      product_tiles(keys) * (2 + ceil_div(p.dim, width) + ceil_div(p.value_dim, width)) +
      ceil_div(keys, kKeyBlock) * product_tiles(p.dim);
  ahead.spread(ceil_div(run.count, kTileQueries<T>) * tiles_of_block);
  return ahead;
}

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
