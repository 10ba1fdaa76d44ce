#include <cmath>
#include <cstdint>
#include <limits>

#include "check.h"
#include "core/half.h"

namespace blasformer {

namespace {

constexpr std::uint32_t kHalves = 0x10000;

// What the bits of a float16 (10 bits of fraction, 5 of exponent) or bfloat16 (7 and 8) mean, by the
// definition.
double value(std::uint32_t half, int fraction_bits, int bias) {
  const double sign = half & 0x8000u ? -1.0 : 1.0;
  const int exponent = static_cast<int>((half & 0x7fffu) >> fraction_bits);
  const int fraction = static_cast<int>(half & ((1u << fraction_bits) - 1u));
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias - fraction_bits);
  if (exponent == 2 * bias + 1)
    return fraction == 0 ? sign * std::numeric_limits<double>::infinity() : std::nan("");
  return sign * std::ldexp((1 << fraction_bits) + fraction, exponent - bias - fraction_bits);
}

bool same(double a, double b) {
  return std::isnan(a) ? std::isnan(b) : a == b && std::signbit(a) == std::signbit(b);
}

// Between each finite half and the next: the middle goes to the even one, either side of it to the nearer
// one.
template <class Widen, class Narrow>
bool rounds_to_nearest_even(Widen widen, Narrow narrow, std::uint16_t infinity) {
  for (std::uint16_t lower = 0; lower < infinity; ++lower) {
    const auto upper = static_cast<std::uint16_t>(lower + 1);
    const double low = widen(lower);
    // What follows the largest half, if the exponent had no end.
    const double high =
        upper == infinity ? 2 * low - widen(static_cast<std::uint16_t>(lower - 1)) : widen(upper);
    const auto middle = static_cast<float>((low + high) / 2);
    const std::uint16_t even = lower % 2 == 0 ? lower : upper;
    for (float sign : {1.0f, -1.0f}) {
      const auto sign_bit = static_cast<std::uint16_t>(sign < 0 ? 0x8000 : 0);
      if (narrow(sign * middle) != (even | sign_bit)) return false;
      if (narrow(sign * std::nextafter(middle, 0.0f)) != (lower | sign_bit)) return false;
      if (narrow(sign * std::nextafter(middle, std::numeric_limits<float>::infinity())) != (upper | sign_bit))
        return false;
    }
  }
  return true;
}

}  // namespace

TEST(every_float16_widens_to_its_value_and_comes_back) {
  for (std::uint32_t bits = 0; bits < kHalves; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float wide = float16_to_float32(half);
    CHECK(same(wide, value(bits, 10, 15)));
    CHECK(float32_to_float16(wide) == (std::isnan(wide) ? half | 0x0200 : half));
  }
}

TEST(every_bfloat16_widens_to_its_value_and_comes_back) {
  for (std::uint32_t bits = 0; bits < kHalves; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float wide = bfloat16_to_float32(half);
    CHECK(same(wide, value(bits, 7, 127)));
    CHECK(float32_to_bfloat16(wide) == (std::isnan(wide) ? half | 0x0040 : half));
  }
}

TEST(narrowing_to_float16_rounds_to_nearest_even) {
  CHECK(rounds_to_nearest_even(float16_to_float32, float32_to_float16, 0x7c00));
}

TEST(narrowing_to_bfloat16_rounds_to_nearest_even) {
  CHECK(rounds_to_nearest_even(bfloat16_to_float32, float32_to_bfloat16, 0x7f80));
}

TEST(a_nan_whose_payload_is_cut_off_stays_a_nan) {
  const float nan = __builtin_bit_cast(float, 0x7f800001u);
  CHECK(std::isnan(float16_to_float32(float32_to_float16(nan))));
  CHECK(std::isnan(bfloat16_to_float32(float32_to_bfloat16(nan))));
}

}  // namespace blasformer
