#pragma once

// Attention backward: weights are computed again from the statistics that forward left (Dao et al. 2022,
// algorithm 4), so that nothing of size query_length x key_length is ever kept. With P the weights, Z the
// dropout factors (0 or 1 / (1 - p)) and delta = rowsum(d_output * output):
//
//   d_value  = (P Z)^T d_output
//   dS       = P * (Z * (d_output value^T) - delta)       (the gradient of the scores after softcap, and that
//   of the bias) d_query  = scale * dS' key,   d_key = scale * dS'^T query,   dS' = dS * (1 - tanh^2)
//
// A task is one key head of one batch entry and a run of queries of every query head that reads it. Queries
// are outside, in blocks of a few tiles that are packed once; key blocks inside; d_key and d_value gather in
// scratch rows of whole vectors. All five products are block_product: keys and values are again only read by
// broadcasting loads.

#include <type_traits>

#include "kernels/attention_kernels.h"
#include "kernels/isa/attention_dropout.h"
#include "kernels/isa/attention_weights.h"
#include "kernels/isa/heads_from_memory.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

constexpr Index kBackwardTiles = 4;  // tiles that share one pass over the keys

template <class T>
constexpr Index whole_vectors(Index columns) {
  return round_up(columns, Simd<T>::lanes);
}

template <class T>
struct BackwardTile {
  QueryTile<T> queries;
  T* query;                                     // what score_product reads
  T* query_rows;                                // queries x dim in whole vectors, times scale
  T* d_output;                                  // likewise
  T* d_output_rows;                             // queries x value_dim in whole vectors
  T *packed_query_rows, *packed_d_output_rows;  // for split products
  T* d_query;                                   // dim x queries
  T *maximum, *reciprocal_sum, *delta;
  std::uint32_t unsafe_query, unsafe_d_output;  // queries whose row is not finite: zero in the rows above
};

template <class T>
struct BackwardWorkspace {
  BackwardTile<T> tile[kBackwardTiles];
  T *scores, *d_scores, *cap, *keys, *values, *safe_keys, *dense, *scale;
  T *d_key, *d_value;                                  // key_length rows of whole vectors
  unsigned char *key_rows, *key_columns, *value_rows;  // packed
  SplitScratch<T> split;
  BiasTile<T> bias;

  BackwardWorkspace(const AttentionProblem& p, Carver& carver) {
    constexpr Index queries = kTileQueries<T>;
    scores = carver.take<T>(kMostKeys * queries);
    d_scores = carver.take<T>(kMostKeys * queries);
    cap = carver.take<T>(p.softcap > 0 ? kMostKeys * queries : 0);
    keys = carver.take<T>(copy_size<T>(p, p.key, p.dim, kBackwardTiles));
    values = carver.take<T>(copy_size<T>(p, p.value, p.value_dim, kBackwardTiles));
    safe_keys = carver.take<T>(kMostKeys * p.dim);
    key_rows = carver.take<unsigned char>(packed_rows_bytes(p, p.dim));
    key_columns = carver.take<unsigned char>(packed_columns_bytes(p, p.dim));
    value_rows = carver.take<unsigned char>(packed_rows_bytes(p, p.value_dim));
    const Index widest = whole_vectors<T>(larger(p.dim, p.value_dim));
    split.take(p, larger(kMostKeys * widest, p.dim * queries), carver);
    dense = carver.take<T>(queries * larger(p.dim, p.value_dim));
    scale = carver.take<T>(queries);
    const bool biased = p.bias.data != nullptr;
    bias.value = carver.take<T>(biased ? kMostKeys * queries : 0);
    bias.dense = carver.take<T>(biased ? kMostKeys * queries : 0);
    for (BackwardTile<T>& t : tile) {
      t.query = carver.take<T>(query_operand_size<T>(p, p.dim));
      t.query_rows = carver.take<T>(queries * whole_vectors<T>(p.dim));
      t.d_output = carver.take<T>(query_operand_size<T>(p, p.value_dim));
      t.d_output_rows = carver.take<T>(queries * whole_vectors<T>(p.value_dim));
      t.packed_query_rows = carver.take<T>(row_operand_size<T>(p, p.dim));
      t.packed_d_output_rows = carver.take<T>(row_operand_size<T>(p, p.value_dim));
      t.d_query = carver.take<T>(p.dim * queries);
      t.maximum = carver.take<T>(queries);
      t.reciprocal_sum = carver.take<T>(queries);
      t.delta = carver.take<T>(queries);
    }
  }
  void take_key_gradients(const AttentionProblem& p, Carver& carver) {
    d_key = carver.take<T>(p.key_length * whole_vectors<T>(p.dim));
    d_value = carver.take<T>(p.key_length * whole_vectors<T>(p.value_dim));
  }
};

