#pragma once

#include <cstdint>
#include <optional>

#include "core/tensor.h"
#include "layers/activations.h"
#include "layers/initialiser.h"
#include "layers/linear.h"
#include "layers/parameters.h"

namespace blasformer {

// y = linear2(dropout(activation(linear1(x)))) for x (..., d_model), each row by itself (Vaswani et al. 2017,
// section 3.3).
template <class T>
struct FeedForward {
  using Scalar = T;
  Linear<T> linear1;  // (dim_feedforward, d_model)
  Linear<T> linear2;  // (d_model, dim_feedforward)
  Activation activation;
  double dropout_p;

  struct Saved {
    typename Linear<T>::Saved linear1;
    Tensor<T> preactivation;  // (..., dim_feedforward); the activations are computed from it again
    std::optional<std::uint64_t> seed;

    template <class Visit>
    void each_tensor(Visit&& visit) const {
      linear1.each_tensor(visit);
      visit(preactivation);
    }
  };

  FeedForward(Index d_model, Index dim_feedforward, Activation activation, double dropout_p = 0,
              bool with_bias = true);

  void initialise(Initialiser& random);
  // Without a seed nothing is dropped.
  Tensor<T> forward(const Tensor<T>& x, std::optional<std::uint64_t> seed = std::nullopt,
                    Saved* saved = nullptr, Tensor<T>* out = nullptr) const;
  Tensor<T> backward(const Saved& saved, const Tensor<T>& d_y, FeedForward& gradients, Write write) const;

  template <class Self, class Visit>
  static void each_parameter(Self& self, Visit&& visit) {
    each_parameter_of("linear1", self.linear1, visit);
    each_parameter_of("linear2", self.linear2, visit);
  }
  template <class Self, class Visit>
  static void each_linear(Self& self, Visit&& visit) {
    each_linear_of("linear1", self.linear1, visit);
    each_linear_of("linear2", self.linear2, visit);
  }
};

}  // namespace blasformer
