#pragma once

// What attention forward, backward and the weights share: a tile of queries, one query per vector lane, against a block of keys.
//
// Lanes are queries, so a row of a tile belongs to one key: scores[key][query]. The statistics of the softmax are then plain vectors
// (no horizontal reductions), rescaling the output is one multiply-add in the product that updates it, and keys and values are read by
// broadcasting loads from wherever the caller keeps them. Only the queries are packed, transposed and scaled, once per tile.

#include <cstdint>

#include "core/element.h"
#include "kernels/attention_problem.h"
#include "kernels/isa/block_product.h"
#include "kernels/isa/vector_math.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

constexpr Index kTileVectors = 2;
constexpr Index kKeyBlock = 128;
template <class T>
constexpr Index kTileQueries = kTileVectors * Simd<T>::lanes;

template <class T>
constexpr T kMinusInfinity = -std::numeric_limits<T>::infinity();

inline Index smaller(Index a, Index b) { return a < b ? a : b; }
inline Index larger(Index a, Index b) { return a > b ? a : b; }

// Hands out parts of a workspace; with a null workspace it only measures.
class Carver {
 public:
  explicit Carver(void* memory) : memory_(static_cast<char*>(memory)) {}
  template <class T>
  T* take(Index count) {
    T* part = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + used_);
    used_ += round_up(count * static_cast<Index>(sizeof(T)), 64);
    return part;
  }
  Index used() const { return used_; }

 private:
  char* memory_;
  Index used_ = 0;
};

// ---- Reading and writing the caller's arrays

// rows x columns of an operand, from element `start`, as dense rows of T.
template <class T>
void copy_rows(const AttentionOperand& x, Index start, Index rows, Index columns, T* out, Index out_stride) {
  for (Index r = 0; r < rows; ++r) {
    const Index row = start + r * x.row_stride;
    for (Index c = 0; c < columns; ++c) out[r * out_stride + c] = read_element<T>(x.data, x.dtype, row + c * x.column_stride);
  }
}

#if defined(__SSE2__)
inline void transpose_square(__m128& a, __m128& b, __m128& c, __m128& d) { _MM_TRANSPOSE4_PS(a, b, c, d); }
#endif

// out[c][lane] = row[lane][c] for whole tiles of lanes. The rows are dense.
inline void transpose_rows(const float* const* row, Index lanes, Index columns, float* out) {
  for (Index l = 0; l < lanes; l += 4) {
    Index c = 0;
    for (; c + 4 <= columns; c += 4) {
      __m128 x0 = _mm_loadu_ps(row[l] + c), x1 = _mm_loadu_ps(row[l + 1] + c);
      __m128 x2 = _mm_loadu_ps(row[l + 2] + c), x3 = _mm_loadu_ps(row[l + 3] + c);
      transpose_square(x0, x1, x2, x3);
      _mm_storeu_ps(out + c * lanes + l, x0);
      _mm_storeu_ps(out + (c + 1) * lanes + l, x1);
      _mm_storeu_ps(out + (c + 2) * lanes + l, x2);
      _mm_storeu_ps(out + (c + 3) * lanes + l, x3);
    }
    for (; c < columns; ++c) {
      for (Index i = 0; i < 4; ++i) out[c * lanes + l + i] = row[l + i][c];
    }
  }
}

inline void transpose_rows(const double* const* row, Index lanes, Index columns, double* out) {
  for (Index l = 0; l < lanes; l += 2) {
    Index c = 0;
    for (; c + 2 <= columns; c += 2) {
      const __m128d x0 = _mm_loadu_pd(row[l] + c), x1 = _mm_loadu_pd(row[l + 1] + c);
      _mm_storeu_pd(out + c * lanes + l, _mm_unpacklo_pd(x0, x1));
      _mm_storeu_pd(out + (c + 1) * lanes + l, _mm_unpackhi_pd(x0, x1));
    }
    for (; c < columns; ++c) {
      for (Index i = 0; i < 2; ++i) out[c * lanes + l + i] = row[l + i][c];
    }
  }
}

