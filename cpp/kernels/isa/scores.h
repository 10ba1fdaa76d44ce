#pragma once

// From queries and keys to the numbers the softmax is taken of.

#include <type_traits>

#include "kernels/isa/key_block.h"
#include "kernels/isa/ordered_product.h"
#include "kernels/isa/split_blocks.h"
#include "kernels/isa/vector_math.h"
#include "kernels/isa/visible_queries.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

// The scores of a key; lanes beyond the queries repeat the last, as in every tile.
template <class T, int queries>
inline void store_scores(const T* score, Index width, T* scores) {
  using S = Simd<T>;
  for (Index first = 0; first < width; first += S::lanes) {
    auto x = S::broadcast(score[queries - 1]);
    for (int q = 0; q < queries - 1; ++q) {
      if (q < first || q >= first + S::lanes) continue;
      x = S::select(S::from_bits(1u << (q - first)), S::broadcast(score[q]), x);
    }
    S::store_first(scores + first, x, smaller(width - first, S::lanes));
  }
}

// Several keys at a time, so that queries are loaded once for all of them and no sum waits for itself. A sum
// has one order however many queries there are: forward may see those of a group that the weights see alone.
template <class T, class Row, int queries>
void few_scores(Index count, Index dim, const typename Row::Stored* keys, Index stride, const T* rows,
                Index width, T* scores) {
  using S = Simd<T>;
#if defined(BLASFORMER_ISA_avx512)
  constexpr int together = 4;
#else
  constexpr int together = queries <= 2 ? 4 : 2;
#endif
  constexpr int fours = (together * queries + 3) / 4;
  // Rows without a gap are asked for in the order of memory, which delivers 6 % more so than line by line of
  // several rows.
  const bool gapless = stride == dim;
  const Index to_columns = gapless ? together : 1, to_key = gapless ? 2 * S::lanes : stride;
  for (Index first = 0; first < count; first += together) {
    const typename Row::Stored* key[together];
    for (int k = 0; k < together; ++k) key[k] = keys + smaller(first + k, count - 1) * stride;
    typename S::Vector sum[fours][4];
    for (auto& four : sum) {
      for (auto& x : four) x = S::zero();
    }
    const typename Row::Stored* ahead = keys + (first + kRowsAhead<typename Row::Stored>)*stride;
    Index c = 0;
    for (; c + 2 * S::lanes <= dim; c += 2 * S::lanes) {
#pragma GCC unroll 4
      for (int k = 0; k < together; ++k) {
        typename S::Vector two[2];
        Row::load_two(key[k] + c, two);
        prefetch_row(ahead + c * to_columns + k * to_key, 2 * S::lanes);
#pragma GCC unroll 4
        for (int q = 0; q < queries; ++q) {
          const int i = k * queries + q;
          const auto x = S::fma(two[0], S::load(rows + q * dim + c), sum[i / 4][i % 4]);
          sum[i / 4][i % 4] = S::fma(two[1], S::load(rows + q * dim + c + S::lanes), x);
        }
      }
    }
    if constexpr (std::is_same_v<Row, PlainRow<T>>) {
      for (; c < dim; c += S::lanes) {
        const Index left = smaller(S::lanes, dim - c);
#pragma GCC unroll 16
        for (int i = 0; i < together * queries; ++i) {
          sum[i / 4][i % 4] = S::fma(S::load_first(key[i / queries] + c, left),
                                     S::load_first(rows + i % queries * dim + c, left), sum[i / 4][i % 4]);
        }
      }
    }
    T score[fours * 4];
    for (int i = 0; i < fours; ++i) sum_four(sum[i], score + 4 * i);
    const Index valid = smaller(together, count - first);
    if (width == queries) {
      for (Index i = 0; i < valid * queries; ++i) scores[first * queries + i] = score[i];
    } else {
      for (Index k = 0; k < valid; ++k)
        store_scores<T, queries>(score + k * queries, width, scores + (first + k) * width);
    }
  }
}

// The same with the bits from a tile of queries.
template <class T, int queries>
void few_ordered_scores(Index count, Index dim, const KeyBlock<T>& keys, const T* rows, Index width,
                        T* scores) {
  constexpr Index lanes = kOrderedLanes<T>;
  T score[queries * lanes];
  for (Index first = 0; first < count; first += lanes) {
    const Index block = smaller(lanes, count - first);
    ordered_product<T, queries>(dim, rows, dim, 1, block, keys.data + first * keys.row_stride,
                                keys.row_stride, score);
    for (Index k = 0; k < block; ++k) {
      for (Index l = 0; l < width; ++l)
        scores[(first + k) * width + l] = score[smaller(l, queries - 1) * lanes + k];
    }
  }
}

