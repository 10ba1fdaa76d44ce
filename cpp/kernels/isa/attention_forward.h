#pragma once

// Attention forward: one pass over the keys with an online softmax (Milakov and Gimelshein 2018; Dao 2023,
// algorithm 1).
//
// A task is a run of queries that read one key head, cut into tiles. The loop over key blocks is outside, the
// one over tiles inside, so that a block of keys and values is read from the outer caches once for all tiles.
// For every tile and block:
//
//   scores = keys queries^T                      (key, query)
//   m' = max(m, max over keys);  weights = exp(scale (scores - m'));  a = exp(scale (m - m'))
//   l  = l * a + sum over keys of weights
//   output^T = output^T * a + values^T weights   (value column, query)
//
// and at the end output^T / l. Blocks that no query of a tile may see are not computed.

#include <type_traits>

#include "kernels/attention_kernels.h"
#include "kernels/isa/attention_dropout.h"
#include "kernels/isa/carver.h"
#include "kernels/isa/heads_from_memory.h"
#include "kernels/isa/scores.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

template <class T>
struct ForwardTile {
  QueryTile<T> queries;
  T* query;   // what score_product reads
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
  unsigned char *key_rows, *value_columns;  // packed
  SplitScratch<T> split;
  BiasTile<T> bias;