template <class T>
Index bias_gradient_workspace(const AttentionProblem& p) {
  Carver carver(nullptr);
  BackwardWorkspace<T>(p, carver);
  return carver.used();
}

template <class T>
Index backward_workspace(const AttentionProblem& p) {
  Carver carver(nullptr);
  BackwardWorkspace<T>(p, carver).take_key_gradients(p, carver);
  return carver.used();
}

// Rows of a tile as they are packed: what is found out about them on the way.
template <class T>
struct PackedRow {
  typename Simd<T>::Vector zeros;    // sum of row * 0: NaN in some lane, unless all of it is finite
  typename Simd<T>::Vector product;  // sum of row * other, if there is another
};

// out = row * factor, padded with zeros to whole vectors.
template <class T>
inline PackedRow<T> pack_row(const T* row, const T* other, Index columns, T factor, T* out) {
  using S = Simd<T>;
  const auto scale = S::broadcast(factor);
  PackedRow<T> result = {S::zero(), S::zero()};
  const auto take = [&](Index c, typename S::Vector x) {
    const auto scaled = x * scale;
    S::store(out + c, scaled);
    result.zeros += scaled * S::zero();
  };
  Index c = 0;
  for (; c + S::lanes <= columns; c += S::lanes) {
    const auto x = S::load(row + c);
    take(c, x);
    if (other != nullptr) result.product = S::fma(S::load(other + c), x, result.product);
  }
  if (c < columns) {
    const auto x = S::load_first(row + c, columns - c);
    take(c, x);
    if (other != nullptr) result.product = S::fma(S::load_first(other + c, columns - c), x, result.product);
  }
  return result;
}

// The rows of a tile, dense and padded with zeros to whole vectors, times factor; unused and unsafe rows are
// zero. Returns the unsafe ones, one bit each. Where there is another operand, of type T with dense columns,
// products[l] = sum of row * other in one order, whatever the strides. `copy` holds a row.
template <class T>
std::uint32_t pack_rows(const AttentionProblem& p, const AttentionOperand& x, const AttentionOperand* other,
                        const QueryTile<T>& tile, Index columns, T factor, T* copy, T* out, T* products) {
  using S = Simd<T>;
  const Index width = whole_vectors<T>(columns);
  const bool direct = x.dtype == dtype_of<T>() && x.column_stride == 1;
  auto zeros = S::zero();
  for (Index l = 0; l < tile.count; ++l) {
    const T* row = static_cast<const T*>(x.data) + tile.offset(x, l);
    if (!direct) {
      copy_rows(x, tile.offset(x, l), 1, columns, copy, columns);
      row = copy;
    }
    const T* const other_row =
        other == nullptr ? nullptr : static_cast<const T*>(other->data) + tile.offset(*other, l);
    const PackedRow<T> packed = pack_row(row, other_row, columns, factor, out + l * width);
    zeros += packed.zeros;
    if (other != nullptr) products[l] = S::sum(packed.product);
  }
  for (Index i = tile.count * width; i < tile.width * width; i += S::lanes) S::store(out + i, S::zero());
  for (Index l = tile.count; l < tile.width && other != nullptr; ++l) products[l] = T(0);

  auto* is_safe = is_finite_row<T>;
  bool all_safe = S::sum(zeros) == T(0);
  if constexpr (sizeof(T) == sizeof(float)) {
    if (p.split != nullptr) {
      is_safe = is_ordinary_row<T>;
      all_safe = false;
    }
  }
  std::uint32_t unsafe = 0;
  for (Index l = 0; l < tile.count && !all_safe; ++l) {
    T* const row = out + l * width;
    if (is_safe(row, columns, 1)) continue;
    unsafe |= 1u << l;
    for (Index c = 0; c < columns; ++c) row[c] = T(0);
  }
  return unsafe;
}

