#pragma once

// Philox4x32 (Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"): a counter
// and a key give four 32-bit random numbers, whoever asks and in whatever order. Seven rounds are the fewest
// that pass every test of BigCrush (their table 2), ten what they recommend. The functions are static,
// because files that are compiled for different instruction sets include them.

#include <cstdint>

namespace blasformer {

struct PhiloxKey {
  std::uint32_t word[2];
};

struct PhiloxBlock {
  std::uint32_t word[4];
};

constexpr int kPhiloxRounds = 10;
constexpr std::uint32_t kPhiloxMultiplier[2] = {0xd2511f53u, 0xcd9e8d57u};
constexpr std::uint32_t kPhiloxKeyStep[2] = {0x9e3779b9u,
                                             0xbb67ae85u};  // golden ratio and sqrt(3) - 1, times 2^32

static inline PhiloxKey next_round(PhiloxKey key) {
  return {{key.word[0] + kPhiloxKeyStep[0], key.word[1] + kPhiloxKeyStep[1]}};
}

static inline PhiloxBlock philox(PhiloxBlock counter, PhiloxKey key, int rounds = kPhiloxRounds) {
  for (int round = 0; round < rounds; ++round) {
    const std::uint64_t product0 = std::uint64_t{kPhiloxMultiplier[0]} * counter.word[0];
    const std::uint64_t product1 = std::uint64_t{kPhiloxMultiplier[1]} * counter.word[2];
    counter = {{static_cast<std::uint32_t>(product1 >> 32) ^ counter.word[1] ^ key.word[0],
                static_cast<std::uint32_t>(product1),
                static_cast<std::uint32_t>(product0 >> 32) ^ counter.word[3] ^ key.word[1],
                static_cast<std::uint32_t>(product0)}};
    key = next_round(key);
  }
  return counter;
}

}  // namespace blasformer
