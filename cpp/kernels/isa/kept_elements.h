#pragma once

// Philox of core/philox.h, with the same numbers, for several counters at once; and which elements of an
// array dropout keeps, by ten rounds of it.

#include <immintrin.h>

#include <cstdint>

#include "core/index.h"
#include "core/philox.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

// Vectors of 64-bit lanes, each with a random word in its lower half; the upper half is ignored.
//   product      of words, 64 bits, whose upper half `high` brings down
//   pair         the words of two vectors side by side in each lane
//   first_half   given pairs of words 0, 1 and 2, 3, the four words of one counter after the other, for half
//   second_half  of the lanes each; counters must be numbered as lane_order does
//   exchange_halves  of every word of 32 bits
//   at_least     bit i: whether word i of 2 * lanes is no less than the threshold, unsigned
#if defined(BLASFORMER_ISA_avx512)
struct Words {
  using Vector = __m512i;
  static constexpr Index lanes = 8;
  static Vector broadcast(std::uint64_t x) { return _mm512_set1_epi64(static_cast<long long>(x)); }
  static Vector lane_order() { return _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7); }
  static Vector load(const Index* p) { return _mm512_loadu_si512(reinterpret_cast<const Vector*>(p)); }
  static Vector exclusive_or(Vector a, Vector b) { return _mm512_xor_si512(a, b); }
  static Vector add(Vector a, Vector b) { return _mm512_add_epi64(a, b); }
  static Vector product(Vector a, Vector b) { return _mm512_mul_epu32(a, b); }
  // Runs beside multiplications, where a shift would wait for them.
  static Vector high(Vector a) { return _mm512_shuffle_epi32(a, _MM_PERM_DDBB); }
  static Vector exclusive_or(Vector a, Vector b, Vector c) {
    return _mm512_ternarylogic_epi64(a, b, c, 0x96);
  }
  static Vector pair(Vector a, Vector b) {
    return _mm512_mask_blend_epi32(0xaaaa, a, _mm512_slli_epi64(b, 32));
  }
  static Vector first_half(Vector a, Vector b) { return _mm512_unpacklo_epi64(a, b); }
  static Vector second_half(Vector a, Vector b) { return _mm512_unpackhi_epi64(a, b); }
  static Vector exchange_halves(Vector words) { return _mm512_rol_epi32(words, 16); }
  static std::uint32_t at_least(Vector words, std::uint32_t threshold) {
    return _mm512_cmpge_epu32_mask(words, _mm512_set1_epi32(static_cast<int>(threshold)));
  }
};
#elif defined(BLASFORMER_ISA_avx2)
struct Words {
  using Vector = __m256i;
  static constexpr Index lanes = 4;
  static Vector broadcast(std::uint64_t x) { return _mm256_set1_epi64x(static_cast<long long>(x)); }
  static Vector lane_order() { return _mm256_setr_epi64x(0, 2, 1, 3); }
  static Vector load(const Index* p) { return _mm256_loadu_si256(reinterpret_cast<const Vector*>(p)); }
  static Vector exclusive_or(Vector a, Vector b) { return _mm256_xor_si256(a, b); }
  static Vector add(Vector a, Vector b) { return _mm256_add_epi64(a, b); }
  static Vector product(Vector a, Vector b) { return _mm256_mul_epu32(a, b); }
  static Vector high(Vector a) { return _mm256_srli_epi64(a, 32); }
  // c comes late. The compiler exchanges the operands of integers, and all would wait for it twice.
  static Vector exclusive_or(Vector a, Vector b, Vector c) {
    const __m256 early = _mm256_xor_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b));
    return _mm256_xor_si256(_mm256_castps_si256(early), c);
  }
  static Vector pair(Vector a, Vector b) { return _mm256_blend_epi32(a, _mm256_slli_epi64(b, 32), 0xaa); }
  static Vector first_half(Vector a, Vector b) { return _mm256_unpacklo_epi64(a, b); }
  static Vector second_half(Vector a, Vector b) { return _mm256_unpackhi_epi64(a, b); }
  static Vector exchange_halves(Vector words) {
    return _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(words, 0xb1), 0xb1);
  }
  static std::uint32_t at_least(Vector words, std::uint32_t threshold) {
    const __m256i larger = _mm256_max_epu32(words, _mm256_set1_epi32(static_cast<int>(threshold)));
    const __m256i kept = _mm256_cmpeq_epi32(larger, words);
    return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(kept)));
  }
};
#else
struct Words {
  using Vector = __m128i;
  static constexpr Index lanes = 2;
  static Vector broadcast(std::uint64_t x) { return _mm_set1_epi64x(static_cast<long long>(x)); }
  static Vector lane_order() { return _mm_set_epi64x(1, 0); }
  static Vector load(const Index* p) { return _mm_loadu_si128(reinterpret_cast<const Vector*>(p)); }
  static Vector exclusive_or(Vector a, Vector b) { return _mm_xor_si128(a, b); }
  static Vector add(Vector a, Vector b) { return _mm_add_epi64(a, b); }
  static Vector product(Vector a, Vector b) { return _mm_mul_epu32(a, b); }
  static Vector high(Vector a) { return _mm_srli_epi64(a, 32); }
  static Vector exclusive_or(Vector a, Vector b, Vector c) { return _mm_xor_si128(_mm_xor_si128(a, b), c); }
  static Vector pair(Vector a, Vector b) {
    return _mm_or_si128(_mm_and_si128(a, _mm_set1_epi64x(0xffffffff)), _mm_slli_epi64(b, 32));
  }
  static Vector first_half(Vector a, Vector b) { return _mm_unpacklo_epi64(a, b); }
  static Vector second_half(Vector a, Vector b) { return _mm_unpackhi_epi64(a, b); }
  static Vector exchange_halves(Vector words) {
    return _mm_shufflehi_epi16(_mm_shufflelo_epi16(words, 0xb1), 0xb1);
  }
  static std::uint32_t at_least(Vector words, std::uint32_t threshold) {
    const __m128i sign = _mm_set1_epi32(static_cast<int>(0x80000000u));  // comparisons are signed
    const __m128i least = _mm_set1_epi32(static_cast<int>(threshold ^ 0x80000000u));
    const __m128i dropped = _mm_cmpgt_epi32(least, _mm_xor_si128(words, sign));
    return static_cast<std::uint32_t>(~_mm_movemask_ps(_mm_castsi128_ps(dropped)) & 0xf);
  }
};
#endif

