#include "kernels/pair_product.h"

#if defined(BLASFORMER_ISA_avx512_bf16)

#include <immintrin.h>

#include <cstring>

namespace blasformer::BLASFORMER_ISA {

namespace {

__m512bh as_pairs(const __m512i& x) { return reinterpret_cast<const __m512bh&>(x); }

// As product_tile of kernels/isa/block_product.h, with a pair for a number.
template <int rows, int vectors>
[[gnu::noinline]] void product_tile(Index pairs, const std::uint16_t* left, Index left_stride,
                                    const float* right, Index right_stride, float* c, Index c_stride) {
  __m512 sum[rows][vectors];
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) sum[r][v] = _mm512_setzero_ps();
  }
  // One pointer for three rows: twelve would not fit into the general registers.
  constexpr int groups = (rows + 2) / 3;
  const std::uint16_t* group[groups];
#pragma GCC unroll 4
  for (int g = 0; g < groups; ++g) group[g] = left + 3 * g * left_stride;
  for (Index pair = 0; pair < pairs; ++pair) {
    __m512i y[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) y[v] = _mm512_loadu_si512(right + 16 * v);
    right += right_stride;
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      std::int32_t both;
      std::memcpy(&both, group[r / 3] + r % 3 * left_stride, sizeof both);
      const __m512i x = _mm512_set1_epi32(both);
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], as_pairs(x), as_pairs(y[v]));
    }
#pragma GCC unroll 4
    for (int g = 0; g < groups; ++g) group[g] += 2;
  }
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) _mm512_storeu_ps(c + r * c_stride + 16 * v, sum[r][v]);
  }
}

using Tile = void (*)(Index, const std::uint16_t*, Index, const float*, Index, float*, Index);
constexpr Index kMaxRows = 12;
template <int vectors>
constexpr Tile kTiles[kMaxRows] = {
    product_tile<1, vectors>, product_tile<2, vectors>,  product_tile<3, vectors>,  product_tile<4, vectors>,
    product_tile<5, vectors>, product_tile<6, vectors>,  product_tile<7, vectors>,  product_tile<8, vectors>,
    product_tile<9, vectors>, product_tile<10, vectors>, product_tile<11, vectors>, product_tile<12, vectors>,
};

void multiply(Index rows, Index vectors, Index pairs, const std::uint16_t* left, Index left_stride,
              const float* right, Index right_stride, float* c, Index c_stride) {
  // Rows whole pages apart: see most_rows_at_once() of block_product.h.
  const bool in_one_set = left_stride != 0 && left_stride * Index{sizeof *left} % 4096 == 0;
  const Index parts = ceil_div(rows, in_one_set ? 8 : kMaxRows);
  for (Index part = 0, row = 0; part < parts; ++part) {
    const Index height = ceil_div(rows - row, parts - part);
    for (Index v = 0; v < vectors;) {
      const int width = v + 2 <= vectors ? 2 : 1;
      const Tile tile = width == 2 ? kTiles<2>[height - 1] : kTiles<1>[height - 1];
      tile(pairs, left + row * left_stride, left_stride, right + 16 * v, right_stride,
           c + row * c_stride + 16 * v, c_stride);
      v += width;
    }
    row += height;
  }
}

}  // namespace

PairProduct pair_product();
PairProduct pair_product() { return multiply; }

}  // namespace blasformer::BLASFORMER_ISA

#endif