// row[lane][c] = x[c][lane] * factor[lane] for the first `count` lanes: the way back.
inline void untranspose_rows(const float* x, Index lanes, Index columns, const float* factor, Index count, float* const* row) {
  for (Index l = 0; l < count; l += 4) {
    const __m128 scale = _mm_loadu_ps(factor + l);
    const Index rows = smaller(4, count - l);
    Index c = 0;
    for (; c + 4 <= columns && rows == 4; c += 4) {
      __m128 x0 = _mm_mul_ps(_mm_loadu_ps(x + c * lanes + l), scale);
      __m128 x1 = _mm_mul_ps(_mm_loadu_ps(x + (c + 1) * lanes + l), scale);
      __m128 x2 = _mm_mul_ps(_mm_loadu_ps(x + (c + 2) * lanes + l), scale);
      __m128 x3 = _mm_mul_ps(_mm_loadu_ps(x + (c + 3) * lanes + l), scale);
      transpose_square(x0, x1, x2, x3);
      _mm_storeu_ps(row[l] + c, x0);
      _mm_storeu_ps(row[l + 1] + c, x1);
      _mm_storeu_ps(row[l + 2] + c, x2);
      _mm_storeu_ps(row[l + 3] + c, x3);
    }
    for (; c < columns; ++c) {
      for (Index i = 0; i < rows; ++i) row[l + i][c] = x[c * lanes + l + i] * factor[l + i];
    }
  }
}

inline void untranspose_rows(const double* x, Index lanes, Index columns, const double* factor, Index count,
                             double* const* row) {
  for (Index l = 0; l < count; l += 2) {
    const __m128d scale = _mm_loadu_pd(factor + l);
    const Index rows = smaller(2, count - l);
    Index c = 0;
    for (; c + 2 <= columns && rows == 2; c += 2) {
      const __m128d x0 = _mm_mul_pd(_mm_loadu_pd(x + c * lanes + l), scale);
      const __m128d x1 = _mm_mul_pd(_mm_loadu_pd(x + (c + 1) * lanes + l), scale);
      _mm_storeu_pd(row[l] + c, _mm_unpacklo_pd(x0, x1));
      _mm_storeu_pd(row[l + 1] + c, _mm_unpackhi_pd(x0, x1));
    }
    for (; c < columns; ++c) {
      for (Index i = 0; i < rows; ++i) row[l + i][c] = x[c * lanes + l + i] * factor[l + i];
    }
  }
}

// ---- Queries and keys

// The queries of a tile: rows of one query head, or of all that read one key head. Lanes beyond `count` repeat the last query, so that
// they compute what is thrown away and disturb nothing.
template <class T>
struct QueryTile {
  Index batch, key_head;
  Index count;    // queries in use
  Index vectors;  // that hold them: 1 or kTileVectors
  Index width;    // vectors * lanes: from one key to the next in an array (key, query)
  Index head[kTileQueries<T>], row[kTileQueries<T>];
  Index first[kTileQueries<T>];  // keys [first, last) are those that window, causality and lengths leave to each query
  Index last[kTileQueries<T>];
  Index lowest_first, highest_first, lowest_last, highest_last;  // over all lanes; nothing to attend to: lowest_first >= highest_last
  bool one_head;

  std::uint32_t every() const { return width == 32 ? ~0u : (1u << width) - 1u; }
  Index offset(const AttentionOperand& x, Index l) const { return x.offset(batch, head[l]) + row[l] * x.row_stride; }
  Index offset(const MutableAttentionOperand& x, Index l) const { return x.offset(batch, head[l]) + row[l] * x.row_stride; }
  // Index into (batch, query_heads, query_length).
  Index statistic(const AttentionProblem& p, Index l) const {
    return (batch * p.query_heads + head[l]) * p.query_length + row[l];
  }
};

// Fills in the rest of a tile whose batch, key_head, count and first `count` heads and rows are set.
template <class T>
void place_tile(const AttentionProblem& p, QueryTile<T>& tile) {
  tile.vectors = ceil_div(tile.count, Simd<T>::lanes);
  tile.width = tile.vectors * Simd<T>::lanes;
  const AttentionMasks& masks = p.masks;
  const Index offset = masks.offset == nullptr ? 0 : masks.offset[tile.batch];
  const Index keys = masks.key_lengths == nullptr ? p.key_length : smaller(p.key_length, masks.key_lengths[tile.batch]);
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

// The next tile of a run of queries, counted through the heads of a group: query i is row i % query_length of head i / query_length.
// Where heads are long, tiles end with them, so that causal tiles stay short; where they are short, a tile holds several.
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
void place_rows(const AttentionProblem& p, Index batch, Index head, const Index* rows, Index count, QueryTile<T>& tile) {
  tile.batch = batch;
  tile.key_head = p.key_head(head);
  tile.count = count;
  for (Index l = 0; l < count; ++l) {
    tile.head[l] = head;
    tile.row[l] = rows[l];
  }
  place_tile(p, tile);
}

// Queries of a tile as q[c][lane] = query[row[lane], c]; `dense` holds kTileQueries x columns when a copy is needed first.
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
  for (Index l = 0; l < tile.count && !direct; ++l) {
    const Index target = tile.offset(out, l);
    for (Index c = 0; c < columns; ++c) write_element<T>(out.data, out.dtype, target + c * out.column_stride, row[l][c]);
  }
}

