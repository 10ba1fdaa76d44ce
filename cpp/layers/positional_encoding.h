#pragma once

#include <cstdint>
#include <optional>

#include "core/tensor.h"
#include "layers/embedding.h"
#include "layers/initialiser.h"
#include "layers/parameters.h"
#include "layers/positions.h"
#include "layers/write.h"

namespace blasformer {

// What tells the rows of x (batch, length, d_model) or (length, d_model) where they stand:
//
//   y = dropout(scale * x + encoding(positions))
//
// positions (length,) or (batch, length). Two types by what the encoding is: sines and cosines, or rows that
// are learned.

// Vaswani et al. 2017, section 3.5.
template <class T>
struct SinusoidalEncoding {
  using Scalar = T;
  Index d_model;
  SinusoidLayout layout;
  double scale, dropout_p;

  struct Saved {
    std::optional<std::uint64_t> seed;

    template <class Visit>
    void each_tensor(Visit&&) const {}
  };

  // d_model is even.
  SinusoidalEncoding(Index d_model, SinusoidLayout layout, double scale = 1, double dropout_p = 0);

  void initialise(Initialiser&) {}
  Tensor<T> forward(const Tensor<T>& x, const Tensor<std::int64_t>& positions,
                    std::optional<std::uint64_t> seed = std::nullopt, Saved* saved = nullptr,
                    Tensor<T>* out = nullptr) const;
  Tensor<T> backward(const Saved& saved, const Tensor<T>& d_y, SinusoidalEncoding& gradients,
                     Write write) const;

  template <class Self, class Visit>
  static void each_parameter(Self&, Visit&&) {}
};

// Gehring et al. 2017; BERT, GPT-2, ViT.
template <class T>
struct LearnedEncoding {
  using Scalar = T;
  Embedding<T> embedding;  // (max_len, d_model)
  double scale, dropout_p;

  struct Saved {
    Tensor<std::int64_t> positions;
    std::optional<std::uint64_t> seed;

    template <class Visit>
    void each_tensor(Visit&& visit) const {
      visit(positions);
    }
  };

  LearnedEncoding(Index max_len, Index d_model, double scale = 1, double dropout_p = 0);

  // Normal with mean 0 and standard deviation 0.02, as in BERT and GPT-2.
  void initialise(Initialiser& random);
  // Throws std::out_of_range unless positions lie in [0, max_len).
  Tensor<T> forward(const Tensor<T>& x, const Tensor<std::int64_t>& positions,
                    std::optional<std::uint64_t> seed = std::nullopt, Saved* saved = nullptr,
                    Tensor<T>* out = nullptr) const;
  Tensor<T> backward(const Saved& saved, const Tensor<T>& d_y, LearnedEncoding& gradients, Write write) const;

  template <class Self, class Visit>
  static void each_parameter(Self& self, Visit&& visit) {
    Embedding<T>::each_parameter(self.embedding, visit);
  }
};

}  // namespace blasformer
