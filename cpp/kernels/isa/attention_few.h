#pragma once

// Attention forward for one to four queries that read the same keys (decoding): lanes along the head instead
// of along the queries.
//
// A tile of queries would use few of its lanes, and reading keys by broadcasting loads runs at 4 bytes per
// load: slower than memory delivers. Here keys and values are read once, row after row, in whole vectors,
// which is as fast as memory is (34 GB/s of one core where the tile reached 9):
//
//   scores[key][query] = sum over vectors of key row * query row      (score_product)
//   output[query]      = output[query] * a + sum over keys of weights[key][query] * value row
//
// Masks, softmax and everything else give the bits of the tile, from scores that lie closer together.
//
// Where there are many keys they are cut into parts, which other threads attend to; what is left of a part is
// its maximum m, its sum of weights l and its output before the division. One after the other they join a
// running total, as blocks do within a part:
//
//   m' = max(m, m_part);  a = exp(scale (m - m'));  b = exp(scale (m_part - m'))
//   l  = l * a + l_part * b;  output = output * a + output_part * b

#include <type_traits>

#include "kernels/isa/attention_forward.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

constexpr Index kFewQueries = AttentionProblem::kFewQueries;

// Sums of columns that the registers hold.
#if defined(BLASFORMER_ISA_avx512)
constexpr int kColumnSums = 16;
#else
constexpr int kColumnSums = 8;
#endif

template <class T>
struct FewWorkspace {
  ForwardTile<T> tile;
  T *scores, *keys, *values, *safe_values, *factor;
  BiasTile<T> bias;

  FewWorkspace(const AttentionProblem& p, Carver& carver) {
    constexpr Index width = Simd<T>::lanes < kFewQueries ? kFewQueries : Simd<T>::lanes;
    tile.query = carver.take<T>(kFewQueries * p.dim);
    tile.output = carver.take<T>(kFewQueries * p.value_dim);
    tile.maximum = carver.take<T>(width);
    tile.sum = carver.take<T>(width);
    factor = carver.take<T>(width);
    scores = carver.take<T>(kKeyBlock * width);
    keys = carver.take<T>(kKeyBlock * p.dim);
    values = carver.take<T>(kKeyBlock * p.value_dim);
    safe_values = carver.take<T>(kKeyBlock * p.value_dim);
    const bool biased = p.bias.data != nullptr;
    bias.value = carver.take<T>(biased ? kKeyBlock * width : 0);
    bias.dense = carver.take<T>(biased ? kMostKeys * width : 0);
  }
};

template <class T>
Index few_workspace(const AttentionProblem& p) {
  Carver carver(nullptr);
  FewWorkspace<T>(p, carver);
  return carver.used();
}

// output = output * factor + weights values for `vectors` vectors of columns, which only one alone may be cut
// off; values and output begin at the first of them.
template <class T, class Row, int queries, int vectors>
void value_columns(Index count, Index columns, const typename Row::Stored* values, Index stride,
                   const T* weights, Index width, const T* factor, bool started, T* output,
                   Index output_stride) {
  using S = Simd<T>;
  typename S::Vector sum[queries][vectors];
  for (int q = 0; q < queries; ++q) {
    for (int v = 0; v < vectors; ++v) sum[q][v] = S::zero();
  }
  for (Index k = 0; k < count; ++k) {
    const typename Row::Stored* row = values + k * stride;
    prefetch_row(row + kRowsAhead<typename Row::Stored> * stride, vectors * S::lanes);
    if constexpr (vectors == 1) {
      const auto x = S::load_first(row, columns);
      for (int q = 0; q < queries; ++q)
        sum[q][0] = S::fma(S::broadcast(weights[k * width + q]), x, sum[q][0]);
    }
    for (int v = 0; v + 2 <= vectors; v += 2) {
      typename S::Vector two[2];
      Row::load_two(row + v * S::lanes, two);
      for (int q = 0; q < queries; ++q) {
        const auto weight = S::broadcast(weights[k * width + q]);
        sum[q][v] = S::fma(weight, two[0], sum[q][v]);
        sum[q][v + 1] = S::fma(weight, two[1], sum[q][v + 1]);
      }
    }
  }
  for (int q = 0; q < queries; ++q) {
    for (int v = 0; v + 2 <= vectors; v += 2) Row::restore(sum[q][v], sum[q][v + 1]);
    for (int v = 0; v < vectors; ++v) {
      T* target = output + q * output_stride + v * S::lanes;
      const Index lanes = smaller(columns - v * S::lanes, S::lanes);
      if (started) sum[q][v] = S::fma(S::load_first(target, lanes), S::broadcast(factor[q]), sum[q][v]);
      S::store_first(target, sum[q][v], lanes);
    }
  }
}