// Keys or values [first, first + count) of a head, in place when they have the type computed in, else widened into `buffer`.
template <class T>
struct KeyBlock {
  const T* data;
  Index row_stride, column_stride;
  KeyBlock from(Index row) const { return {data + row * row_stride, row_stride, column_stride}; }
};

template <class T>
bool needs_copy(const AttentionProblem& p, const AttentionOperand& x) {
  return x.dtype != dtype_of<T>() || (p.few_queries() && x.column_stride != 1);
}

template <class T>
KeyBlock<T> key_block(const AttentionProblem& p, const AttentionOperand& x, Index batch, Index key_head, Index first, Index count,
                      Index columns, T* buffer) {
  const Index start = x.offset(batch, key_head) + first * x.row_stride;
  if (!needs_copy<T>(p, x)) return {static_cast<const T*>(x.data) + start, x.row_stride, x.column_stride};
  copy_rows(x, start, count, columns, buffer, columns);
  return {buffer, columns, 1};
}

// ---- Products of queries and keys

template <class T, int queries>
void few_scores(Index count, Index dim, const KeyBlock<T>& keys, const T* rows, Index width, T* scores) {
  using S = Simd<T>;
  for (Index k = 0; k < count; ++k) {
    const T* key = keys.data + k * keys.row_stride;
    typename S::Vector even[queries], odd[queries];
    for (int q = 0; q < queries; ++q) even[q] = odd[q] = S::zero();
    Index c = 0;
    for (; c + 2 * S::lanes <= dim; c += 2 * S::lanes) {
      const auto x = S::load(key + c), y = S::load(key + c + S::lanes);
      for (int q = 0; q < queries; ++q) {
        even[q] = S::fma(x, S::load(rows + q * dim + c), even[q]);
        odd[q] = S::fma(y, S::load(rows + q * dim + c + S::lanes), odd[q]);
      }
    }
    for (; c < dim; c += S::lanes) {
      const Index left = smaller(S::lanes, dim - c);
      const auto x = S::load_first(key + c, left);
      for (int q = 0; q < queries; ++q) even[q] = S::fma(x, S::load_first(rows + q * dim + c, left), even[q]);
    }
    // Lanes beyond the queries repeat the last, as in every tile.
    T score[queries];
    for (int q = 0; q < queries; ++q) score[q] = S::sum(even[q] + odd[q]);
    for (Index l = 0; l < width; ++l) scores[k * width + l] = score[l < queries ? l : queries - 1];
  }
}

// What score_product reads: the queries transposed, or for few of them their rows.
template <class T>
void pack_scores_operand(const AttentionProblem& p, const QueryTile<T>& tile, T* dense, T* out) {
  if (!p.few_queries()) return pack_queries(p.query, tile, p.dim, dense, out);
  for (Index q = 0; q < tile.count; ++q) copy_rows(p.query, tile.offset(p.query, q), 1, p.dim, out + q * p.dim, p.dim);
}

// scores = keys query^T. Forward, backward and the weights must sum a score in the same order, or the maximum that one found would not be
// the maximum of the others.
template <class T>
void score_product(const AttentionProblem& p, const QueryTile<T>& tile, Index count, const KeyBlock<T>& keys, const T* query,
                   T* scores) {
  if (!p.few_queries()) {
    block_product<T, Finish::store>(count, tile.vectors, p.dim, {keys.data, keys.row_stride, keys.column_stride}, query, tile.width,
                                    scores, tile.width);
    return;
  }
  using Scores = void (*)(Index, Index, const KeyBlock<T>&, const T*, Index, T*);
  constexpr Scores few[] = {few_scores<T, 1>, few_scores<T, 2>, few_scores<T, 3>, few_scores<T, 4>};
  few[tile.count - 1](count, p.dim, keys, query, tile.width, scores);
}

// ---- Masks

