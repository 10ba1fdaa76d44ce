#pragma once

// Attention forward: one pass over the keys with an online softmax (Milakov and Gimelshein 2018; Dao 2023, algorithm 1).
//
// A task is a run of queries of one head, cut into tiles. The loop over key blocks is outside, the one over tiles inside, so that a
// block of keys and values is read from the outer caches once for all tiles. For every tile and block:
//
//   scores = keys queries^T                      (key, query)
//   m' = max(m, max over keys);  weights = exp2(scores - m');  a = exp2(m - m')
//   l  = l * a + sum over keys of weights
//   output^T = output^T * a + values^T weights   (value column, query)
//
// and at the end output^T / l. Blocks that no query of a tile may see are not computed.

#include "kernels/attention_kernels.h"
#include "kernels/isa/attention_tile.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

template <class T>
struct ForwardTile {
  QueryTile<T> queries;
  T* query;   // dim x queries, scaled
  T* output;  // value_dim x queries
  T* maximum;
  T* sum;
  std::uint32_t seen;  // queries that have attended to something
  bool started;        // whether output holds anything yet
};

// Scratch memory of one task.
template <class T>
struct ForwardWorkspace {
  Index tiles;
  ForwardTile<T>* tile;
  T *scores, *keys, *values, *safe_values, *dense, *factor;
  BiasTile<T> bias;

  ForwardWorkspace(const AttentionProblem& p, Index rows, Carver& carver) : tiles(ceil_div(rows, kTileQueries<T>)) {
    constexpr Index queries = kTileQueries<T>;
    tile = carver.take<ForwardTile<T>>(tiles);
    scores = carver.take<T>(kKeyBlock * queries);
    const bool widen_keys = p.key.dtype != dtype_of<T>(), widen_values = p.value.dtype != dtype_of<T>();
    keys = carver.take<T>(widen_keys ? kKeyBlock * p.dim : 0);
    values = carver.take<T>(widen_values ? kKeyBlock * p.value_dim : 0);
    safe_values = carver.take<T>(kKeyBlock * p.value_dim);
    dense = carver.take<T>(queries * larger(p.dim, p.value_dim));
    factor = carver.take<T>(queries);
    const bool biased = p.bias.data != nullptr;
    bias.value = carver.take<T>(biased ? kKeyBlock * queries : 0);
    bias.dense = carver.take<T>(biased ? kKeyBlock * queries : 0);
    for (Index t = 0; t < tiles; ++t) {
      T* const query = carver.take<T>(p.dim * queries);
      T* const output = carver.take<T>(p.value_dim * queries);
      T* const maximum = carver.take<T>(queries);
      T* const sum = carver.take<T>(queries);
      if (maximum == nullptr) continue;
      tile[t].query = query;
      tile[t].output = output;
      tile[t].maximum = maximum;
      tile[t].sum = sum;
    }
  }
};

template <class T>
Index forward_workspace(const AttentionProblem& p, Index rows) {
  Carver carver(nullptr);
  ForwardWorkspace<T>(p, rows, carver);
  return carver.used();
}

template <class T>
void start_tile(const AttentionProblem& p, const AttentionTask& task, Index first_row, T* dense, ForwardTile<T>& tile) {
  using S = Simd<T>;
  Index row[kTileQueries<T>];
  const Index count = smaller(kTileQueries<T>, task.first_row + task.rows - first_row);
  for (Index l = 0; l < count; ++l) row[l] = first_row + l;
  place_queries(p, task.batch, task.head, row, count, tile.queries);
  pack_queries(p.query, tile.queries, p.dim, static_cast<T>(query_factor(p)), dense, tile.query);
  // A sink is a key with this score and the value zero.
  const bool sunk = p.sinks != nullptr;
  const auto maximum = S::broadcast(sunk ? static_cast<T>(p.sinks[task.head] * kLog2E) : kMinusInfinity<T>);
  for (Index v = 0; v < kTileVectors; ++v) {
    S::store(tile.maximum + v * S::lanes, maximum);
    S::store(tile.sum + v * S::lanes, S::broadcast(sunk ? T(1) : T(0)));
  }
  tile.seen = 0;
  tile.started = false;
}

