#pragma once

// LoRA, low-rank adaptation (Hu et al. 2021, section 4.1): a linear layer whose weight stays as it is learns
//
//   y = x weight^T + bias + scale * (dropout(x) a^T) b^T,
//
// where a (rank, in_features) and b (out_features, rank) are small.

#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>

#include "core/tensor.h"
#include "layers/initialiser.h"
#include "layers/packed_weight.h"
#include "layers/parameters.h"
#include "layers/write.h"

namespace blasformer {

template <class T>
struct LowRank {
  using Scalar = T;
  Tensor<T> a;  // (rank, in_features)
  Tensor<T> b;  // (out_features, rank)
  double scale, dropout_p;
  bool merged = false;  // whether the weight has it in it: nothing is added, and nothing learns

  // a is uniform in +-1 / sqrt(in_features), as a linear layer's weight, and b zero: at first nothing
  // changes.
  LowRank(Index in_features, Index out_features, Index rank, double scale, double dropout_p,
          Initialiser& random);

  Index rank() const { return a.extent(0); }
  Index in_features() const { return a.extent(1); }
  Index out_features() const { return b.extent(0); }

  // y += what the adapter adds for x (rows, in_features), dense; rows of y are y_stride apart. Without a seed
  // nothing is dropped.
  void add(const T* x, Index rows, std::optional<std::uint64_t> seed, T* y, Index y_stride) const;
  // d_x (rows, in_features), dense, += the gradient of x.
  void add_input_gradient(const T* d_y, Index d_y_stride, Index rows, std::optional<std::uint64_t> seed,
                          T* d_x) const;
  void parameter_gradients(const T* x, Index rows, std::optional<std::uint64_t> seed, const T* d_y,
                           Index d_y_stride, LowRank& gradients, Write write) const;
  // weight (out_features, in_features), dense, += scale * b a, or -=.
  void merge(T* weight);
  void unmerge(T* weight);

  template <class Self, class Visit>
  static void each_parameter(Self& self, Visit&& visit) {
    visit("lora_A.weight", self.a);
    visit("lora_B.weight", self.b);
  }

 private:
  void add_to_weight(double factor, T* weight) const;
  bool drops(std::optional<std::uint64_t> seed) const { return seed && dropout_p > 0; }
  Tensor<T> dropped(const T* x, Index rows, std::uint64_t seed) const;
  Tensor<T> low_gradient(const T* d_y, Index d_y_stride, Index rows) const;  // of x a^T
};

// The rows of a weight that an adapter adapts.
template <class T>
struct AdaptedWeight {
  Tensor<T> weight;
  Index first_row, rows;
  const PackedWeight<T>* packed;  // of all of the weight
};

// The linear layers of a part of a layer: visit("prefix.name", AdaptedWeight, std::optional<LowRank>&).
template <class Layer, class Visit>
void each_linear_of(const std::string& prefix, Layer& part, Visit&& visit) {
  using T = typename Layer::Scalar;
  using Adapter = PartOf<Layer, std::optional<LowRank<T>>>;
  const auto named = [&](const std::string& name, const AdaptedWeight<T>& weight, Adapter& adapter) {
    visit(name.empty() ? prefix : prefix + "." + name, weight, adapter);
  };
  std::remove_const_t<Layer>::each_linear(part, Visitor<const AdaptedWeight<T>, Adapter>(named));
}

// The seed of adapter number `index` of a layer whose pass has that seed.
inline std::optional<std::uint64_t> adapter_seed(std::optional<std::uint64_t> seed, std::uint64_t index) {
  return seed ? std::optional(*seed + ((index + 1) << 48)) : std::nullopt;
}

}  // namespace blasformer