// For each key of a block, the queries of the tile (one bit each) that may attend to it.
struct VisibleQueries {
  std::uint32_t bits[kKeyBlock];
  bool all;            // every query sees every key of the block: bits are not filled in
  std::uint32_t seen;  // queries that see any key of the block
};

// Whether all queries of a tile read the same row of a mask or bias.
template <class T>
bool is_shared(const AttentionOperand& x, const QueryTile<T>& tile) {
  return x.row_stride == 0 && (tile.one_head || x.head_stride == 0);
}

template <class T>
void visible_by_range(const QueryTile<T>& tile, Index first, Index count, std::uint32_t* bits) {
  std::uint32_t change[kKeyBlock + 1] = {};  // bit l flips where query l's range begins and ends
  for (Index l = 0; l < tile.width; ++l) {
    const Index begin = larger(tile.first[l] - first, 0), end = smaller(tile.last[l] - first, count);
    if (begin < end) {
      change[begin] ^= 1u << l;
      change[end] ^= 1u << l;
    }
  }
  std::uint32_t current = 0;
  for (Index k = 0; k < count; ++k) bits[k] = current ^= change[k];
}

template <class T>
void visible_by_segment(const AttentionProblem& p, const QueryTile<T>& tile, Index first, Index count, std::uint32_t* bits) {
  const Index* query_segment = p.masks.query_segments + tile.batch * p.query_length;
  const Index* key_segment = p.masks.key_segments + tile.batch * p.key_length + first;
  for (Index k = 0; k < count; ++k) {
    std::uint32_t same = 0;
    for (Index l = 0; l < tile.width; ++l) {
      same |= static_cast<std::uint32_t>(query_segment[tile.row[l]] == key_segment[k]) << l;
    }
    bits[k] &= same;
  }
}

template <class T>
void visible_by_mask(const AttentionProblem& p, const QueryTile<T>& tile, Index first, Index count, std::uint32_t* bits) {
  const AttentionOperand& mask = p.masks.mask;
  const auto* data = static_cast<const unsigned char*>(mask.data) + first * mask.column_stride;
  if (is_shared(mask, tile)) {
    const unsigned char* row = data + tile.offset(mask, 0);
    for (Index k = 0; k < count; ++k) bits[k] &= row[k * mask.column_stride] != 0 ? ~0u : 0u;
    return;
  }
  std::uint32_t allowed[kKeyBlock] = {};
  for (Index l = 0; l < tile.width; ++l) {
    const unsigned char* row = data + tile.offset(mask, l);
    if (mask.column_stride == 1) {
      for (Index k = 0; k < count; ++k) allowed[k] |= static_cast<std::uint32_t>(row[k] != 0) << l;
    } else {
      for (Index k = 0; k < count; ++k) allowed[k] |= static_cast<std::uint32_t>(row[k * mask.column_stride] != 0) << l;
    }
  }
  for (Index k = 0; k < count; ++k) bits[k] &= allowed[k];
}

inline void summarise(Index count, std::uint32_t every, VisibleQueries& visible) {
  std::uint32_t all = every, seen = 0;
  for (Index k = 0; k < count; ++k) {
    all &= visible.bits[k];
    seen |= visible.bits[k];
  }
  visible.all = all == every;
  visible.seen = seen;
}

// Decides a tile from the masks alone, never from the numbers behind them.
template <class T>
void find_visible(const AttentionProblem& p, const QueryTile<T>& tile, Index first, Index count, VisibleQueries& visible) {
  const bool whole_range = first >= tile.highest_first && first + count <= tile.lowest_last;
  const bool by_segment = p.masks.query_segments != nullptr, by_mask = p.masks.mask.data != nullptr;
  visible.all = whole_range;
  visible.seen = tile.every();
  if (whole_range && !by_segment && !by_mask) return;
  visible_by_range(tile, first, count, visible.bits);
  if (by_segment) visible_by_segment(p, tile, first, count, visible.bits);
  if (by_mask) visible_by_mask(p, tile, first, count, visible.bits);
  summarise(count, tile.every(), visible);
}

// ---- Scores

// The float bias of a tile: value[key][query], or one value per key when all queries share it.
template <class T>
struct BiasTile {
  T* value;   // kKeyBlock x kTileQueries
  T* dense;   // kTileQueries x kKeyBlock
  bool shared;
};

