#pragma once

// The masks: which queries of a tile may attend to which keys of a block.

#include <cstdint>

#include "kernels/isa/query_tile.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

// For each key of a block, the queries of the tile (one bit each) that may attend to it.
struct VisibleQueries {
  std::uint32_t bits[kMostKeys];
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
  std::uint32_t change[kMostKeys + 1] = {};  // bit l flips where query l's range begins and ends
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
void visible_by_segment(const AttentionProblem& p, const QueryTile<T>& tile, Index first, Index count,
                        std::uint32_t* bits) {
  const Index* query_segment = p.masks.query_segments + tile.batch * p.query_length;
  const Index* key_segment = p.masks.key_segments + tile.batch * p.key_length + first;
  std::uint32_t same = 0;
  for (Index k = 0; k < count; ++k) {
    if (k == 0 || key_segment[k] != key_segment[k - 1]) {  // segments are mostly runs of neighbours
      same = 0;
      for (Index l = 0; l < tile.width; ++l) {
        same |= static_cast<std::uint32_t>(query_segment[tile.row[l]] == key_segment[k]) << l;
      }
    }
    bits[k] &= same;
  }
}

template <class T>
void visible_by_mask(const AttentionProblem& p, const QueryTile<T>& tile, Index first, Index count,
                     std::uint32_t* bits) {
  const AttentionOperand& mask = p.masks.mask;
  const auto* data = static_cast<const unsigned char*>(mask.data) + first * mask.column_stride;
  if (is_shared(mask, tile)) {
    const unsigned char* row = data + tile.offset(mask, 0);
    for (Index k = 0; k < count; ++k) bits[k] &= row[k * mask.column_stride] != 0 ? ~0u : 0u;
    return;
  }
  std::uint32_t allowed[kMostKeys] = {};
  for (Index l = 0; l < tile.width; ++l) {
    const unsigned char* row = data + tile.offset(mask, l);
    if (mask.column_stride == 1) {
      for (Index k = 0; k < count; ++k) allowed[k] |= static_cast<std::uint32_t>(row[k] != 0) << l;
    } else {
      for (Index k = 0; k < count; ++k)
        allowed[k] |= static_cast<std::uint32_t>(row[k * mask.column_stride] != 0) << l;
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
void find_visible(const AttentionProblem& p, const QueryTile<T>& tile, Index first, Index count,
                  VisibleQueries& visible) {
  const bool whole_range = first >= tile.highest_first && first + count <= tile.lowest_last;
  const bool by_segment = p.masks.query_segments != nullptr, by_mask = p.masks.mask.data != nullptr;
  visible.all = whole_range;
  visible.seen = tile.every();
  if (whole_range && !by_segment && !by_mask) return;
  if (whole_range) {
    for (Index k = 0; k < count; ++k) visible.bits[k] = tile.every();
  } else {
    visible_by_range(tile, first, count, visible.bits);
  }
  if (by_segment) visible_by_segment(p, tile, first, count, visible.bits);
  if (by_mask) visible_by_mask(p, tile, first, count, visible.bits);
  summarise(count, tile.every(), visible);
}

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