template <class T>
void start_backward_tile(const AttentionProblem& p, const BackwardInputs<T>& inputs,
                         BackwardWorkspace<T>& work, BackwardTile<T>& tile) {
  const QueryTile<T>& place = tile.queries;
  tile.unsafe_query = pack_rows<T>(p, p.query, nullptr, place, p.dim, static_cast<T>(p.scale), work.dense,
                                   tile.query_rows, nullptr);
  tile.unsafe_d_output = pack_rows<T>(p, inputs.d_output, &inputs.output, place, p.value_dim, T(1),
                                      work.dense, tile.d_output_rows, tile.delta);
  pack_scores_operand(p, place, work.dense, work.split, tile.query);
  pack_query_operand(p, inputs.d_output, place, p.value_dim, work.dense, work.split, tile.d_output);
  if constexpr (sizeof(T) == sizeof(float)) {
    if (p.split != nullptr) {
      p.split->pack_right({tile.query_rows, whole_vectors<T>(p.dim), 1}, place.width, p.dim,
                          tile.packed_query_rows);
      p.split->pack_right({tile.d_output_rows, whole_vectors<T>(p.value_dim), 1}, place.width, p.value_dim,
                          tile.packed_d_output_rows);
    }
  }
  load_statistics(p, tile.queries, inputs.maximum, inputs.reciprocal_sum, tile.maximum, tile.reciprocal_sum);
  for (Index i = 0; i < p.dim * tile.queries.width; ++i) tile.d_query[i] = T(0);
}

// Which queries see which keys of a block; lanes that repeat the last query see nothing here.
template <class T>
void find_visible_for_gradients(const AttentionProblem& p, const QueryTile<T>& tile, Index first, Index count,
                                BiasTile<T>& bias, VisibleQueries& visible) {
  find_visible(p, tile, first, count, visible);
  if (visible.seen != 0 && p.bias.data != nullptr) load_bias(p, tile, first, count, bias, visible);
  if (visible.seen == 0 || tile.count == tile.width) return;
  const std::uint32_t used = (1u << tile.count) - 1u;
  for (Index k = 0; k < count; ++k) visible.bits[k] = (visible.all ? tile.every() : visible.bits[k]) & used;
  visible.all = false;
  visible.seen &= used;
}

// scores: becomes P Z; d_scores: comes as d_output value^T, becomes dS.
template <class T>
void score_gradients(Index count, const VisibleQueries& visible, const std::uint32_t* keep, T keep_scale,
                     T exponent_factor, const BackwardTile<T>& tile, T* scores, T* d_scores) {
  using S = Simd<T>;
  const Index width = tile.queries.width;
  const auto kept_scale = S::broadcast(keep_scale), unit = S::broadcast(exponent_factor);
  for (Index v = 0; v < tile.queries.vectors; ++v) {
    const Index l = v * S::lanes;
    const auto top = S::load(tile.maximum + l), scale = S::load(tile.reciprocal_sum + l);
    const auto delta = S::load(tile.delta + l);
    const auto from_keys = [&](Index first, auto at_a_time) {
      constexpr int keys = decltype(at_a_time)::value;
      typename S::Vector weight[keys];
      for (int i = 0; i < keys; ++i) weight[i] = S::load(scores + (first + i) * width + l) - top;
      exp2_nonpositive<T>(weight, unit);
      for (int i = 0; i < keys; ++i) {
        const Index k = first + i;
        weight[i] = weight[i] * scale;
        auto used = weight[i], d_weight = S::load(d_scores + k * width + l);
        if (keep != nullptr) {
          const auto kept = S::from_bits(keep[k] >> l);
          used = S::select(kept, weight[i] * kept_scale, S::zero());
          d_weight = S::select(kept, d_weight * kept_scale, S::zero());
        }
        auto gradient = weight[i] * (d_weight - delta);
        if (!visible.all) {
          const auto seen = S::from_bits(visible.bits[k] >> l);
          used = S::select(seen, used, S::zero());
          gradient = S::select(seen, gradient, S::zero());
        }
        S::store(scores + k * width + l, used);
        S::store(d_scores + k * width + l, gradient);
      }
    };
    Index k = 0;
    for (; k + 4 <= count; k += 4) from_keys(k, std::integral_constant<int, 4>());
    for (; k < count; ++k) from_keys(k, std::integral_constant<int, 1>());
  }
}

