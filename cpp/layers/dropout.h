#pragma once

#include <cstdint>
#include <optional>

#include "core/index.h"
#include "core/tensor.h"
#include "layers/initialiser.h"
#include "layers/write.h"

namespace blasformer {

// y[i] = x[i] / (1 - p), or 0 with probability p, plus residual[i] unless that is null: element i stays if
// word i % 4 of philox(counter = i / 4, key = seed) reaches p * 2^32. The gradient of x is the same function
// of the output's gradient. y may be x or residual.
template <class T>
void dropout(const T* x, Index size, double p, std::uint64_t seed, T* y, const T* residual = nullptr);

// Throws std::invalid_argument unless 0 <= p <= 1.
void require_probability(const char* name, double p);

// Dropout as a layer: x itself without a seed (Srivastava et al. 2014).
template <class T>
struct Dropout {
  using Scalar = T;
  double p;

  struct Saved {
    std::optional<std::uint64_t> seed;

    template <class Visit>
    void each_tensor(Visit&&) const {}
  };

  explicit Dropout(double p);

  void initialise(Initialiser&) {}
  Tensor<T> forward(const Tensor<T>& x, std::optional<std::uint64_t> seed = std::nullopt,
                    Saved* saved = nullptr, Tensor<T>* out = nullptr) const;
  Tensor<T> backward(const Saved& saved, const Tensor<T>& d_y, Dropout& gradients, Write write) const;

  template <class Self, class Visit>
  static void each_parameter(Self&, Visit&&) {}
};

}  // namespace blasformer
