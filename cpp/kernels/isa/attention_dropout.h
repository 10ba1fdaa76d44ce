#pragma once

// Dropout of attention weights, drawn again wherever it is needed instead of being kept.

#include <cstdint>

#include "kernels/isa/kept_elements.h"
#include "kernels/isa/query_tile.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

// keep[key]: the queries whose weight of that key is kept. Philox4x32-10 (Salmon et al. 2011) under the key
// `seed`, with counter = (key / 64 * 16 + key % 16, query, head, batch); output word key % 64 / 16 is kept
// when it is at least dropout_p * 2^32.
//
// Words 0 and 3 of a counter come from the key and the batch, words 1 and 2 from the query and its head. A
// round does not mix word 0 with word 2, so that after two of them each word is still a number of the key
// combined with one of the query: those rounds cost next to nothing.
template <class T>
void find_kept(const AttentionProblem& p, const QueryTile<T>& tile, Index first, Index count,
               std::uint32_t* keep) {
  using W = Words;
  constexpr Index pair = 2 * W::lanes;  // queries of a vector of words, and of the one that goes with it
  const auto least = static_cast<std::uint64_t>(p.dropout_p * 4294967296.0);
  for (Index k = 0; k < count; ++k) keep[k] = 0;
  if (least > 0xffffffffu) return;

  PhiloxKey key = {{static_cast<std::uint32_t>(p.seed), static_cast<std::uint32_t>(p.seed >> 32)}};
  W::Vector round_key[kPhiloxRounds][2];
  for (auto& word : round_key) {
    for (int i = 0; i < 2; ++i) word[i] = W::broadcast(key.word[i]);
    key = next_round(key);
  }
  const W::Vector batch = W::broadcast(static_cast<std::uint64_t>(tile.batch));
  const W::Vector multiplier0 = W::broadcast(kPhiloxMultiplier[0]);
  const W::Vector multiplier1 = W::broadcast(kPhiloxMultiplier[1]);
  for (Index l = 0; l < tile.width; l += pair) {
    // What two rounds make of words 1 and 2: of queries 0, 2, 4, ... in [0], of the others in [1].
    W::Vector query_word0[2], query_word2[2], query_word3[2];
    for (Index i = 0; i < 2; ++i) {
      alignas(64) Index row[W::lanes], head[W::lanes];
      for (Index j = 0; j < W::lanes; ++j) {
        const Index query = smaller(l + 2 * j + i, tile.width - 1);
        row[j] = tile.row[query];
        head[j] = tile.head[query];
      }
      const W::Vector product1 = W::product(W::load(head), multiplier1);
      const W::Vector word0 = W::exclusive_or(W::high(product1), W::load(row), round_key[0][0]);
      const W::Vector product0 = W::product(word0, multiplier0);
      query_word0[i] = W::exclusive_or(product1, round_key[1][0]);
      query_word2[i] = W::exclusive_or(W::high(product0), round_key[1][1]);
      query_word3[i] = product0;
    }
    for (Index group = first / 64 * 64; group < first + count; group += 64) {
      for (Index c = 0; c < 16 && group + c < first + count; ++c) {
        // What they make of words 0 and 3.
        const W::Vector product0 =
            W::product(W::broadcast(static_cast<std::uint64_t>(group / 64 * 16 + c)), multiplier0);
        const W::Vector product1 =
            W::product(W::exclusive_or(W::high(product0), batch, round_key[0][1]), multiplier1);
        W::Vector word[2][4];
        for (int i = 0; i < 2; ++i) {
          word[i][0] = W::exclusive_or(query_word0[i], W::high(product1));
          word[i][1] = product1;
          word[i][2] = W::exclusive_or(query_word2[i], product0);
          word[i][3] = query_word3[i];
        }
        for (int round = 2; round < kPhiloxRounds; ++round) {
          for (int i = 0; i < 2; ++i) philox_round(word[i], round_key[round][0], round_key[round][1]);
        }
        for (Index w = 0; w < 4; ++w) {
          const Index k = group + 16 * w + c - first;
          if (k < 0 || k >= count) continue;
          keep[k] |= W::at_least(W::pair(word[0][w], word[1][w]), static_cast<std::uint32_t>(least)) << l;
        }
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
