#pragma once

// Rows of half types to float32 and back.

#include <immintrin.h>

#include <cstdint>

#include "core/half.h"
#include "core/index.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

#if defined(BLASFORMER_ISA_baseline)
constexpr Index kLanes = 1;
inline void widen_lanes(const std::uint16_t* x, float* y) { *y = float16_to_float32(*x); }
inline void narrow_lanes(const float* x, std::uint16_t* y) { *y = float32_to_float16(*x); }
#else
constexpr Index kLanes = 8;
inline void widen_lanes(const std::uint16_t* x, float* y) {
  _mm256_storeu_ps(y, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))));
}
inline void narrow_lanes(const float* x, std::uint16_t* y) {
  const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(y), halves);
}
#endif

inline void widen_float16(const std::uint16_t* x, Index size, float* y) {
  Index i = 0;
  for (; i + kLanes <= size; i += kLanes) widen_lanes(x + i, y + i);
  for (; i < size; ++i) y[i] = float16_to_float32(x[i]);
}

inline void narrow_float16(const float* x, Index size, std::uint16_t* y) {
  Index i = 0;
  for (; i + kLanes <= size; i += kLanes) narrow_lanes(x + i, y + i);
  for (; i < size; ++i) y[i] = float32_to_float16(x[i]);
}

inline void widen_bfloat16(const std::uint16_t* x, Index size, float* y) {
  for (Index i = 0; i < size; ++i) y[i] = bfloat16_to_float32(x[i]);
}

inline void narrow_bfloat16(const float* x, Index size, std::uint16_t* y) {
  for (Index i = 0; i < size; ++i) y[i] = float32_to_bfloat16(x[i]);
}

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