template <class T, int queries>
void few_values(Index count, Index value_dim, const KeyBlock<T>& values, const T* weights, Index width,
                const T* factor, bool started, T* output) {
  with_stored_rows(values, [&]<class Row>(Row, const typename Row::Stored* rows, Index stride) {
    Index first = 0;
    const auto columns = [&]<int vectors>(std::integral_constant<int, vectors>) {
      const Index many = vectors * Simd<T>::lanes;
      while (first < value_dim && (vectors == 1 || first + many <= value_dim)) {
        value_columns<T, Row, queries, vectors>(count, smaller(many, value_dim - first), rows + first, stride,
                                                weights, width, factor, started, output + first, value_dim);
        first += many;
      }
    };
    // As many columns at a time as the registers hold: memory is read best in long rows.
    if constexpr (queries == 1) columns(std::integral_constant<int, 8>());
    if constexpr (4 * queries <= kColumnSums) columns(std::integral_constant<int, 4>());
    columns(std::integral_constant<int, 2>());
    if constexpr (std::is_same_v<Row, PlainRow<T>>) columns(std::integral_constant<int, 1>());
  });
}

// Scores and weights are as close together as they can be: score[key][query] with kFewWidth<queries> from one
// key to the next, so that a vector holds several keys. (In a tile it would hold one, and every step between
// the two products would take as long for one query as for 16.)
template <int queries>
constexpr Index kFewWidth = queries == 3 ? 4 : queries;

// After how many elements of such scores a vector begins with the first query again.
template <class T, int queries>
constexpr Index kFewPeriod = larger(kFewWidth<queries>, Simd<T>::lanes);

// One number of each query, repeated to a whole period.
template <class T, int queries>
inline void repeat_queries(const T* of_query, T (&repeated)[kFewPeriod<T, queries>]) {
  for (Index i = 0; i < kFewPeriod<T, queries>; ++i)
    repeated[i] = of_query[smaller(i % kFewWidth<queries>, queries - 1)];
}

// Of bits[key], with one of each query, those that belong to a vector of scores.
template <class T, int queries>
inline typename Simd<T>::Mask few_mask(const std::uint32_t* bits, Index count, Index i) {
  constexpr Index width = kFewWidth<queries>;
  if constexpr (width >= Simd<T>::lanes) return Simd<T>::from_bits(bits[i / width] >> (i % width));
  std::uint32_t mask = 0;
  for (Index k = 0; k < Simd<T>::lanes / width; ++k) {
    const std::uint32_t of_key = bits[smaller(i / width + k, count - 1)] & ((1u << width) - 1u);
    mask |= of_key << (k * width);
  }
  return Simd<T>::from_bits(mask);
}