constexpr Index kDrawnAtOnce = 2 * 4 * Words::lanes;

// The keys of all rounds.
struct RoundKeys {
  Words::Vector of[kPhiloxRounds][2];
  explicit RoundKeys(std::uint64_t seed) {
    PhiloxKey key = {{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)}};
    for (auto& round : of) {
      for (int i = 0; i < 2; ++i) round[i] = Words::broadcast(key.word[i]);
      key = next_round(key);
    }
  }
};

// A round of Philox: words 0 to 3 of several counters.
inline void philox_round(Words::Vector (&word)[4], Words::Vector key0, Words::Vector key1) {
  using W = Words;
  const W::Vector product0 = W::product(word[0], W::broadcast(kPhiloxMultiplier[0]));
  const W::Vector product1 = W::product(word[2], W::broadcast(kPhiloxMultiplier[1]));
  word[0] = W::exclusive_or(word[1], key0, W::high(product1));
  word[1] = product1;
  word[2] = W::exclusive_or(word[3], key1, W::high(product0));
  word[3] = product0;
}

// Bit i: whether element i of kDrawnAtOnce is kept, which it is if word i % 4 of counter first + i / 4 is no
// less than the threshold. (The upper 64 bits of counters are zero.)
inline std::uint64_t kept_elements(std::uint64_t first, const RoundKeys& key, std::uint32_t threshold) {
  using W = Words;
  W::Vector word[2][4];  // of two vectors of counters: one alone would wait for each of its products
  for (int i = 0; i < 2; ++i) {
    word[i][0] = W::add(W::broadcast(first + static_cast<std::uint64_t>(i * W::lanes)), W::lane_order());
    word[i][1] = W::high(word[i][0]);
    word[i][2] = word[i][3] = W::broadcast(0);
  }
  for (int round = 0; round < kPhiloxRounds; ++round) {
    for (int i = 0; i < 2; ++i) philox_round(word[i], key.of[round][0], key.of[round][1]);
  }
  std::uint64_t kept = 0;
  for (int i = 0; i < 2; ++i) {
    const W::Vector words01 = W::pair(word[i][0], word[i][1]), words23 = W::pair(word[i][2], word[i][3]);
    const std::uint64_t first_half = W::at_least(W::first_half(words01, words23), threshold);
    const std::uint64_t second_half = W::at_least(W::second_half(words01, words23), threshold);
    kept |= (first_half | second_half << (2 * W::lanes)) << (4 * W::lanes * i);
  }
  return kept;
}

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
