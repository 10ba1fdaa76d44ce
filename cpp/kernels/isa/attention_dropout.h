#pragma once

// Dropout of attention weights, drawn again wherever it is needed instead of being kept.

#include <cstdint>

#include "kernels/isa/query_tile.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

// keep[key]: the queries whose weight of that key is kept. Philox4x32-10 (Salmon et al. 2011) under the key
// `seed`, with counter = (key / 64 * 16 + key % 16, query, head, batch); output word key % 64 / 16 is kept
// when it is at least dropout_p * 2^32.
template <class T>
void find_kept(const AttentionProblem& p, const QueryTile<T>& tile, Index first, Index count,
               std::uint32_t* keep) {
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
      S::store(weight,
               S::select(S::from_bits(keep[k] >> (v * S::lanes)), S::load(weight) * scale, S::zero()));
    }
  }
}

inline double keep_factor(const AttentionProblem& p) { return p.dropout_p < 1 ? 1 / (1 - p.dropout_p) : 0; }

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