// finish_scores, with its bits.
template <class T, int queries>
void finish_few_scores(const AttentionProblem& p, const QueryTile<T>& place, Index first, Index count,
                       const BiasTile<T>& bias, T* scores) {
  using S = Simd<T>;
  constexpr Index width = kFewWidth<queries>, period = kFewPeriod<T, queries>;
  if (!p.has_logits()) return;
  T added[kKeyBlock * width], minus_slope[period], position[period];
  if (p.bias.data != nullptr) {
    for (Index k = 0; k < count; ++k) {
      for (Index q = 0; q < width; ++q)
        added[k * width + q] = bias.shared ? bias.value[k] : bias.row[smaller(q, queries - 1)][k];
    }
  }
  if (p.alibi_slopes != nullptr) {
    const Index offset = p.masks.offset == nullptr ? 0 : p.masks.offset[place.batch];
    T minus_slope_of[queries], position_of[queries];
    for (Index q = 0; q < queries; ++q) {
      minus_slope_of[q] = static_cast<T>(-p.alibi_slopes[place.batch * p.query_heads + place.head[q]]);
      position_of[q] = static_cast<T>(place.row[q] + offset - first);
    }
    repeat_queries<T, queries>(minus_slope_of, minus_slope);
    repeat_queries<T, queries>(position_of, position);
  }
  const auto scale = S::broadcast(static_cast<T>(p.softcap > 0 ? p.scale / p.softcap : p.scale));
  const auto cap = S::broadcast(static_cast<T>(p.softcap));
  for (Index i = 0; i < count * width; i += S::lanes) {
    auto x = S::load(scores + i) * scale;
    if (p.softcap > 0) x = cap * tanh<T>(x);
    if (p.bias.data != nullptr) x = x + S::load(added + i);
    if (p.alibi_slopes != nullptr) {
      T key[S::lanes];
      for (Index l = 0; l < S::lanes; ++l) key[l] = static_cast<T>((i + l) / width);
      const auto distance = S::abs(S::load(position + i % period) - S::load(key));
      x = S::fma(S::load(minus_slope + i % period), distance, x);
    }
    S::store(scores + i, x);
  }
}

// online_softmax, with its bits.
template <class T, int queries>
void online_softmax_of_few(const AttentionProblem& p, Index count, T* scores, ForwardTile<T>& tile,
                           T* factor) {
  using S = Simd<T>;
  constexpr Index width = kFewWidth<queries>, period = kFewPeriod<T, queries>;
  constexpr Index together = 4 * S::lanes, vectors = period / S::lanes;
  static_assert(kKeyBlock % together == 0 && together % period == 0);
  const auto unit = S::broadcast(static_cast<T>(p.exponent_factor()));
  const Index padded = round_up(count * width, together);
  for (Index i = count * width; i < padded; ++i) scores[i] = kMinusInfinity<T>;

  // max(x, y) is y when either is NaN: a NaN score does not become the maximum, but its weight is NaN below.
  typename S::Vector highest[4];
  for (auto& x : highest) x = S::broadcast(kMinusInfinity<T>);
  for (Index i = 0; i < padded; i += together) {
    for (Index v = 0; v < 4; ++v) highest[v] = S::max(S::load(scores + i + v * S::lanes), highest[v]);
  }
  T lane[together], top[queries], safe[queries], of_lane[period];
  for (Index v = 0; v < 4; ++v) S::store(lane + v * S::lanes, highest[v]);
  for (Index q = 0; q < queries; ++q) {
    top[q] = tile.maximum[q];
    for (Index i = q; i < together; i += width) top[q] = lane[i] > top[q] ? lane[i] : top[q];
    // Nothing seen so far: subtract 0 instead of -inf, whose difference with itself is NaN.
    safe[q] = top[q] == kMinusInfinity<T> ? T(0) : top[q];
  }
  repeat_queries<T, queries>(safe, of_lane);
  for (Index i = 0; i < padded; i += together) {
    typename S::Vector x[4];
    for (Index v = 0; v < 4; ++v)
      x[v] = S::load(scores + i + v * S::lanes) - S::load(of_lane + v % vectors * S::lanes);
    exp2_nonpositive<T>(x, unit);
    for (Index v = 0; v < 4; ++v) S::store(scores + i + v * S::lanes, x[v]);
  }
  T even[width] = {}, odd[width] = {};
  Index k = 0;
  for (; k + 2 <= count; k += 2) {
    for (Index q = 0; q < width; ++q) even[q] += scores[k * width + q];
    for (Index q = 0; q < width; ++q) odd[q] += scores[(k + 1) * width + q];
  }
  for (Index q = 0; q < width && k < count; ++q) even[q] += scores[k * width + q];
  for (Index q = 0; q < queries; ++q) {
    const auto change = exp2_nonpositive<T>(S::broadcast(tile.maximum[q] - safe[q]), unit);
    S::store_first(factor + q, change, 1);
    tile.maximum[q] = top[q];
    S::store_first(tile.sum + q, S::fma(S::broadcast(tile.sum[q]), change, S::broadcast(even[q] + odd[q])),
                   1);
  }
}

