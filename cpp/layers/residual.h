#pragma once

#include <cstdint>
#include <optional>

#include "core/tensor.h"

namespace blasformer {

// branch = x + dropout(branch), in place: how a sublayer's output joins what went around it. Without a seed
// nothing is dropped.
template <class T>
void add_residual(const Tensor<T>& x, double dropout_p, std::optional<std::uint64_t> seed, Tensor<T>& branch);

// The gradient of branch, where that of the sum is d_y.
template <class T>
Tensor<T> residual_gradient(const Tensor<T>& d_y, double dropout_p, std::optional<std::uint64_t> seed);

// sum += x.
template <class T>
void add_to(const Tensor<T>& x, Tensor<T>& sum);

// The seed of place number `index` of a pass at which something is dropped; none if the pass has none.
inline std::optional<std::uint64_t> dropout_seed(std::optional<std::uint64_t> pass, std::uint64_t index) {
  return pass ? std::optional(*pass + index) : std::nullopt;
}

}  // namespace blasformer
