#pragma once

// The projections of query, key and value, for models whose checkpoints hold them apart. Here they are rows
// of one matrix, so that one product computes them.

#include <array>
#include <memory>
#include <string>
#include <utility>

#include "core/tensor.h"
#include "layers/low_rank.h"
#include "layers/parameters.h"

namespace blasformer {

// A tensor of that shape on the memory of another, beginning with one of its rows.
template <class T>
Tensor<T> shared_rows(const Tensor<T>& tensor, Index first_row, Shape shape) {
  if (tensor.empty()) return {};
  T* const first = tensor.memory().get() + first_row * (tensor.size() / tensor.extent(0));
  return Tensor<T>(std::shared_ptr<T[]>(tensor.memory(), first), std::move(shape));
}

// The parameters of the projections of query, key and value as "prefix + name.weight", and so on. What holds
// them needs an each_storage.
template <class Attention, class Visit>
void each_projection_parameter(const std::string& prefix, const std::array<const char*, 3>& names,
                               Attention& attention, Visit&& visit) {
  using T = typename Attention::Scalar;
  const Index width = attention.embed_dim(), kv_rows = attention.num_kv_heads * attention.head_dim;
  const std::array<Index, 3> first = {0, width, width + kv_rows}, rows = {width, kv_rows, kv_rows};
  for (std::size_t i = 0; i < 3; ++i) {
    const std::string name = prefix + names[i];
    Tensor<T> weight = shared_rows(attention.in_proj_weight, first[i], {rows[i], width});
    visit(name + ".weight", weight);
    if (!attention.in_proj_bias.empty()) {
      Tensor<T> bias = shared_rows(attention.in_proj_bias, first[i], {rows[i]});
      visit(name + ".bias", bias);
    }
    if (attention.adapters[i]) each_parameter_of(name, *attention.adapters[i], visit);
  }
}

}  // namespace blasformer