template <class T>
void pack_few_queries(const AttentionProblem& p, const QueryTile<T>& tile, T* out) {
  for (Index q = 0; q < tile.count; ++q) {
    copy_rows(p.query, tile.offset(p.query, q), 1, p.dim, out + q * p.dim, p.dim);
    if constexpr (sizeof(T) == sizeof(float)) {
      if (row_order<T>(p, p.key, p.dim) == RowOrder::bfloat16) Bfloat16Row::arrange(out + q * p.dim, p.dim);
    }
  }
}

// What score_product reads: the queries transposed, or packed, or for few of them their rows.
template <class T>
void pack_scores_operand(const AttentionProblem& p, const QueryTile<T>& tile, T* dense,
                         const SplitScratch<T>& scratch, T* out) {
  if (p.few_queries()) return pack_few_queries(p, tile, out);
  pack_query_operand(p, p.query, tile, p.dim, dense, scratch, out);
}

// scores = keys query^T of few queries, `width` from one key to the next.
template <class T>
void few_score_product(const AttentionProblem& p, const QueryTile<T>& tile, Index count,
                       const KeyBlock<T>& keys, const T* query, Index width, T* scores) {
  if (p.ordered_scores) {
    using Scores = void (*)(Index, Index, const KeyBlock<T>&, const T*, Index, T*);
    constexpr Scores ordered[] = {few_ordered_scores<T, 1>, few_ordered_scores<T, 2>,
                                  few_ordered_scores<T, 3>, few_ordered_scores<T, 4>};
    return ordered[tile.count - 1](count, p.dim, keys, query, width, scores);
  }
  with_stored_rows(keys, [&]<class Row>(Row, const typename Row::Stored* first, Index stride) {
    using Scores = void (*)(Index, Index, const typename Row::Stored*, Index, const T*, Index, T*);
    constexpr Scores few[] = {few_scores<T, Row, 1>, few_scores<T, Row, 2>, few_scores<T, Row, 3>,
                              few_scores<T, Row, 4>};
    few[tile.count - 1](count, p.dim, first, stride, query, width, scores);
  });
}

// The same of any tile. Forward, backward and the weights must sum a score in the same order, or the maximum
// that one found would not be the maximum of the others.
template <class T>
void score_product(const AttentionProblem& p, const QueryTile<T>& tile, Index count, const KeyBlock<T>& keys,
                   const T* query, T* scores, RowsAhead& ahead) {
  if (p.few_queries()) return few_score_product(p, tile, count, keys, query, tile.width, scores);
  rows_product(p, tile, count, p.dim, keys, query, scores, ahead);
}

// The float bias of a tile and a block of keys: a row of values for each query, or one for all of them.
template <class T>
struct BiasTile {
  T* value;  // the shared row; for others, kMostKeys x kTileQueries to transpose them into
  T* dense;  // kTileQueries x kMostKeys
  const T* row[kTileQueries<T>];
  bool shared;
};

// -inf masks: exactly who sees whom, when it is known that some of the bias may be that.
template <class T>
void mask_by_bias(const QueryTile<T>& tile, Index count, const BiasTile<T>& bias, VisibleQueries& visible) {
  using S = Simd<T>;
  const auto minus_infinity = S::broadcast(kMinusInfinity<T>);
  if (!bias.shared) transpose_rows(bias.row, tile.width, count, bias.value);
  for (Index k = 0; k < count; ++k) {
    std::uint32_t hidden = 0;
    for (Index v = 0; v < tile.vectors; ++v) {
      const auto value =
          bias.shared ? S::broadcast(bias.value[k]) : S::load(bias.value + k * tile.width + v * S::lanes);
      hidden |= S::to_bits(S::equal(value, minus_infinity)) << (v * S::lanes);
    }
    visible.bits[k] = (visible.all ? tile.every() : visible.bits[k]) & ~hidden;
  }
  summarise(count, tile.every(), visible);
}

// Finds the bias. What -inf masks is found out at once where queries share it, and where it masks the four
// corners: then it likely masks everything, and no product is needed. Else finish_scores finds it out.
template <class T>
void load_bias(const AttentionProblem& p, const QueryTile<T>& tile, Index first, Index count,
               BiasTile<T>& bias, VisibleQueries& visible) {
  const AttentionOperand& x = p.bias;
  const Index column = first * x.column_stride, last = count - 1;
  bias.shared = is_shared(x, tile);
  bool masks = false;
  if (bias.shared) {
    copy_rows(x, tile.offset(x, 0) + column, 1, count, bias.value, count);
    for (Index k = 0; k < count; ++k) masks = masks || bias.value[k] == kMinusInfinity<T>;
  } else {
    for (Index l = 0; l < tile.width; ++l) {
      const Index start = tile.offset(x, l) + column;
      if (x.dtype == dtype_of<T>() && x.column_stride == 1) {
        bias.row[l] = static_cast<const T*>(x.data) + start;
      } else {
        copy_rows(x, start, 1, count, bias.dense + l * kMostKeys, kMostKeys);
        bias.row[l] = bias.dense + l * kMostKeys;
      }
    }
    const T *const top = bias.row[0], *const bottom = bias.row[tile.count - 1];
    masks = top[0] == kMinusInfinity<T> && top[last] == kMinusInfinity<T> && bottom[0] == kMinusInfinity<T> &&
            bottom[last] == kMinusInfinity<T>;
  }
  if (masks) mask_by_bias(tile, count, bias, visible);
}