// scores become weights relative to the running maximum; factor receives what earlier results are to be multiplied by.
template <class T>
void online_softmax(Index count, T* scores, T* maximum, T* sum, T* factor) {
  using S = Simd<T>;
  using Vector = typename S::Vector;
  constexpr Index queries = kTileQueries<T>;
  Vector top[kTileVectors];
  for (Index v = 0; v < kTileVectors; ++v) {
    // max(x, y) is y when either is NaN: a NaN score does not become the maximum, but its weight is NaN below.
    Vector even = S::load(maximum + v * S::lanes), odd = even;
    const T* score = scores + v * S::lanes;
    Index k = 0;
    for (; k + 2 <= count; k += 2) {
      even = S::max(S::load(score + k * queries), even);
      odd = S::max(S::load(score + (k + 1) * queries), odd);
    }
    if (k < count) even = S::max(S::load(score + k * queries), even);
    top[v] = S::max(even, odd);
    // Nothing seen so far: subtract 0 instead of -inf, whose difference with itself is NaN.
    const Vector safe = S::select(S::equal(top[v], S::broadcast(kMinusInfinity<T>)), S::zero(), top[v]);
    const Vector scale = exp2_nonpositive<T>(S::load(maximum + v * S::lanes) - safe);
    S::store(factor + v * S::lanes, scale);
    S::store(maximum + v * S::lanes, top[v]);
    top[v] = safe;
  }
  Vector total[kTileVectors][2];
  for (Index v = 0; v < kTileVectors; ++v) total[v][0] = total[v][1] = S::zero();
  Index k = 0;
  for (; k + 2 <= count; k += 2) {
    for (Index u = 0; u < 2; ++u) {
      for (Index v = 0; v < kTileVectors; ++v) {
        T* score = scores + (k + u) * queries + v * S::lanes;
        const Vector weight = exp2_nonpositive<T>(S::load(score) - top[v]);
        total[v][u] += weight;
        S::store(score, weight);
      }
    }
  }
  for (Index v = 0; v < kTileVectors; ++v) {
    if (k < count) {
      T* score = scores + k * queries + v * S::lanes;
      const Vector weight = exp2_nonpositive<T>(S::load(score) - top[v]);
      total[v][0] += weight;
      S::store(score, weight);
    }
    T* running = sum + v * S::lanes;
    S::store(running, S::fma(S::load(running), S::load(factor + v * S::lanes), total[v][0] + total[v][1]));
  }
}

// The share of a value row that is not finite, for the queries that see its key and for no others.
template <class T>
void add_unsafe_values(const KeyBlock<T>& values, Index columns, const UnsafeValues<T>& unsafe, Index first,
                       const VisibleQueries& visible, const T* weights, T* output) {
  using S = Simd<T>;
  for (Index u = 0; u < unsafe.count; ++u) {
    const Index key = unsafe.key[u], k = key - first;
    for (Index c = 0; c < columns; ++c) {
      const auto value = S::broadcast(values.data[key * values.row_stride + c * values.column_stride]);
      for (Index v = 0; v < kTileVectors; ++v) {
        T* target = output + c * kTileQueries<T> + v * S::lanes;
        const auto old = S::load(target);
        const auto sum = S::fma(S::load(weights + k * kTileQueries<T> + v * S::lanes), value, old);
        S::store(target, S::select(S::from_bits(visible.bits[k] >> (v * S::lanes)), sum, old));
      }
    }
  }
}

template <class T>
void finish_tile(const AttentionProblem& p, ForwardTile<T>& tile, T* dense, T* factor, const MutableAttentionOperand& output,
                 T* maximum, T* reciprocal_sum) {
  constexpr Index queries = kTileQueries<T>;
  const QueryTile<T>& place = tile.queries;
  for (Index l = 0; l < queries; ++l) {
    const bool attended = (tile.seen >> l & 1u) != 0;
    factor[l] = attended ? T(1) / tile.sum[l] : T(0);
  }
  const Index statistics = (place.batch * p.query_heads + place.head) * p.query_length;
  for (Index l = 0; l < place.count; ++l) {
    if (maximum != nullptr) {
      maximum[statistics + place.row[l]] = tile.maximum[l];
      reciprocal_sum[statistics + place.row[l]] = factor[l];
    }
  }
  const Index start = output.offset(place.batch, place.head);
  const bool direct = output.dtype == dtype_of<T>() && output.column_stride == 1;
  T* row[queries];
  for (Index l = 0; l < place.count; ++l) {
    row[l] = direct ? static_cast<T*>(output.data) + start + place.row[l] * output.row_stride : dense + l * p.value_dim;
  }
  if (tile.started) {
    untranspose_rows(tile.output, queries, p.value_dim, factor, place.count, row);
  }
  for (Index l = 0; l < place.count; ++l) {
    if ((tile.seen >> l & 1u) == 0) {
      for (Index c = 0; c < p.value_dim; ++c) row[l][c] = T(0);
    }
    if (!direct) {
      const Index target = start + place.row[l] * output.row_stride;
      for (Index c = 0; c < p.value_dim; ++c) {
        write_element<T>(output.data, output.dtype, target + c * output.column_stride, row[l][c]);
      }
    }
  }
}

