#pragma once

// What an attention kernel is given: plain structures on borrowed memory, checked and normalised by
// layers/attention.cpp.

#include <cstdint>

#include "core/array_view.h"
#include "core/index.h"
#include "kernels/pair_product.h"

namespace blasformer {

struct SplitProductKernels;

// An array (batch, heads, length, dim), or (batch, heads, query_length, key_length), with any strides.
template <class Void>
struct BasicAttentionOperand {
  Void* data = nullptr;
  DType dtype = DType::float32;
  const Index* batch_offset = nullptr;  // (batch,): where each batch entry begins, in elements
  Index head_stride = 0, row_stride = 0, column_stride = 0;

  Index offset(Index batch, Index head) const { return batch_offset[batch] + head * head_stride; }
};
using AttentionOperand = BasicAttentionOperand<const void>;
using MutableAttentionOperand = BasicAttentionOperand<void>;

// Who may attend to whom: the conjunction of everything here.
struct AttentionMasks {
  AttentionOperand mask;  // bool; data is null when there is none
  // Query i stands at p = i + offset[batch] among the keys and sees keys p - left <= j <= p + right.
  Index left = kUnbounded, right = kUnbounded;
  const Index* offset = nullptr;                                   // (batch,)
  const Index* query_lengths = nullptr;                            // (batch,) or null
  const Index* key_lengths = nullptr;                              // (batch,) or null
  const Index *query_segments = nullptr, *key_segments = nullptr;  // (batch, length) or null

  static constexpr Index kUnbounded = Index{1} << 60;
};

struct AttentionProblem {
  Index batch = 0, query_heads = 0, key_heads = 0;
  Index query_length = 0, key_length = 0, dim = 0, value_dim = 0;
  AttentionOperand query, key, value;
  AttentionMasks masks;
  AttentionOperand bias;                 // data is null when there is none
  const double* alibi_slopes = nullptr;  // (batch, query_heads) or null
  const double* sinks = nullptr;         // (query_heads,) or null
  double softcap = 0;                    // 0: none
  double scale = 1;
  double dropout_p = 0;
  std::uint64_t seed = 0;
  // Whether the score of a query and a key is one sum along the head in rising order, as in a tile, even if
  // queries are few; and whether no tile holds queries of two heads, for what is summed over queries.
  bool ordered_scores = false, single_head_tiles = false;
  // What computes the products of float32 blocks instead of multiply-adds; null: nothing does.
  const SplitProductKernels* split = nullptr;
  // What computes the products of bfloat16 rows and queries instead of multiply-adds; null: nothing does.
  PairProduct pairs = nullptr;

  // Whether scores are brought to the units of the logits before the softmax. If not, they stay query key^T
  // and the scale is applied to their distance from the maximum, where its rounding costs nothing even when
  // scores are in the thousands.
  bool has_logits() const {
    return softcap > 0 || bias.data != nullptr || alibi_slopes != nullptr || sinks != nullptr ||
           scale < 1e-30;
  }
  // weight = exp2((score - maximum) * exponent_factor()).
  double exponent_factor() const { return 1.4426950408889634074 * (has_logits() ? 1 : scale); }

  // Decoding: so few queries read a key head that lanes along the head serve better than lanes along the
  // queries.
  bool few_queries() const { return group() * query_length <= kFewQueries; }
  static constexpr Index kFewQueries = 4;

  Index group() const { return query_heads / key_heads; }
  Index key_head(Index head) const { return head / group(); }
  // Whether a tile of so many queries may hold queries of several heads.
  bool shares_tiles(Index tile) const { return query_length < 2 * tile && !single_head_tiles; }
};

// Queries that read one key head, counted through the heads of its group: query i is row i % query_length of
// head i / query_length.
struct QueryRun {
  Index batch, key_head, first, count;
};

}  // namespace blasformer