template <class T, int queries>
void attend_few(const AttentionProblem& p, Index first, Index count, FewWorkspace<T>& work) {
  using S = Simd<T>;
  constexpr Index width = kFewWidth<queries>;
  ForwardTile<T>& tile = work.tile;
  const QueryTile<T>& place = tile.queries;
  VisibleQueries visible;
  find_visible(p, place, first, count, visible);
  if (visible.seen == 0) return;
  if (p.bias.data != nullptr) {
    load_bias(p, place, first, count, work.bias, visible);
    if (!work.bias.shared) mask_by_bias(place, count, work.bias, visible);
  }
  if (visible.seen == 0) return;
  tile.seen |= visible.seen;
  const KeyBlock<T> keys =
      stored_block(p, p.key, place.batch, place.key_head, first, count, p.dim, 1, work.keys);
  few_score_product(p, place, count, keys, tile.query, width, work.scores);
  finish_few_scores<T, queries>(p, place, first, count, work.bias, work.scores);
  const auto hidden = S::broadcast(kMinusInfinity<T>);
  for (Index i = 0; i < count * width && !visible.all; i += S::lanes) {
    const auto mask = few_mask<T, queries>(visible.bits, count, i);
    S::store(work.scores + i, S::select(mask, S::load(work.scores + i), hidden));
  }
  online_softmax_of_few<T, queries>(p, count, work.scores, tile, work.factor);
  if (p.dropout_p > 0) {
    const KeptWeights kept(p, place, first, count);
    for (Index i = 0; i < count * width; i += S::lanes) {
      const auto mask = few_mask<T, queries>(kept.of, count, i);
      S::store(work.scores + i, S::select(mask, S::load(work.scores + i), S::zero()));
    }
  }
  UnsafeRows unsafe;
  const KeyBlock<T> values =
      visible.all
          ? stored_block(p, p.value, place.batch, place.key_head, first, count, p.value_dim, 1, work.values)
          : key_block(p, p.value, place.batch, place.key_head, first, count, p.value_dim, 1, work.values);
  const KeyBlock<T> safe =
      visible.all ? values : replace_unsafe_rows(values, count, p.value_dim, work.safe_values, unsafe);
  few_values<T, queries>(count, p.value_dim, safe, work.scores, width, work.factor, tile.started,
                         tile.output);
  tile.started = true;
  for (Index u = 0; u < unsafe.count; ++u) {
    const Index k = unsafe.key[u];
    for (Index q = 0; q < queries; ++q) {
      if ((visible.bits[k] >> q & 1u) == 0) continue;
      for (Index c = 0; c < p.value_dim; ++c) {
        tile.output[q * p.value_dim + c] +=
            work.scores[k * width + q] * values.data[k * values.row_stride + c];
      }
    }
  }
}

// Adds what the keys [first, last) give.
template <class T>
void attend_few_to(const AttentionProblem& p, Index first, Index last, FewWorkspace<T>& work) {
  pack_few_queries(p, work.tile.queries, work.tile.query);
  using Attend = void (*)(const AttentionProblem&, Index, Index, FewWorkspace<T>&);
  constexpr Attend attend[kFewQueries] = {attend_few<T, 1>, attend_few<T, 2>, attend_few<T, 3>,
                                          attend_few<T, 4>};
  const QueryTile<T>& place = work.tile.queries;
  first = larger(first, place.lowest_first);
  last = smaller(last, place.highest_last);
  for (Index block = first / kKeyBlock * kKeyBlock; block < last; block += kKeyBlock) {
    const Index begin = larger(block, first), end = smaller(block + kKeyBlock, last);
    attend[place.count - 1](p, begin, end - begin, work);
  }
}