// Loads the bias; -inf masks.
template <class T>
void load_bias(const AttentionProblem& p, const QueryTile<T>& tile, Index first, Index count, BiasTile<T>& bias,
               VisibleQueries& visible) {
  using S = Simd<T>;
  const AttentionOperand& x = p.bias;
  const Index column = first * x.column_stride;
  if (visible.all) {
    for (Index k = 0; k < count; ++k) visible.bits[k] = tile.every();
  }
  bias.shared = is_shared(x, tile);
  if (bias.shared) {
    const Index start = tile.offset(x, 0) + column;
    for (Index k = 0; k < count; ++k) {
      bias.value[k] = read_element<T>(x.data, x.dtype, start + k * x.column_stride);
      if (bias.value[k] == kMinusInfinity<T>) visible.bits[k] = 0;
    }
  } else {
    const T* row[kTileQueries<T>];
    for (Index l = 0; l < tile.width; ++l) {
      const Index start = tile.offset(x, l) + column;
      if (x.dtype == dtype_of<T>() && x.column_stride == 1) {
        row[l] = static_cast<const T*>(x.data) + start;
      } else {
        copy_rows(x, start, 1, count, bias.dense + l * kKeyBlock, kKeyBlock);
        row[l] = bias.dense + l * kKeyBlock;
      }
    }
    transpose_rows(row, tile.width, count, bias.value);
    const auto minus_infinity = S::broadcast(kMinusInfinity<T>);
    for (Index k = 0; k < count; ++k) {
      for (Index v = 0; v < tile.vectors; ++v) {
        const auto value = S::load(bias.value + k * tile.width + v * S::lanes);
        visible.bits[k] &= ~(S::to_bits(S::equal(value, minus_infinity)) << (v * S::lanes));
      }
    }
  }
  summarise(count, tile.every(), visible);
}

