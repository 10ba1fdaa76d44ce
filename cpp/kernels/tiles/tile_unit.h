#pragma once

// What multiplies bfloat16 numbers, two tiles of 16 x 32 and 32 x 16 of them at a time: the tiles of AMX; or
// their arithmetic in plain C++, for tests on any CPU; or the dot products of AVX512_BF16.

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/denormals.h"
#include "kernels/tiles/bundle.h"

namespace blasformer::BLASFORMER_ISA {

namespace {

#if defined(BLASFORMER_ISA_avx512_bf16)

class Tiles {
 public:
  static void configure() {}
  static void release() {}

  static constexpr Index rows = 8;

  // sums (8, 32) = 8 rows of left times right, of the first parts. One instruction adds the product of the
  // upper numbers of a pair, then that of the lower ones.
  void multiply(const Bundle& left, Index row, const Bundle& right, float* sums) const {
    __m512 sum[rows][2];
#pragma GCC unroll 8
    for (Index r = 0; r < rows; ++r) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    for (Index step = 0; step < right.steps; ++step) {
      const unsigned char* const x = left.tile(0, step, row / kTileLines) + row % kTileLines * kPairs * 4;
      const unsigned char* const y = right.tile(0, step, 0);
      for (Index pair = 0; pair < kPairs; ++pair) {
        const __m512bh y0 = pairs_at(y + pair * 64), y1 = pairs_at(y + kTileBytes + pair * 64);
#pragma GCC unroll 8
        for (Index r = 0; r < rows; ++r) {
          std::int32_t both;
          std::memcpy(&both, x + (r * kPairs + pair) * 4, sizeof both);
          const __m512i factor = _mm512_set1_epi32(both);
          sum[r][0] = _mm512_dpbf16_ps(sum[r][0], as_pairs(factor), y0);
          sum[r][1] = _mm512_dpbf16_ps(sum[r][1], as_pairs(factor), y1);
        }
      }
    }
#pragma GCC unroll 8
    for (Index r = 0; r < rows; ++r) {
      _mm512_storeu_ps(sums + r * kLines, sum[r][0]);
      _mm512_storeu_ps(sums + r * kLines + 16, sum[r][1]);
    }
  }

 private:
  static __m512bh as_pairs(const __m512i& x) { return reinterpret_cast<const __m512bh&>(x); }
  static __m512bh pairs_at(const unsigned char* x) { return as_pairs(_mm512_loadu_si512(x)); }
};

#elif defined(BLASFORMER_ISA_amx)

// Sums are tiles 0 to 3, the left operand is in 4 and 5, the right one in 6 and 7: the intrinsics want
// literal numbers. The tiles of a thread are configured for as long as no other code that may use them runs,
// and released after: an idle thread is switched without their 8 KB.
class Tiles {
 public:
  static void configure() {
    struct alignas(64) Configuration {
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    static_assert(sizeof(Configuration) == 64);
    // Static: GCC takes the instruction to read 8 bytes, and need not have stored the others.
    static constexpr Configuration configuration;
    _tile_loadconfig(&configuration);
  }
  static void release() { _tile_release(); }

  template <int row, int column>
  void clear() {
    if constexpr (row == 0 && column == 0) _tile_zero(0);
    if constexpr (row == 0 && column == 1) _tile_zero(1);
    if constexpr (row == 1 && column == 0) _tile_zero(2);
    if constexpr (row == 1 && column == 1) _tile_zero(3);
  }
  template <int row>
  void load_left(const unsigned char* tile) {
    if constexpr (row == 0) _tile_loadd(4, tile, 64);
    if constexpr (row == 1) _tile_loadd(5, tile, 64);
  }
  template <int column>
  void load_right(const unsigned char* tile) {
    if constexpr (column == 0) _tile_loadd(6, tile, 64);
    if constexpr (column == 1) _tile_loadd(7, tile, 64);
  }
  template <int row, int column>
  void multiply() {
    if constexpr (row == 0 && column == 0) _tile_dpbf16ps(0, 4, 6);
    if constexpr (row == 0 && column == 1) _tile_dpbf16ps(1, 4, 7);
    if constexpr (row == 1 && column == 0) _tile_dpbf16ps(2, 5, 6);
    if constexpr (row == 1 && column == 1) _tile_dpbf16ps(3, 5, 7);
  }
  template <int row, int column>
  void store(float* sums) {
    if constexpr (row == 0 && column == 0) _tile_stored(0, sums, kLines * 4);
    if constexpr (row == 0 && column == 1) _tile_stored(1, sums, kLines * 4);
    if constexpr (row == 1 && column == 0) _tile_stored(2, sums, kLines * 4);
    if constexpr (row == 1 && column == 1) _tile_stored(3, sums, kLines * 4);
  }
};

#else

// TDPBF16PS as Intel's manual defines it: the products of the lower numbers of the pairs are added up by
// fused multiply-adds, those of the upper ones apart, then both, and that to what was there. All is rounded
// to nearest; denormals, taken or made, are zero.
class Tiles {
 public:
  static void configure() {}
  static void release() {}