// scores[key][query] = logit(score) + bias.row[query][key], transposed on the way, in registers. Returns
// whether some of the bias is -inf.
template <class T, class Logit>
bool add_bias_rows(const BiasTile<T>& bias, Index width, Index count, const Logit& logit, T* scores) {
  using S = Simd<T>;
  const Index covered = count / S::lanes * S::lanes;
  auto even = S::zero(), odd = S::zero();  // the least values
  for (Index l = 0; l < width; l += S::lanes) {
    for (Index k = 0; k < covered; k += S::lanes) {
      const auto block = square(bias.row + l, k);
#pragma GCC unroll 16
      for (Index i = 0; i < S::lanes; ++i) {
        const Index place = (k + i) * width + l;
        S::store(scores + place, logit(place) + block.column[i]);
        (i % 2 == 0 ? even : odd) = S::min(block.column[i], i % 2 == 0 ? even : odd);
      }
    }
  }
  if (covered < count) {
    const T* rest[kTileQueries<T>];
    for (Index l = 0; l < width; ++l) rest[l] = bias.row[l] + covered;
    transpose_rows(rest, width, count - covered, bias.value);
    for (Index i = 0; i < (count - covered) * width; i += S::lanes) {
      const Index place = covered * width + i;
      const auto value = S::load(bias.value + i);
      S::store(scores + place, logit(place) + value);
      even = S::min(value, even);
    }
  }
  return S::to_bits(S::equal(S::min(even, odd), S::broadcast(kMinusInfinity<T>))) != 0;
}

// Every function that turns query key^T into the logits of the softmax, where there is one (p.has_logits()).
// What the bias masks, as is found out on the way, is no longer visible.
template <class T>
void finish_scores(const AttentionProblem& p, const QueryTile<T>& tile, Index first, Index count,
                   const BiasTile<T>& bias, VisibleQueries& visible, T* scores) {
  using S = Simd<T>;
  const Index width = tile.width;
  if (!p.has_logits()) return;
  const auto scale = S::broadcast(static_cast<T>(p.softcap > 0 ? p.scale / p.softcap : p.scale));
  const auto cap = S::broadcast(static_cast<T>(p.softcap));
  const auto add_bias = [&](const auto& logit) {
    if (p.bias.data == nullptr) {
      for (Index i = 0; i < count * width; i += S::lanes) S::store(scores + i, logit(i));
    } else if (bias.shared) {
      for (Index k = 0; k < count; ++k) {
        const auto value = S::broadcast(bias.value[k]);
        for (Index i = k * width; i < (k + 1) * width; i += S::lanes) S::store(scores + i, logit(i) + value);
      }
    } else if (add_bias_rows(bias, width, count, logit, scores)) {
      mask_by_bias(tile, count, bias, visible);
    }
  };
  if (p.softcap > 0) {
    add_bias([&](Index i) { return cap * tanh<T>(S::load(scores + i) * scale); });
  } else {
    add_bias([&](Index i) { return S::load(scores + i) * scale; });
  }
  if (p.alibi_slopes != nullptr) {
    const Index offset = p.masks.offset == nullptr ? 0 : p.masks.offset[tile.batch];
    T position[kTileQueries<T>], minus_slope[kTileQueries<T>];
    for (Index l = 0; l < width; ++l) {
      position[l] = static_cast<T>(tile.row[l] + offset - first);
      minus_slope[l] = static_cast<T>(-p.alibi_slopes[tile.batch * p.query_heads + tile.head[l]]);
    }
    for (Index k = 0; k < count; ++k) {
      const auto key = S::broadcast(static_cast<T>(k));
      for (Index v = 0; v < tile.vectors; ++v) {
        T* score = scores + k * width + v * S::lanes;
        const auto distance = S::abs(S::load(position + v * S::lanes) - key);
        S::store(score, S::fma(S::load(minus_slope + v * S::lanes), distance, S::load(score)));
      }
    }
  }
}

// What a query may not see is set to a value: selected, never multiplied, so that NaN behind a mask vanishes.
template <class T>
void hide(const QueryTile<T>& tile, Index count, const VisibleQueries& visible, T value, T* scores) {
  using S = Simd<T>;
  const auto hidden = S::broadcast(value);
  for (Index k = 0; k < count; ++k) {
    for (Index v = 0; v < tile.vectors; ++v) {
      T* score = scores + k * tile.width + v * S::lanes;
      S::store(score, S::select(S::from_bits(visible.bits[k] >> (v * S::lanes)), S::load(score), hidden));
    }
  }
}

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