// Every function that turns query key^T into the logits of the softmax, where there is one (p.has_logits()).
template <class T>
void finish_scores(const AttentionProblem& p, const QueryTile<T>& tile, Index first, Index count, const BiasTile<T>& bias,
                   T* scores) {
  using S = Simd<T>;
  const Index width = tile.width;
  if (!p.has_logits()) return;
  const auto scale = S::broadcast(static_cast<T>(p.softcap > 0 ? p.scale / p.softcap : p.scale));
  const auto cap = S::broadcast(static_cast<T>(p.softcap));
  for (Index k = 0; k < count; ++k) {
    for (Index v = 0; v < tile.vectors; ++v) {
      T* score = scores + k * width + v * S::lanes;
      auto logit = S::load(score) * scale;
      if (p.softcap > 0) logit = cap * tanh<T>(logit);
      if (p.bias.data != nullptr) {
        logit += bias.shared ? S::broadcast(bias.value[k]) : S::load(bias.value + k * width + v * S::lanes);
      }
      S::store(score, logit);
    }
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

// ---- Dropout

// keep[key]: the queries whose weight of that key is kept. Philox4x32-10 (Salmon et al. 2011) under the key `seed`, with
// counter = (key / 64 * 16 + key % 16, query, head, batch); output word key % 64 / 16 is kept when it is at least dropout_p * 2^32.
template <class T>
void find_kept(const AttentionProblem& p, const QueryTile<T>& tile, Index first, Index count, std::uint32_t* keep) {
  constexpr Index queries = kTileQueries<T>;
  const auto least = static_cast<std::uint64_t>(p.dropout_p * 4294967296.0);
  for (Index k = 0; k < count; ++k) keep[k] = 0;
  for (Index group = first / 64 * 64; group < first + count; group += 64) {
    for (Index c = 0; c < 16; ++c) {
      std::uint32_t x0[queries], x1[queries], x2[queries], x3[queries];
      for (Index l = 0; l < queries; ++l) {
        x0[l] = static_cast<std::uint32_t>(group / 64 * 16 + c);
        x1[l] = l < tile.width ? static_cast<std::uint32_t>(tile.row[l]) : 0u;
        x2[l] = l < tile.width ? static_cast<std::uint32_t>(tile.head[l]) : 0u;
        x3[l] = static_cast<std::uint32_t>(tile.batch);
      }
      auto key0 = static_cast<std::uint32_t>(p.seed);
      auto key1 = static_cast<std::uint32_t>(p.seed >> 32);
      for (int round = 0; round < 10; ++round) {
        for (Index l = 0; l < queries; ++l) {
          const std::uint64_t a = std::uint64_t{0xD2511F53u} * x0[l];
          const std::uint64_t b = std::uint64_t{0xCD9E8D57u} * x2[l];
          x0[l] = static_cast<std::uint32_t>(b >> 32) ^ x1[l] ^ key0;
          x2[l] = static_cast<std::uint32_t>(a >> 32) ^ x3[l] ^ key1;
          x1[l] = static_cast<std::uint32_t>(b);
          x3[l] = static_cast<std::uint32_t>(a);
        }
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
      }
      const std::uint32_t* word[4] = {x0, x1, x2, x3};
      for (Index w = 0; w < 4; ++w) {
        const Index k = group + 16 * w + c - first;
        if (k < 0 || k >= count) continue;
        std::uint32_t kept = 0;
        for (Index l = 0; l < queries; ++l) kept |= static_cast<std::uint32_t>(word[w][l] >= least) << l;
        keep[k] = kept;
      }
    }
  }
}

// weights[key][query] becomes weight / (1 - p) where kept and 0 where dropped.
template <class T>
void drop(const QueryTile<T>& tile, Index count, const std::uint32_t* keep, T factor, T* weights) {
  using S = Simd<T>;
  const auto scale = S::broadcast(factor);
  for (Index k = 0; k < count; ++k) {
    for (Index v = 0; v < tile.vectors; ++v) {
      T* weight = weights + k * tile.width + v * S::lanes;
      S::store(weight, S::select(S::from_bits(keep[k] >> (v * S::lanes)), S::load(weight) * scale, S::zero()));
    }
  }
}

inline double keep_factor(const AttentionProblem& p) { return p.dropout_p < 1 ? 1 / (1 - p.dropout_p) : 0; }

// ---- Values behind masks

// Whether all of a row is finite (x * 0 is 0 for finite x only).
template <class T>
bool is_finite_row(const T* row, Index columns, Index column_stride) {
  using S = Simd<T>;
  auto zero = S::zero();
  if (column_stride == 1) {
    Index c = 0;
    for (; c + S::lanes <= columns; c += S::lanes) zero += S::load(row + c) * S::zero();
    if (c < columns) zero += S::load_first(row + c, columns - c) * S::zero();
  } else {
    for (Index c = 0; c < columns; ++c) zero += S::broadcast(row[c * column_stride]) * S::zero();
  }
  return S::sum(zero) == T(0);
}

// Keys or values that some queries of a tile may not see must be finite before they are multiplied by a weight of 0. A row that is not
// is zeroed in a copy of the block and remembered; the queries that do see it get its share separately (add_unsafe_rows).
struct UnsafeRows {
  Index count = 0;
  Index key[kKeyBlock];
};

template <class T>
KeyBlock<T> replace_unsafe_rows(const KeyBlock<T>& rows, Index count, Index columns, T* buffer, UnsafeRows& unsafe) {
  for (Index k = 0; k < count; ++k) {
    if (!is_finite_row(rows.data + k * rows.row_stride, columns, rows.column_stride)) unsafe.key[unsafe.count++] = k;
  }
  if (unsafe.count == 0) return rows;
  for (Index k = 0, next = 0; k < count; ++k) {
    const bool zeroed = next < unsafe.count && unsafe.key[next] == k;
    if (zeroed) ++next;
    for (Index c = 0; c < columns; ++c) {
      buffer[k * columns + c] = zeroed ? T(0) : rows.data[k * rows.row_stride + c * rows.column_stride];
    }
  }
  return {buffer, columns, 1};
}

// out[c][query] += weights[key][query] * row[key][c] for the unsafe keys and the queries that see them.
template <class T>
void add_unsafe_rows(const QueryTile<T>& tile, const KeyBlock<T>& rows, Index columns, const UnsafeRows& unsafe,
                     const VisibleQueries& visible, const T* weights, T* out) {
  using S = Simd<T>;
  for (Index u = 0; u < unsafe.count; ++u) {
    const Index k = unsafe.key[u];
    for (Index c = 0; c < columns; ++c) {
      const auto x = S::broadcast(rows.data[k * rows.row_stride + c * rows.column_stride]);
      for (Index v = 0; v < tile.vectors; ++v) {
        T* target = out + c * tile.width + v * S::lanes;
        const auto old = S::load(target);
        const auto sum = S::fma(S::load(weights + k * tile.width + v * S::lanes), x, old);
        S::store(target, S::select(S::from_bits(visible.bits[k] >> (v * S::lanes)), sum, old));
      }
    }
  }
}

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
