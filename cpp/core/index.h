#pragma once

#include <cstddef>

namespace blasformer {

// Sizes, strides and positions are signed and 64 bits wide; strides count elements, not bytes.
using Index = std::ptrdiff_t;

constexpr Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }
constexpr Index round_up(Index a, Index b) { return ceil_div(a, b) * b; }

}  // namespace blasformer