  template <int row, int column>
  void clear() {
    std::memset(sums_[row][column], 0, sizeof sums_[row][column]);
  }
  template <int row>
  void load_left(const unsigned char* tile) {
    left_[row].load(tile);
  }
  template <int column>
  void load_right(const unsigned char* tile) {
    right_[column].load(tile);
  }
  template <int row, int column>
  void multiply() {
    const unsigned mode = floating_point_mode();
    set_floating_point_mode(0x9fc0);  // to nearest, denormals flushed, whatever the thread is set to
    if (left_[row].ordinary && right_[column].ordinary) {
      // Then a product is exact, and adding it is a fused multiply-add.
      add_product(left_[row], right_[column], sums_[row][column],
                  [](float x, float y, float sum) { return sum + x * y; });
    } else {
      add_product(left_[row], right_[column], sums_[row][column], [](float x, float y, float sum) {
        return no_denormal(std::fma(no_denormal(x), no_denormal(y), sum));
      });
    }
    set_floating_point_mode(mode);
  }
  template <int row, int column>
  void store(float* sums) {
    for (Index r = 0; r < 16; ++r) std::memcpy(sums + r * kLines, sums_[row][column][r], 64);
  }

 private:
  static float no_denormal(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

  struct Tile {
    float number[2][16][16];  // [lower or upper][row][pair]
    bool ordinary;            // zero or between 2^-60 and 2^60

    void load(const unsigned char* tile) {
      std::uint32_t lowest_less_one = ~0u, highest = 0;
      for (Index i = 0; i < 256; ++i) {
        std::uint32_t pair;
        std::memcpy(&pair, tile + i * 4, sizeof pair);
        for (int upper = 0; upper < 2; ++upper) {
          const std::uint32_t bits = upper == 0 ? pair << 16 : pair & 0xffff0000u;
          std::memcpy(&number[upper][i / 16][i % 16], &bits, sizeof bits);
          const std::uint32_t magnitude = bits & 0x7fffffffu;
          lowest_less_one = magnitude - 1 < lowest_less_one ? magnitude - 1 : lowest_less_one;
          highest = magnitude > highest ? magnitude : highest;
        }
      }
      ordinary = lowest_less_one >= (127u - 60u) << 23 && highest <= (127u + 60u) << 23;
    }
  };

  template <class MultiplyAdd>
  static void add_product(const Tile& left, const Tile& right, float (&sums)[16][16],
                          const MultiplyAdd& add) {
    for (Index row = 0; row < 16; ++row) {
      float sum[2][16] = {};
      for (Index pair = 0; pair < 16; ++pair) {
        for (Index upper = 0; upper < 2; ++upper) {
          const float x = left.number[upper][row][pair];
          for (Index column = 0; column < 16; ++column)
            sum[upper][column] = add(x, right.number[upper][pair][column], sum[upper][column]);
        }
      }
      for (Index column = 0; column < 16; ++column) sums[row][column] += sum[0][column] + sum[1][column];
    }
  }

  Tile left_[2], right_[2];
  float sums_[2][2][16][16];
};

#endif

}  // namespace

}  // namespace blasformer::BLASFORMER_ISA