template <class T>
void finish_few(const AttentionProblem& p, FewWorkspace<T>& work, const MutableAttentionOperand& output,
                T* maximum, T* reciprocal_sum) {
  const ForwardTile<T>& tile = work.tile;
  const QueryTile<T>& place = tile.queries;
  finish_statistics(p, tile, work.factor, maximum, reciprocal_sum);
  for (Index q = 0; q < place.count; ++q) {
    T* const row = tile.output + q * p.value_dim;
    for (Index c = 0; c < p.value_dim; ++c) row[c] = tile.started ? row[c] * work.factor[q] : T(0);
    write_row(row, p.value_dim, output, place.offset(output, q));
  }
}

template <class T>
void forward_few(const AttentionProblem& p, const QueryRun& run, void* memory,
                 const MutableAttentionOperand& output, T* maximum, T* reciprocal_sum) {
  Carver carver(memory);
  FewWorkspace<T> work(p, carver);
  place_run(p, run, 0, work.tile.queries);
  start_statistics(p, work.tile);
  attend_few_to(p, 0, p.key_length, work);
  finish_few(p, work, output, maximum, reciprocal_sum);
}

// The keys [first, last) alone.
template <class T>
void forward_part(const AttentionProblem& p, const QueryRun& run, Index first, Index last, void* memory,
                  AttentionPart<T>& part) {
  Carver carver(memory);
  FewWorkspace<T> work(p, carver);
  ForwardTile<T>& tile = work.tile;
  place_run(p, run, 0, tile.queries);
  start_without_sinks(tile);
  attend_few_to(p, first, last, work);
  part.seen = tile.seen;
  if (!tile.started) return;
  for (Index q = 0; q < tile.queries.count; ++q) {
    part.maximum[q] = tile.maximum[q];
    part.sum[q] = tile.sum[q];
  }
  for (Index i = 0; i < tile.queries.count * p.value_dim; ++i) part.output[i] = tile.output[i];
}

// output = output * a + part * b; a, b and what they stand for as above.
template <class T>
void join(const AttentionProblem& p, const AttentionPart<T>& part, ForwardTile<T>& tile) {
  using S = Simd<T>;
  const auto unit = S::broadcast(static_cast<T>(p.exponent_factor()));
  for (Index q = 0; q < tile.queries.count; ++q) {
    const T top = tile.maximum[q] > part.maximum[q] ? tile.maximum[q] : part.maximum[q];
    const T safe = top == kMinusInfinity<T> ? T(0) : top;  // whose difference with itself is not NaN
    const auto a = exp2_nonpositive<T>(S::broadcast(tile.maximum[q] - safe), unit);
    const auto b = exp2_nonpositive<T>(S::broadcast(part.maximum[q] - safe), unit);
    tile.maximum[q] = top;
    S::store_first(tile.sum + q, S::fma(S::broadcast(tile.sum[q]), a, S::broadcast(part.sum[q]) * b), 1);
    for (Index c = 0; c < p.value_dim; c += S::lanes) {
      const Index columns = smaller(S::lanes, p.value_dim - c);
      T* const target = tile.output + q * p.value_dim + c;
      const auto add = S::load_first(part.output + q * p.value_dim + c, columns) * b;
      S::store_first(target, tile.started ? S::fma(S::load_first(target, columns), a, add) : add, columns);
    }
  }
  tile.seen |= part.seen;
  tile.started = true;
}

// What forward_few writes, from all parts of the keys in their order.
template <class T>
void join_parts(const AttentionProblem& p, const QueryRun& run, const AttentionPart<T>* parts, Index count,
                void* memory, const MutableAttentionOperand& output, T* maximum, T* reciprocal_sum) {
  Carver carver(memory);
  FewWorkspace<T> work(p, carver);
  place_run(p, run, 0, work.tile.queries);
  start_statistics(p, work.tile);
  for (Index i = 0; i < count; ++i) {
    if (parts[i].seen != 0) join(p, parts[i], work.tile);
  }
  finish_few(p, work, output, maximum, reciprocal_sum);
}

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