// The scores of a tile and their gradients: leaves P Z in work.scores and dS in work.d_scores (before the
// softcap). Returns whether any query sees any key.
template <class T>
bool recompute(const AttentionProblem& p, Index first, Index count, const KeyBlock<T>& keys,
               const KeyBlock<T>& values, VisibleQueries& visible, BackwardWorkspace<T>& work,
               const BackwardTile<T>& tile, RowsAhead& ahead) {
  using S = Simd<T>;
  const Index width = tile.queries.width;
  score_product(p, tile.queries, count, keys, tile.query, work.scores, ahead);
  if (p.softcap > 0) {
    for (Index i = 0; i < count * width; i += S::lanes) {
      const auto t = tanh<T>(S::load(work.scores + i) * S::broadcast(static_cast<T>(p.scale / p.softcap)));
      S::store(work.cap + i, S::fma(t * S::broadcast(T(-1)), t, S::broadcast(T(1))));
    }
  }
  finish_scores(p, tile.queries, first, count, work.bias, visible, work.scores);
  if (visible.seen == 0) return false;
  if (!visible.all) hide(tile.queries, count, visible, kMinusInfinity<T>, work.scores);
  rows_product(p, tile.queries, count, p.value_dim, values, tile.d_output, work.d_scores, ahead);
  const auto exponent_factor = static_cast<T>(p.exponent_factor());
  if (p.dropout_p > 0) {
    const KeptWeights kept(p, tile.queries, first, count);
    score_gradients(count, visible, kept.of, static_cast<T>(keep_factor(p)), exponent_factor, tile,
                    work.scores, work.d_scores);
  } else {
    score_gradients(count, visible, nullptr, T(1), exponent_factor, tile, work.scores, work.d_scores);
  }
  return true;
}

// gradient[key] += sum over queries of weight[key][query] * rows[query]; the share of unsafe queries goes
// only to keys they see.
template <class T>
void add_to_keys(const AttentionProblem& p, Index count, const T* weights, const T* rows,
                 const T* packed_rows, Index columns, const AttentionOperand& source, T factor,
                 const VisibleQueries& visible, const QueryTile<T>& tile, std::uint32_t unsafe,
                 const SplitScratch<T>& scratch, T* gradient, RowsAhead& ahead) {
  const Index width = whole_vectors<T>(columns), queries = tile.width;
  if (p.split != nullptr) {
    ahead.ask(product_tiles(count) * ceil_div(width, kTileQueries<T>));
    add_rows_product(p, tile, count, weights, packed_rows, columns, scratch, gradient, width);
  } else {
    block_product<T, Finish::add>(count, width / Simd<T>::lanes, tile.count, {weights, queries, 1}, rows,
                                  width, gradient, width, nullptr, ahead);
  }
  if (unsafe == 0) return;
  for (Index l = 0; l < tile.count; ++l) {
    if ((unsafe >> l & 1u) == 0) continue;
    const Index row = tile.offset(source, l);
    for (Index k = 0; k < count; ++k) {
      if (!visible.all && (visible.bits[k] >> l & 1u) == 0) continue;
      for (Index c = 0; c < columns; ++c) {
        const T x = read_element<T>(source.data, source.dtype, row + c * source.column_stride) * factor;
        gradient[k * width + c] += weights[k * queries + l] * x;
      }
    }
  }
}

// d_bias[query][key] (=, +=) dS.
template <class T>
void write_bias_gradient(const QueryTile<T>& tile, Index first, Index count, const T* d_scores,
                         const BackwardOutputs<T>& outputs) {
  const MutableAttentionOperand& d_bias = outputs.d_bias;
  T* row[kTileQueries<T>];
  for (Index l = 0; l < tile.count; ++l)
    row[l] = static_cast<T*>(d_bias.data) + tile.offset(d_bias, l) + first;
  write_transposed(d_scores, tile.width, count, outputs.add_bias, tile.count, row);
}

// Where no query of a tile sees any of `count` keys.
template <class T>
void write_no_bias_gradient(const QueryTile<T>& tile, Index first, Index count,
                            const BackwardOutputs<T>& outputs) {
  const MutableAttentionOperand& d_bias = outputs.d_bias;
  if (d_bias.data == nullptr || outputs.add_bias) return;
  for (Index l = 0; l < tile.count; ++l) {
    T* const row = static_cast<T*>(d_bias.data) + tile.offset(d_bias, l) + first;
    for (Index k = 0; k < count; ++k) row[k] = T(0);
  }
}

