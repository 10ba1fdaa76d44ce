#pragma once

// IEEE 754 binary16 and bfloat16, to float32 (exact) and back (round to nearest, ties to even). NaN stays a
// quiet NaN with the leading bits of its payload, as the conversion instructions of CPUs do it. The functions
// are static, because files that are compiled for different instruction sets include them.

#include <cstdint>

namespace blasformer {

static inline float float16_to_float32(std::uint16_t half) {
  const std::uint32_t sign = (half & 0x8000u) << 16;
  const std::uint32_t magnitude = half & 0x7fffu;
  constexpr std::uint32_t kExponentShift = (127u - 15u) << 23;
  if (magnitude > 0x7c00u) return __builtin_bit_cast(float, sign | 0x7fc00000u | (magnitude << 13));
  if (magnitude == 0x7c00u) return __builtin_bit_cast(float, sign | 0x7f800000u);
  if (magnitude >= 0x0400u) return __builtin_bit_cast(float, sign | ((magnitude << 13) + kExponentShift));
  const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;
  return __builtin_bit_cast(float, sign | __builtin_bit_cast(std::uint32_t, subnormal));
}

static inline std::uint16_t float32_to_float16(float x) {
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, x);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  constexpr std::uint32_t kExponentShift = (127u - 15u) << 23;
  constexpr std::uint32_t kFirstThatOverflows = 0x477ff000u;  // 65520, halfway from the largest half to 2^16
  constexpr std::uint32_t kLeastNormal = 0x38800000u;         // 2^-14
  std::uint32_t result;
  if (magnitude > 0x7f800000u) {
    result = 0x7e00u | ((magnitude >> 13) & 0x03ffu);
  } else if (magnitude >= kFirstThatOverflows) {
    result = 0x7c00u;
  } else if (magnitude >= kLeastNormal) {
    const std::uint32_t is_odd = (magnitude >> 13) & 1u;
    result = (magnitude - kExponentShift + 0x0fffu + is_odd) >> 13;
  } else {
    // The last bit of 0.5 is worth 2^-24, as that of a subnormal half: the addition rounds to it.
    const float rounded = __builtin_bit_cast(float, magnitude) + 0.5f;
    result = __builtin_bit_cast(std::uint32_t, rounded) - __builtin_bit_cast(std::uint32_t, 0.5f);
  }
  return static_cast<std::uint16_t>(sign | result);
}

static inline float bfloat16_to_float32(std::uint16_t half) {
  const std::uint32_t quiet = (half & 0x7fffu) > 0x7f80u ? 0x00400000u : 0u;
  return __builtin_bit_cast(float, (static_cast<std::uint32_t>(half) << 16) | quiet);
}

static inline std::uint16_t float32_to_bfloat16(float x) {
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x0040u);
  const std::uint32_t is_odd = (bits >> 16) & 1u;
  return static_cast<std::uint16_t>((bits + 0x7fffu + is_odd) >> 16);
}

}  // namespace blasformer