  ForwardWorkspace(const AttentionProblem& p, Index rows, Carver& carver)
      : tiles(ceil_div(rows, kTileQueries<T>)) {
    constexpr Index queries = kTileQueries<T>;
    tile = carver.take<ForwardTile<T>>(tiles);
    scores = carver.take<T>(kMostKeys * queries);
    keys = carver.take<T>(copy_size<T>(p, p.key, p.dim, tiles));
    values = carver.take<T>(copy_size<T>(p, p.value, p.value_dim, tiles));
    safe_values = carver.take<T>(kMostKeys * p.value_dim);
    key_rows = carver.take<unsigned char>(packed_rows_bytes(p, p.dim));
    value_columns = carver.take<unsigned char>(packed_columns_bytes(p, p.value_dim));
    split.take(p, p.value_dim * queries, carver);
    dense = carver.take<T>(queries * larger(p.dim, p.value_dim));
    factor = carver.take<T>(queries);
    const bool biased = p.bias.data != nullptr;
    bias.value = carver.take<T>(biased ? kMostKeys * queries : 0);
    bias.dense = carver.take<T>(biased ? kMostKeys * queries : 0);
    for (Index t = 0; t < tiles; ++t) {
      T* const query = carver.take<T>(query_operand_size<T>(p, p.dim));
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
Index tiles_workspace(const AttentionProblem& p, Index rows) {
  Carver carver(nullptr);
  ForwardWorkspace<T>(p, rows, carver);
  return carver.used();
}

template <class T>
void start_without_sinks(ForwardTile<T>& tile) {
  for (Index l = 0; l < tile.queries.width; ++l) {
    tile.maximum[l] = kMinusInfinity<T>;
    tile.sum[l] = T(0);
  }
  tile.seen = 0;
  tile.started = false;
}

template <class T>
void start_statistics(const AttentionProblem& p, ForwardTile<T>& tile) {
  start_without_sinks(tile);
  // A sink is a key with this score and the value zero.
  for (Index l = 0; l < tile.queries.width && p.sinks != nullptr; ++l) {
    tile.maximum[l] = static_cast<T>(p.sinks[tile.queries.head[l]]);
    tile.sum[l] = tile.maximum[l] == kMinusInfinity<T> ? T(0) : T(1);
  }
}

// Some vectors of a tile's queries, of which the first is lane `lane`: their scores, `width` from one key to
// the next, become weights relative to the running maximum; factor receives what earlier results are to be
// multiplied by. Weights that dropout does not keep (keep is null where there is none) count in the sum, then
// become zero.
template <class T, int vectors>
void online_softmax(Index count, typename Simd<T>::Vector unit, const std::uint32_t* keep, Index lane,
                    T* scores, Index width, T* maximum, T* sum, T* factor) {
  using S = Simd<T>;
  using Vector = typename S::Vector;
  constexpr int keys = 4 / vectors;  // at a time
  scores += lane, maximum += lane, sum += lane, factor += lane;
  const auto score = [&](Index k, Index v) { return scores + k * width + v * S::lanes; };
  Vector top[vectors], total[vectors][2];  // every other key
  for (Index v = 0; v < vectors; ++v) {
    // max(x, y) is y when either is NaN: a NaN score does not become the maximum, but its weight is NaN
    // below.
    Vector even = S::load(maximum + v * S::lanes), odd = even;
    Index k = 0;
    for (; k + 2 <= count; k += 2) {
      even = S::max(S::load(score(k, v)), even);
      odd = S::max(S::load(score(k + 1, v)), odd);
    }
    if (k < count) even = S::max(S::load(score(k, v)), even);
    top[v] = S::max(even, odd);
    // Nothing seen so far: subtract 0 instead of -inf, whose difference with itself is NaN.
    const Vector safe = S::select(S::equal(top[v], S::broadcast(kMinusInfinity<T>)), S::zero(), top[v]);
    S::store(factor + v * S::lanes, exp2_nonpositive<T>(S::load(maximum + v * S::lanes) - safe, unit));
    S::store(maximum + v * S::lanes, top[v]);
    top[v] = safe;
    total[v][0] = total[v][1] = S::zero();
  }
  const auto weigh = [&](Index first, auto at_a_time) {
    constexpr int size = decltype(at_a_time)::value * vectors;
    Vector weight[size];
    for (int i = 0; i < size; ++i) {
      weight[i] = S::load(score(first + i / vectors, i % vectors)) - top[i % vectors];
    }
    exp2_nonpositive<T>(weight, unit);
    for (int i = 0; i < size; ++i) total[i % vectors][i / vectors % 2] += weight[i];
    for (int i = 0; i < size && keep != nullptr; ++i) {
      const std::uint32_t bits = keep[first + i / vectors] >> (lane + i % vectors * S::lanes);
      weight[i] = S::select(S::from_bits(bits), weight[i], S::zero());
    }
    for (int i = 0; i < size; ++i) S::store(score(first + i / vectors, i % vectors), weight[i]);
  };
  Index k = 0;
  for (; k + keys <= count; k += keys) weigh(k, std::integral_constant<int, keys>());
  for (; k + 2 <= count; k += 2) weigh(k, std::integral_constant<int, 2>());
  if (k < count) weigh(k, std::integral_constant<int, 1>());
  for (Index v = 0; v < vectors; ++v) {
    T* running = sum + v * S::lanes;
    S::store(running, S::fma(S::load(running), S::load(factor + v * S::lanes), total[v][0] + total[v][1]));
  }
}

template <class T>
void online_softmax(const AttentionProblem& p, Index count, const std::uint32_t* keep, T* scores,
                    ForwardTile<T>& tile, T* factor) {
  using S = Simd<T>;
  const auto unit = S::broadcast(static_cast<T>(p.exponent_factor()));
  const Index vectors = tile.queries.vectors, width = tile.queries.width;
  for (Index l = 0; l + 2 * S::lanes <= width; l += 2 * S::lanes) {
    online_softmax<T, 2>(count, unit, keep, l, scores, width, tile.maximum, tile.sum, factor);
  }
  if (vectors % 2 == 0) return;
  online_softmax<T, 1>(count, unit, keep, width - S::lanes, scores, width, tile.maximum, tile.sum, factor);
}

// factor becomes 1 / sum, times what dropout multiplies kept weights by, and 0 for queries that have attended
// to nothing.
template <class T>
void finish_statistics(const AttentionProblem& p, const ForwardTile<T>& tile, T* factor, T* maximum,
                       T* reciprocal_sum) {
  const QueryTile<T>& place = tile.queries;
  for (Index l = 0; l < place.width; ++l) factor[l] = (tile.seen >> l & 1u) != 0 ? T(1) / tile.sum[l] : T(0);
  for (Index l = 0; l < place.count && maximum != nullptr; ++l) {
    maximum[place.statistic(p, l)] = tile.maximum[l];
    reciprocal_sum[place.statistic(p, l)] = factor[l];
  }
  const auto keep_scale = static_cast<T>(keep_factor(p));
  for (Index l = 0; l < place.width && p.dropout_p > 0; ++l) factor[l] *= keep_scale;
}

template <class T>
void attend_to_block(const AttentionProblem& p, Index first, Index count, const KeyBlock<T>& keys,
                     const KeyBlock<T>& values, FiniteRows<T>& finite_values,
                     const PackedColumns& packed_values, ForwardWorkspace<T>& work, ForwardTile<T>& tile,
                     RowsAhead& ahead) {
  const QueryTile<T>& place = tile.queries;
  VisibleQueries visible;
  find_visible(p, place, first, count, visible);
  if (visible.seen == 0) return;
  if (p.bias.data != nullptr) load_bias(p, place, first, count, work.bias, visible);
  if (visible.seen == 0) return;

  score_product(p, place, count, keys, tile.query, work.scores, ahead);
  finish_scores(p, place, first, count, work.bias, visible, work.scores);
  if (visible.seen == 0) return;
  tile.seen |= visible.seen;
  if (!visible.all) hide(place, count, visible, kMinusInfinity<T>, work.scores);
  if (p.dropout_p > 0) {
    const KeptWeights kept(p, place, first, count);
    online_softmax(p, count, kept.of, work.scores, tile, work.factor);
  } else {
    online_softmax(p, count, nullptr, work.scores, tile, work.factor);
  }

  if (p.split != nullptr) {
    ahead.ask(product_tiles(p.value_dim));
    const auto product =
        tile.started ? columns_product<T, Finish::scale_add> : columns_product<T, Finish::store>;
    product(p, place, count, packed_values, values, visible, work.scores, work.split, tile.output,
            work.factor);
    tile.started = true;
    return;
  }
  UnsafeRows unsafe;
  const KeyBlock<T> safe = visible.all || finite_values.all()
                               ? values
                               : replace_unsafe_rows(values, count, p.value_dim, work.safe_values, unsafe);
  const auto product =
      tile.started ? weighted_columns<T, Finish::scale_add> : weighted_columns<T, Finish::store>;
  product(place, count, p.value_dim, safe, work.scores, tile.output, work.factor, ahead);
  tile.started = true;
  if (unsafe.count > 0)
    add_unsafe_rows(place, values, p.value_dim, unsafe, visible, work.scores, tile.output);
}

template <class T>
void forward_tiles(const AttentionProblem& p, const QueryRun& run, void* memory,
                   const MutableAttentionOperand& output, T* maximum, T* reciprocal_sum) {
  Carver carver(memory);
  ForwardWorkspace<T> work(p, run.count, carver);
  if (p.split != nullptr) p.split->configure();
  Index lowest = p.key_length, highest = 0, tiles_of_products = 0;
  for (Index t = 0, done = 0; t < work.tiles; ++t) {
    ForwardTile<T>& tile = work.tile[t];
    done += place_run(p, run, done, tile.queries);
    pack_scores_operand(p, tile.queries, work.dense, work.split, tile.query);
    start_statistics(p, tile);
    lowest = smaller(lowest, tile.queries.lowest_first);
    highest = larger(highest, tile.queries.highest_last);
    tiles_of_products += forward_product_tiles(p, tile.queries.highest_last - tile.queries.lowest_first);
  }
  RowsAhead ahead;
  ahead.later = rows_ahead_of_forward(p, run, tiles_of_products, output);
  const bool from_memory = forward_passes_from_memory(p, run);
  for (Index first = lowest / kKeyBlock * kKeyBlock, count; first < highest; first += count) {
    count = keys_of_block(p, first);
    const KeyBlock<T> keys = stored_block(p, p.key, run.batch, run.key_head, first, count, p.dim, work.tiles,
                                          work.keys, work.key_rows);
    const KeyBlock<T> values =
        key_block(p, p.value, run.batch, run.key_head, first, count, p.value_dim, work.tiles, work.values);
    const PackedColumns columns =
        pack_columns(p, values, count, p.value_dim, work.safe_values, work.value_columns);
    FiniteRows<T> finite_values(values, count, p.value_dim);
    if (from_memory) ahead.later = rows_ahead_of_forward_block(p, run, first, count, highest, work.tiles);
    for (Index t = 0; t < work.tiles; ++t) {
      if (p.bias.data != nullptr) {
        ahead.soon = pairs_of_next_tile<T>(work.tile, work.tiles, t, first, count,
                                           forward_product_tiles(p, count), p.bias);
      }
      const QueryTile<T>& place = work.tile[t].queries;
      const Index begin = part_begin(p, first, larger(first, place.lowest_first));
      const Index end = smaller(first + count, place.highest_last);
      if (begin >= end) continue;
      attend_to_block(p, begin, end - begin, keys.from(begin - first), values.from(begin - first),
                      finite_values, columns.from(begin - first), work, work.tile[t], ahead);
    }
  }
  if (p.split != nullptr) p.split->release();
  for (Index t = 0; t < work.tiles; ++t) {
    ForwardTile<T>& tile = work.tile[t];
    finish_statistics(p, tile, work.factor, maximum, reciprocal_sum);
    for (Index i = 0; i < p.value_dim * tile.queries.width && !tile.started; ++i) tile.output[i] = T(0);
    write_queries(tile.queries, p.value_dim, tile.output, work.factor, work.dense, output);
  }
}

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