template <class T>
void backward_block(const AttentionProblem& p, const BackwardInputs<T>& inputs, Index first, Index count,
                    const KeyBlock<T>& keys, FiniteRows<T>& finite_keys, const KeyBlock<T>& values,
                    const PackedColumns& key_columns, BackwardWorkspace<T>& work, BackwardTile<T>& tile,
                    const BackwardOutputs<T>& outputs, RowsAhead& ahead) {
  using S = Simd<T>;
  const Index width = tile.queries.width;
  VisibleQueries visible;
  find_visible_for_gradients(p, tile.queries, first, count, work.bias, visible);
  if (visible.seen == 0 || !recompute(p, first, count, keys, values, visible, work, tile, ahead))
    return write_no_bias_gradient(tile.queries, first, count, outputs);
  if (outputs.d_bias.data != nullptr) write_bias_gradient(tile.queries, first, count, work.d_scores, outputs);
  add_to_keys(p, count, work.scores, tile.d_output_rows, tile.packed_d_output_rows, p.value_dim,
              inputs.d_output, T(1), visible, tile.queries, tile.unsafe_d_output, work.split,
              work.d_value + first * whole_vectors<T>(p.value_dim), ahead);
  if (p.softcap > 0) {
    for (Index i = 0; i < count * width; i += S::lanes) {
      S::store(work.d_scores + i, S::load(work.d_scores + i) * S::load(work.cap + i));
    }
    if (!visible.all) hide(tile.queries, count, visible, T(0), work.d_scores);
  }
  add_to_keys(p, count, work.d_scores, tile.query_rows, tile.packed_query_rows, p.dim, p.query,
              static_cast<T>(p.scale), visible, tile.queries, tile.unsafe_query, work.split,
              work.d_key + first * whole_vectors<T>(p.dim), ahead);
  if (p.split != nullptr) {
    ahead.ask(product_tiles(p.dim));
    columns_product<T, Finish::add>(p, tile.queries, count, key_columns, keys, visible, work.d_scores,
                                    work.split, tile.d_query);
    return;
  }
  UnsafeRows unsafe;
  const KeyBlock<T> safe = visible.all || finite_keys.all()
                               ? keys
                               : replace_unsafe_rows(keys, count, p.dim, work.safe_keys, unsafe);
  weighted_columns<T, Finish::add>(tile.queries, count, p.dim, safe, work.d_scores, tile.d_query, nullptr,
                                   ahead);
  if (unsafe.count > 0)
    add_unsafe_rows(tile.queries, keys, p.dim, unsafe, visible, work.d_scores, tile.d_query);
}

// gradient (+)= rows of whole vectors.
template <class T>
void write_key_gradient(const T* rows, Index count, Index columns, bool add, T* gradient, Index stride) {
  const Index width = whole_vectors<T>(columns);
  for (Index k = 0; k < count; ++k) {
    const T* row = rows + k * width;
    T* out = gradient + k * stride;
    if (add) {
      for (Index c = 0; c < columns; ++c) out[c] += row[c];
    } else {
      for (Index c = 0; c < columns; ++c) out[c] = row[c];
    }
  }
}

