#pragma once

// Dropout of attention weights, drawn again wherever it is needed instead of being kept.

#include <cstdint>

#include "kernels/isa/kept_elements.h"
#include "kernels/isa/query_tile.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

// Every weight needs a number of its own, twice when gradients are computed: the fewest rounds are enough
// (three less make forward 1.02 times as fast with AVX-512, 1.02 to 1.04 with AVX2).
constexpr int kAttentionDropoutRounds = 7;

// The counters of this many keys are combined with queries at a time. A counter decides about eight of them.
constexpr Index kKeysOfCounter = 8, kCountersAtOnce = 16;

// Words 0 and 3 of a counter come from the key and the batch, words 1 and 2 from the query and its head. A
// round does not mix word 0 with word 2, so that after two of them each word is still a number of the key
// combined with one of the query: those rounds cost next to nothing. This is what counters from `first` on
// bring to words 0, 1 and 2 (word 3 has nothing of them),
struct WordsOfKeys {
  Words::Vector word[kCountersAtOnce][3];
  WordsOfKeys(Index first, Index count, Index batch, const RoundKeys& key) {
    using W = Words;
    for (Index c = 0; c < count; ++c) {
      const W::Vector product0 =
          W::product(W::broadcast(static_cast<std::uint64_t>(first + c)), W::broadcast(kPhiloxMultiplier[0]));
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

// Which weights of a tile and a block of keys are kept: of[key] has a bit for each query. Philox4x32-7
// (Salmon et al. 2011) under the key `seed`, with counter = (key / 8, query, head, batch). A weight is kept
// when output word key % 4, for key % 8 >= 4 with its halves exchanged, is at least dropout_p * 2^32. So a
// word decides twice, by its upper half and, only where that is the same as the threshold's, by the lower one
// too: each weight is kept with the probability it ought to be, to 2^-32, and two that share a word are
// independent but for one in 2^15.
struct KeptWeights {
  const std::uint32_t* of;
  std::uint32_t drawn[kMostKeys + 2 * kKeysOfCounter];

  template <class T>
  KeptWeights(const AttentionProblem& p, const QueryTile<T>& tile, Index first, Index count) {
    using W = Words;
    const Index skipped = first % kKeysOfCounter, counters = ceil_div(skipped + count, kKeysOfCounter);
    of = drawn + skipped;
    for (Index k = 0; k < counters * kKeysOfCounter; ++k) drawn[k] = 0;
    const auto threshold = static_cast<std::uint64_t>(p.dropout_p * 4294967296.0);
    if (threshold > 0xffffffffu) return;
    const auto least = static_cast<std::uint32_t>(threshold);
    const RoundKeys key(p.seed);
    for (Index begin = 0; begin < counters; begin += kCountersAtOnce) {
      const Index together = smaller(kCountersAtOnce, counters - begin);
      const WordsOfKeys keys(first / kKeysOfCounter + begin, together, tile.batch, key);
      for (Index l = 0; l < tile.width; l += WordsOfQueries::queries) {
        const WordsOfQueries queries(tile, l, key);
        for (Index c = 0; c < together; ++c) {
          W::Vector word[2][4];
          for (int i = 0; i < 2; ++i) {
            word[i][0] = W::exclusive_or(queries.word[i][0], keys.word[c][0]);
            word[i][1] = keys.word[c][1];
            word[i][2] = W::exclusive_or(queries.word[i][2], keys.word[c][2]);
            word[i][3] = queries.word[i][3];
          }
          for (int round = 2; round < kAttentionDropoutRounds; ++round) {
            for (int i = 0; i < 2; ++i) philox_round(word[i], key.of[round][0], key.of[round][1]);
          }
          std::uint32_t* const bits = drawn + (begin + c) * kKeysOfCounter;
          for (Index w = 0; w < 4; ++w) {
            const W::Vector words = W::pair(word[0][w], word[1][w]);
            bits[w] |= W::at_least(words, least) << l;
            bits[w + 4] |= W::at_least(W::exchange_halves(words), least) << l;
          }
        }
      }
    }
  }
};

inline double keep_factor(const AttentionProblem& p) { return p.dropout_p < 1 ? 1 / (1 - p.dropout_p) : 0; }

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