template <class T>
void attend_to_block(const AttentionProblem& p, Index first, const KeyBlock<T>& keys, const KeyBlock<T>& values, Index begin,
                     Index end, ForwardWorkspace<T>& work, ForwardTile<T>& tile) {
  constexpr Index queries = kTileQueries<T>;
  const Index count = end - begin;
  VisibleQueries visible;
  find_visible(p, tile.queries, begin, count, visible);
  if (visible.seen == 0) return;
  if (p.bias.data != nullptr) load_bias(p, tile.queries, begin, count, work.bias, visible);
  if (visible.seen == 0) return;
  tile.seen |= visible.seen;

  const Broadcast<T> key_rows{keys.data + (begin - first) * keys.row_stride, keys.row_stride, keys.column_stride};
  block_product<T, Finish::store>(count, kTileVectors, p.dim, key_rows, tile.query, queries, work.scores, queries);
  finish_scores(p, tile.queries, begin, count, work.bias, work.scores);
  if (!visible.all) hide<T>(count, visible, work.scores);
  online_softmax(count, work.scores, tile.maximum, tile.sum, work.factor);
  if (p.dropout_p > 0) {
    std::uint32_t keep[kKeyBlock];
    find_kept(p, tile.queries, begin, count, keep);
    drop<T>(count, keep, static_cast<T>(keep_factor(p)), work.scores);
  }

  KeyBlock<T> safe = values;
  UnsafeValues<T> unsafe;
  unsafe.count = 0;
  if (!visible.all) safe = replace_unsafe_values(values, begin - first, count, p.value_dim, work.safe_values, unsafe);
  const Broadcast<T> value_columns{safe.data + (begin - first) * safe.row_stride, safe.column_stride, safe.row_stride};
  if (tile.started) {
    block_product<T, Finish::scale_add>(p.value_dim, kTileVectors, count, value_columns, work.scores, queries, tile.output,
                                        queries, work.factor);
  } else {
    block_product<T, Finish::store>(p.value_dim, kTileVectors, count, value_columns, work.scores, queries, tile.output,
                                    queries);
    tile.started = true;
  }
  if (unsafe.count > 0) {
    const T* weights = work.scores;
    add_unsafe_values(values, p.value_dim, unsafe, begin - first, visible, weights, tile.output);
  }
}

template <class T>
void forward(const AttentionProblem& p, const AttentionTask& task, void* memory, const MutableAttentionOperand& output,
             T* maximum, T* reciprocal_sum) {
  constexpr Index queries = kTileQueries<T>;
  Carver carver(memory);
  ForwardWorkspace<T> work(p, task.rows, carver);
  Index lowest = p.key_length, highest = 0;
  for (Index t = 0; t < work.tiles; ++t) {
    start_tile(p, task, task.first_row + t * queries, work.dense, work.tile[t]);
    lowest = smaller(lowest, work.tile[t].queries.lowest_first);
    highest = larger(highest, work.tile[t].queries.highest_last);
  }
  const Index key_head = p.key_head(task.head);
  for (Index first = lowest / kKeyBlock * kKeyBlock; first < highest; first += kKeyBlock) {
    const Index count = smaller(kKeyBlock, p.key_length - first);
    const KeyBlock<T> keys = key_block(p.key, task.batch, key_head, first, count, p.dim, work.keys);
    const KeyBlock<T> values = key_block(p.value, task.batch, key_head, first, count, p.value_dim, work.values);
    for (Index t = 0; t < work.tiles; ++t) {
      const QueryTile<T>& place = work.tile[t].queries;
      const Index begin = larger(first, place.lowest_first), end = smaller(first + count, place.highest_last);
      if (begin < end) attend_to_block(p, first, keys, values, begin, end, work, work.tile[t]);
    }
  }
  for (Index t = 0; t < work.tiles; ++t) {
    finish_tile(p, work.tile[t], work.dense, work.factor, output, maximum, reciprocal_sum);
  }
}

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
