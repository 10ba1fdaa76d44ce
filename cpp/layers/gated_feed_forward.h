#pragma once

#include <cstdint>
#include <optional>

#include "core/tensor.h"
#include "layers/activations.h"
#include "layers/initialiser.h"
#include "layers/linear.h"
#include "layers/parameters.h"
#include "layers/write.h"

namespace blasformer {

// y = down_proj(dropout(activation(gate_proj(x)) * up_proj(x))) for x (..., d_model), each row by itself
// (Shazeer 2020): SwiGLU with silu, GEGLU with gelu, ReGLU with relu. Named as in Llama.
template <class T>
struct GatedFeedForward {
  using Scalar = T;
  Linear<T> gate_proj, up_proj;  // (dim_feedforward, d_model)
  Linear<T> down_proj;           // (d_model, dim_feedforward)
  Activation activation;
  double dropout_p;

  struct Saved {
    Tensor<T> input;
    Tensor<T> gate, up;  // (..., dim_feedforward); what down_proj took is computed again
    std::optional<std::uint64_t> seed;

    template <class Visit>
    void each_tensor(Visit&& visit) const {
      visit(input);
      visit(gate);
      visit(up);
    }
  };

  GatedFeedForward(Index d_model, Index dim_feedforward, Activation activation, double dropout_p = 0,
                   bool with_bias = true);

  void initialise(Initialiser& random);
  // Without a seed nothing is dropped.
  Tensor<T> forward(const Tensor<T>& x, std::optional<std::uint64_t> seed = std::nullopt,
                    Saved* saved = nullptr, Tensor<T>* out = nullptr) const;
  Tensor<T> backward(const Saved& saved, const Tensor<T>& d_y, GatedFeedForward& gradients,
                     Write write) const;

  template <class Self, class Visit>
  static void each_parameter(Self& self, Visit&& visit) {
    each_parameter_of("gate_proj", self.gate_proj, visit);
    each_parameter_of("up_proj", self.up_proj, visit);
    each_parameter_of("down_proj", self.down_proj, visit);
  }
  template <class Self, class Visit>
  static void each_linear(Self& self, Visit&& visit) {
    each_linear_of("gate_proj", self.gate_proj, visit);
    each_linear_of("up_proj", self.up_proj, visit);
    each_linear_of("down_proj", self.down_proj, visit);
  }
};

}  // namespace blasformer
