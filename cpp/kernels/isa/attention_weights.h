#pragma once

// The softmax weights themselves, for the queries somebody asked to see, from the statistics that forward
// left; and the masks.

#include "kernels/attention_kernels.h"
#include "kernels/isa/carver.h"
#include "kernels/isa/scores.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

template <class T>
struct WeightsWorkspace {
  T *query, *scores, *keys, *dense, *factor, *maximum, *reciprocal_sum;
  unsigned char* key_rows;  // packed
  SplitScratch<T> split;
  BiasTile<T> bias;

  WeightsWorkspace(const AttentionProblem& p, Carver& carver) {
    constexpr Index queries = kTileQueries<T>;
    query = carver.take<T>(query_operand_size<T>(p, p.dim));
    scores = carver.take<T>(kKeyBlock * queries);
    keys = carver.take<T>(copy_size<T>(p, p.key, p.dim, 1));
    key_rows = carver.take<unsigned char>(packed_rows_bytes(p, p.dim));
    split.take(p, 0, carver);
    dense = carver.take<T>(queries * p.dim);
    factor = carver.take<T>(queries);
    maximum = carver.take<T>(queries);
    reciprocal_sum = carver.take<T>(queries);
    const bool biased = p.bias.data != nullptr;
    bias.value = carver.take<T>(biased ? kKeyBlock * queries : 0);
    bias.dense = carver.take<T>(biased ? kMostKeys * queries : 0);
  }
};

template <class T>
Index weights_workspace(const AttentionProblem& p) {
  Carver carver(nullptr);
  WeightsWorkspace<T>(p, carver);
  return carver.used();
}

// The statistics of a tile's queries, with the maximum of a query that saw nothing finite as 0.
template <class T>
void load_statistics(const AttentionProblem& p, const QueryTile<T>& tile, const T* maximum,
                     const T* reciprocal_sum, T* tile_maximum, T* tile_reciprocal_sum) {
  for (Index l = 0; l < tile.width; ++l) {
    const T top = maximum[tile.statistic(p, l)];
    tile_maximum[l] = top == kMinusInfinity<T> ? T(0) : top;
    tile_reciprocal_sum[l] = reciprocal_sum[tile.statistic(p, l)];
  }
}

// weights[key][query] = exp2((scores - maximum) * exponent_factor) * reciprocal_sum.
template <class T>
void normalised_weights(const QueryTile<T>& tile, Index count, T exponent_factor, const T* maximum,
                        const T* reciprocal_sum, T* scores) {
  using S = Simd<T>;
  const auto unit = S::broadcast(exponent_factor);
  for (Index v = 0; v < tile.vectors; ++v) {
    const auto top = S::load(maximum + v * S::lanes), scale = S::load(reciprocal_sum + v * S::lanes);
    for (Index k = 0; k < count; ++k) {
      T* score = scores + k * tile.width + v * S::lanes;
      S::store(score, exp2_nonpositive<T>(S::load(score) - top, unit) * scale);
    }
  }
}

// out[r][key] (+)= weight of key for query rows[r]; count <= query_tile.
template <class T>
void weights(const AttentionProblem& p, Index batch, Index head, const Index* rows, Index count,
             const T* maximum, const T* reciprocal_sum, void* memory, bool add, T* out) {
  Carver carver(memory);
  WeightsWorkspace<T> work(p, carver);
  QueryTile<T> tile;
  place_rows(p, batch, head, rows, count, tile);
  pack_scores_operand(p, tile, work.dense, work.split, work.query);
  load_statistics(p, tile, maximum, reciprocal_sum, work.maximum, work.reciprocal_sum);
  if (!add) {
    for (Index i = 0; i < count * p.key_length; ++i) out[i] = T(0);
  }
  if (p.split != nullptr) p.split->configure();
  RowsAhead nothing_ahead;
  for (Index first = tile.lowest_first / kKeyBlock * kKeyBlock; first < tile.highest_last;
       first += kKeyBlock) {
    const Index begin = larger(first, tile.lowest_first), end = smaller(first + kKeyBlock, tile.highest_last);
    const Index block = end - begin;
    VisibleQueries visible;
    find_visible(p, tile, begin, block, visible);
    if (visible.seen != 0 && p.bias.data != nullptr) load_bias(p, tile, begin, block, work.bias, visible);
    if (visible.seen == 0) continue;
    const KeyBlock<T> keys =
        stored_block(p, p.key, batch, p.key_head(head), begin, block, p.dim, 1, work.keys, work.key_rows);
    score_product(p, tile, block, keys, work.query, work.scores, nothing_ahead);
    finish_scores(p, tile, begin, block, work.bias, visible, work.scores);
    if (!visible.all) hide(tile, block, visible, kMinusInfinity<T>, work.scores);
    normalised_weights(tile, block, static_cast<T>(p.exponent_factor()), work.maximum, work.reciprocal_sum,
                       work.scores);
    for (Index l = 0; l < count; ++l) {
      for (Index k = 0; k < block; ++k) {
        if (visible.all || (visible.bits[k] >> l & 1u) != 0)
          out[l * p.key_length + begin + k] += work.scores[k * tile.width + l];
      }
    }
  }
  if (p.split != nullptr) p.split->release();
}

// out[r][key] = whether query rows[r] may attend to key.
template <class T>
void explain(const AttentionProblem& p, Index batch, Index head, const Index* rows, Index count, bool* out) {
  QueryTile<T> tile;
  place_rows(p, batch, head, rows, count, tile);
  for (Index i = 0; i < count * p.key_length; ++i) out[i] = false;
  for (Index begin = tile.lowest_first; begin < tile.highest_last; begin += kKeyBlock) {
    const Index block = smaller(kKeyBlock, tile.highest_last - begin);
    VisibleQueries visible;
    find_visible(p, tile, begin, block, visible);
    if (visible.seen == 0) continue;
    for (Index l = 0; l < count; ++l) {
      for (Index k = 0; k < block; ++k)
        out[l * p.key_length + begin + k] = visible.all || (visible.bits[k] >> l & 1u) != 0;
    }
  }
}

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
