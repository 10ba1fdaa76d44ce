#pragma once

#include <cstdint>

#include "core/index.h"

namespace blasformer {

// y[i] = x[i] / (1 - p), or 0 with probability p, plus residual[i] unless that is null: element i stays if
// word i % 4 of philox(counter = i / 4, key = seed) reaches p * 2^32. The gradient of x is the same function
// of the output's gradient. y may be x or residual.
template <class T>
void dropout(const T* x, Index size, double p, std::uint64_t seed, T* y, const T* residual = nullptr);

// Throws std::invalid_argument unless 0 <= p <= 1.
void require_probability(const char* name, double p);

}  // namespace blasformer