template <class T>
void backward(const AttentionProblem& p, const QueryRun& run, const BackwardInputs<T>& inputs, void* memory,
              const BackwardOutputs<T>& outputs) {
  Carver carver(memory);
  BackwardWorkspace<T> work(p, carver);
  work.take_key_gradients(p, carver);
  for (Index l = 0; l < kTileQueries<T>; ++l) work.scale[l] = static_cast<T>(p.scale);
  const Index key_width = whole_vectors<T>(p.dim), value_width = whole_vectors<T>(p.value_dim);
  for (Index i = 0; i < p.key_length * key_width; ++i) work.d_key[i] = T(0);
  for (Index i = 0; i < p.key_length * value_width; ++i) work.d_value[i] = T(0);

  if (p.split != nullptr) p.split->configure();
  RowsAhead ahead;
  ahead.later = rows_ahead_of_backward(p, run, inputs, outputs);
  const bool from_memory = passes_from_memory(
      p, (p.dim + p.value_dim) * item_size(p.key.dtype) + (key_width + value_width) * Index{sizeof(T)});
  for (Index done = 0; done < run.count;) {
    Index tiles = 0, lowest = p.key_length, highest = 0;
    for (; tiles < kBackwardTiles && done < run.count; ++tiles) {
      BackwardTile<T>& tile = work.tile[tiles];
      done += place_run(p, run, done, tile.queries);
      start_backward_tile(p, inputs, work, tile);
      for (Index l = 0; l < tile.queries.count && outputs.delta != nullptr; ++l)
        outputs.delta[tile.queries.statistic(p, l)] = tile.delta[l];
      write_no_bias_gradient(tile.queries, 0, tile.queries.lowest_first, outputs);
      write_no_bias_gradient(tile.queries, tile.queries.highest_last,
                             p.key_length - tile.queries.highest_last, outputs);
      lowest = smaller(lowest, tile.queries.lowest_first);
      highest = larger(highest, tile.queries.highest_last);
    }
    for (Index first = lowest / kKeyBlock * kKeyBlock, count; first < highest; first += count) {
      count = keys_of_block(p, first);
      const KeyBlock<T> keys =
          key_block(p, p.key, run.batch, run.key_head, first, count, p.dim, tiles, work.keys, work.key_rows);
      const KeyBlock<T> values = key_block(p, p.value, run.batch, run.key_head, first, count, p.value_dim,
                                           tiles, work.values, work.value_rows);
      const PackedColumns key_columns = pack_columns(p, keys, count, p.dim, work.safe_keys, work.key_columns);
      FiniteRows<T> finite_keys(keys, count, p.dim);
      if (from_memory) {
        ahead.later = rows_ahead_of_backward_block<T>(p, run, first, count, highest, tiles, work.d_key,
                                                      key_width, work.d_value, value_width);
      }
      for (Index t = 0; t < tiles; ++t) {
        if (p.bias.data != nullptr) {
          ahead.soon = pairs_of_next_tile<T>(work.tile, tiles, t, first, count,
                                             backward_product_tiles<T>(p, count), p.bias, outputs.d_bias);
        }
        const QueryTile<T>& place = work.tile[t].queries;
        const Index begin = part_begin(p, first, larger(first, place.lowest_first));
        const Index end = smaller(first + count, place.highest_last);
        if (begin >= end) continue;
        backward_block(p, inputs, begin, end - begin, keys.from(begin - first), finite_keys,
                       values.from(begin - first), key_columns.from(begin - first), work, work.tile[t],
                       outputs, ahead);
      }
    }
    for (Index t = 0; t < tiles; ++t) {
      write_queries(work.tile[t].queries, p.dim, work.tile[t].d_query, work.scale, work.dense,
                    outputs.d_query);
    }
  }
  if (p.split != nullptr) p.split->release();
  write_key_gradient(work.d_key, p.key_length, p.dim, outputs.add, outputs.d_key, outputs.d_key_stride);
  write_key_gradient(work.d_value, p.key_length, p.value_dim, outputs.add, outputs.d_value,
                     outputs.d_value_stride);
}

// out[r][key] += dS for rows of one head and keys [first_key, last_key): the gradient of the bias before it
// is summed to the bias's own shape.
template <class T>
void bias_gradient(const AttentionProblem& p, const HeadRows& rows, Index first_key, Index last_key,
                   const BackwardInputs<T>& inputs, void* memory, T* out) {
  Carver carver(memory);
  BackwardWorkspace<T> work(p, carver);
  BackwardTile<T>& tile = work.tile[0];
  Index row[kTileQueries<T>];
  for (Index r = 0; r < rows.count; ++r) row[r] = rows.first + r;
  place_rows(p, rows.batch, rows.head, row, rows.count, tile.queries);
  start_backward_tile(p, inputs, work, tile);
  const Index key_head = tile.queries.key_head;
  if (p.split != nullptr) p.split->configure();
  const Index lowest = larger(first_key, tile.queries.lowest_first),
              highest = smaller(last_key, tile.queries.highest_last);
  RowsAhead nothing_ahead;
  for (Index first = lowest; first < highest; first += kKeyBlock) {
    const Index block = smaller(kKeyBlock, highest - first);
    VisibleQueries visible;
    find_visible_for_gradients(p, tile.queries, first, block, work.bias, visible);
    if (visible.seen == 0) continue;
    const KeyBlock<T> keys =
        key_block(p, p.key, rows.batch, key_head, first, block, p.dim, 1, work.keys, work.key_rows);
    const KeyBlock<T> values = key_block(p, p.value, rows.batch, key_head, first, block, p.value_dim, 1,
                                         work.values, work.value_rows);
    if (!recompute(p, first, block, keys, values, visible, work, tile, nothing_ahead)) continue;
    T* sum[kTileQueries<T>];
    for (Index r = 0; r < rows.count; ++r) sum[r] = out + r * (last_key - first_key) + (first - first_key);
    write_transposed(work.d_scores, tile.queries.width, block, true, rows.count, sum);
  }
  if (p.split != nullptr) p.split->release();
}

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
