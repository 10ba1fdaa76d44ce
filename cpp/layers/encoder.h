#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "layers/encoder_layer.h"
#include "layers/initialiser.h"
#include "layers/parameters.h"

namespace blasformer {

// Encoder layers in turn, and a last norm if there is one (pre-norm layers leave the residual stream
// without).
template <class Layer>
struct TransformerEncoder {
  using Scalar = typename Layer::Scalar;
  using T = Scalar;
  using Norm = typename Layer::LastNorm;
  std::vector<Layer> layers;
  std::optional<Norm> norm;

  struct Saved {
    std::vector<typename Layer::Saved> layers;
    typename Norm::Saved norm;

    template <class Visit>
    void each_tensor(Visit&& visit) const {
      for (const auto& layer : layers) layer.each_tensor(visit);
      norm.each_tensor(visit);
    }
  };

  // num_layers copies of `layer`, and a copy of `norm`.
  TransformerEncoder(const Layer& layer, Index num_layers, const std::optional<Norm>& norm);

  void initialise(Initialiser& random);
  // asked: the attention weights to return, by the index of their layer.
  Tensor<T> forward(const Tensor<T>& x, const AttentionArguments& arguments = {}, Saved* saved = nullptr,
                    std::map<Index, AskedWeights<T>>* asked = nullptr, Tensor<T>* out = nullptr) const;
  Tensor<T> backward(const Saved& saved, const Tensor<T>& d_y, TransformerEncoder& gradients,
                     Write write) const;

  template <class Self, class Visit>
  static void each_parameter(Self& self, Visit&& visit) {
    for (std::size_t i = 0; i < self.layers.size(); ++i) {
      each_parameter_of("layers." + std::to_string(i), self.layers[i], visit);
    }
    if (self.norm) each_parameter_of("norm", *self.norm, visit);
  }
  template <class Self, class Visit>
  static void each_linear(Self& self, Visit&& visit) {
    for (std::size_t i = 0; i < self.layers.size(); ++i)
      each_linear_of("layers." + std::to_string(i), self.layers[i], visit);
  }
};

}  // namespace blasformer
