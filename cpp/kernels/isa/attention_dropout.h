#pragma once

// Dropout of attention weights, drawn again wherever it is needed instead of being kept.

#include <cstdint>

#include "kernels/isa/kept_elements.h"
#include "kernels/isa/query_tile.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

// Words 0 and 3 of a counter come from the key and the batch, words 1 and 2 from the query and its head. A
// round does not mix word 0 with word 2, so that after two of them each word is still a number of the key
// combined with one of the query: those rounds cost next to nothing. This is what keys 0 to 15 of 64 bring
// to words 0, 1 and 2 (word 3 has nothing of them),
struct WordsOfKeys {
  Words::Vector word[16][3];
  WordsOfKeys(Index group, Index batch, const RoundKeys& key) {
    using W = Words;
    for (Index c = 0; c < 16; ++c) {
      const W::Vector product0 = W::product(W::broadcast(static_cast<std::uint64_t>(group * 16 + c)),
                                            W::broadcast(kPhiloxMultiplier[0]));
      const W::Vector word2 =
          W::exclusive_or(W::high(product0), W::broadcast(static_cast<std::uint64_t>(batch)), key.of[0][1]);
      const W::Vector product1 = W::product(word2, W::broadcast(kPhiloxMultiplier[1]));
      word[c][0] = W::high(product1);
      word[c][1] = product1;
      word[c][2] = product0;
    }
  }
};

// and this what queries from `first` on bring to words 0, 2 and 3: even ones in word[0], odd ones in word[1].
struct WordsOfQueries {
  static constexpr Index queries = 2 * Words::lanes;
  Words::Vector word[2][4];
  template <class T>
  WordsOfQueries(const QueryTile<T>& tile, Index first, const RoundKeys& key) {
    using W = Words;
    for (Index i = 0; i < 2; ++i) {
      Index row[W::lanes], head[W::lanes];
      for (Index j = 0; j < W::lanes; ++j) {
        const Index l = smaller(first + 2 * j + i, tile.width - 1);
        row[j] = tile.row[l];
        head[j] = tile.head[l];
      }
      const W::Vector product1 = W::product(W::load(head), W::broadcast(kPhiloxMultiplier[1]));
      const W::Vector word0 = W::exclusive_or(W::high(product1), W::load(row), key.of[0][0]);
      const W::Vector product0 = W::product(word0, W::broadcast(kPhiloxMultiplier[0]));
      word[i][0] = W::exclusive_or(product1, key.of[1][0]);
      word[i][2] = W::exclusive_or(W::high(product0), key.of[1][1]);
      word[i][3] = product0;
    }
  }
};

// keep[key]: the queries whose weight of that key is kept. Philox4x32-10 (Salmon et al. 2011) under the key
// `seed`, with counter = (key / 64 * 16 + key % 16, query, head, batch); output word key % 64 / 16 is kept
// when it is at least dropout_p * 2^32.
template <class T>
void find_kept(const AttentionProblem& p, const QueryTile<T>& tile, Index first, Index count,
               std::uint32_t* keep) {
  using W = Words;
  const auto least = static_cast<std::uint64_t>(p.dropout_p * 4294967296.0);
  for (Index k = 0; k < count; ++k) keep[k] = 0;
  if (least > 0xffffffffu) return;
  const RoundKeys key(p.seed);
  for (Index group = first / 64; 64 * group < first + count; ++group) {
    const WordsOfKeys keys(group, tile.batch, key);
    for (Index l = 0; l < tile.width; l += WordsOfQueries::queries) {
      const WordsOfQueries queries(tile, l, key);
      for (Index c = 0; c < 16 && 64 * group + c < first + count; ++c) {
        W::Vector word[2][4];
        for (int i = 0; i < 2; ++i) {
          word[i][0] = W::exclusive_or(queries.word[i][0], keys.word[c][0]);
          word[i][1] = keys.word[c][1];
          word[i][2] = W::exclusive_or(queries.word[i][2], keys.word[c][2]);
          word[i][3] = queries.word[i][3];
        }
        for (int round = 2; round < kPhiloxRounds; ++round) {
          for (int i = 0; i < 2; ++i) philox_round(word[i], key.of[round][0], key.of[round][1]);
        }
        for (Index w = 0; w < 4; ++w) {
          const Index k = 64 * group + 16 * w + c - first;
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
