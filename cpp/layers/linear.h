#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "core/index.h"
#include "core/tensor.h"
#include "layers/initialiser.h"
#include "layers/low_rank.h"
#include "layers/packed_weight.h"
#include "layers/write.h"

namespace blasformer {

// A matrix of weights, (out_features, in_features): dense rows or, if transposed, dense columns.
template <class T>
struct WeightView {
  const T* data;
  Index stride;  // from one row, or column, to the next
  bool transposed = false;
};

// y = x weight^T + bias: x (rows, in_features) and y (rows, out_features), dense; bias (out_features,) or
// null. y is apart from the others.
template <class T>
void linear(const T* x, Index rows, Index in_features, WeightView<T> weight, const T* bias,
            Index out_features, T* y);

// The same for a dense weight.
template <class T>
void linear(const T* x, Index rows, Index in_features, const T* weight, const T* bias, Index out_features,
            T* y) {
  linear(x, rows, in_features, WeightView<T>{weight, in_features}, bias, out_features, y);
}

// The same for a dense weight in bfloat16: the bits are those of a layer whose weight was widened before.
void linear(const float* x, Index rows, Index in_features, const std::uint16_t* weight, const float* bias,
            Index out_features, float* y);

// Rows [first_row, ..) of the weight of a layer, (all_rows, in_features), dense.
template <class T>
struct LayerWeight {
  const T* data;  // null where `packed` holds it in bfloat16
  Index all_rows, first_row;
  const PackedWeight<T>& packed;
  Pass pass;
};

template <class T>
void linear(const T* x, Index rows, Index in_features, const LayerWeight<T>& weight, const T* bias,
            Index out_features, T* y);

// d_x = d_y weight, written or added to: d_y (rows, out_features) with rows d_y_stride apart; weight
// (out_features, in_features) and d_x (rows, in_features), dense.
template <class T>
void linear_input_gradient(const T* d_y, Index d_y_stride, Index rows, Index out_features, const T* weight,
                           Index in_features, T* d_x, Write write);

// d_weight = d_y^T x and d_bias = sum over the rows of d_y, written or added to: x (rows, in_features) and
// d_y (rows, out_features) with rows d_y_stride apart; either gradient may be null.
template <class T>
void linear_weight_gradient(const T* x, const T* d_y, Index d_y_stride, Index rows, Index in_features,
                            Index out_features, T* d_weight, T* d_bias, Write write);

// y = x weight^T + bias for x (..., in_features).
template <class T>
struct Linear {
  using Scalar = T;
  Tensor<T> weight;  // (out_features, in_features)
  Tensor<T> bias;    // (out_features,), or empty
  std::optional<LowRank<T>> adapter;
  PackedWeight<T> packed;

  struct Saved {
    Tensor<T> input;
    std::optional<std::uint64_t> seed;

    template <class Visit>
    void each_tensor(Visit&& visit) const {
      visit(input);
    }
  };

  Linear(Index in_features, Index out_features, bool with_bias = true);  // parameters are not initialised

  Index in_features() const { return weight.extent(1); }
  Index out_features() const { return weight.extent(0); }

  // Uniform in +-1 / sqrt(in_features), as PyTorch does.
  void initialise(Initialiser& random);
  // seed: of the dropout of an adapter. out: see memory_for. What is not saved is not always inference: some
  // keep x elsewhere.
  Tensor<T> forward(const Tensor<T>& x, Saved* saved = nullptr,
                    std::optional<std::uint64_t> seed = std::nullopt, Tensor<T>* out = nullptr) const {
    return forward(x, saved, seed, saved ? Pass::training : Pass::inference, out);
  }
  Tensor<T> forward(const Tensor<T>& x, Saved* saved, std::optional<std::uint64_t> seed, Pass pass,
                    Tensor<T>* out = nullptr) const;
  // The gradient of x. Gradients of parameters go where `gradients` has memory for them.
  Tensor<T> backward(const Saved& saved, const Tensor<T>& d_y, Linear& gradients, Write write) const;
  // Its two parts, for input x (..., in_features).
  void input_gradient(const Tensor<T>& d_y, std::optional<std::uint64_t> seed, Tensor<T>& d_x) const;
  void parameter_gradients(const Tensor<T>& x, std::optional<std::uint64_t> seed, const Tensor<T>& d_y,
                           Linear& gradients, Write write) const;

  template <class Self, class Visit>
  static void each_parameter(Self& self, Visit&& visit) {
    visit("weight", self.weight);
    if (!self.bias.empty()) visit("bias", self.bias);
    if (self.adapter) LowRank<T>::each_parameter(*self.adapter, visit);
  }
  template <class Self, class Visit>
  static void each_linear(Self& self, Visit&& visit) {
    visit(std::string(), AdaptedWeight<T>{self.weight, 0, self.out_features(), &self.packed}, self.adapter);
  }
};

}  // namespace blasformer
