#pragma once

#include <cstdint>
#include <optional>

#include "core/array_view.h"
#include "core/index.h"
#include "core/tensor.h"
#include "layers/initialiser.h"
#include "layers/write.h"

namespace blasformer {

// Throws std::out_of_range unless each of ids, (count,), is in [0, num_embeddings).
void require_ids_in_range(const std::int64_t* ids, Index count, Index num_embeddings);

// y[i] = weight[ids[i]]: weight (num_embeddings, embedding_dim), of any type and strides; ids (count,); y
// (count, embedding_dim), dense and of weight's type. Throws std::out_of_range, before anything is written,
// if an id is not in [0, num_embeddings).
void embedding(const std::int64_t* ids, Index count, const ArrayView& weight, void* y);

// The same for a dense weight.
template <class T>
void embedding(const std::int64_t* ids, Index count, const T* weight, Index num_embeddings,
               Index embedding_dim, T* y) {
  embedding(ids, count,
            ArrayView{weight, dtype_of<T>(), 2, {num_embeddings, embedding_dim}, {embedding_dim, 1}}, y);
}

// d_weight[ids[i]] += d_y[i] for i in order: the gradient of weight, to which rows of padding_idx, if given,
// contribute nothing. d_y (count, embedding_dim) and d_weight (num_embeddings, embedding_dim) are dense and
// apart. Throws as embedding does.
template <class T>
void embedding_backward(const std::int64_t* ids, Index count, const T* d_y, Index num_embeddings,
                        Index embedding_dim, std::optional<Index> padding_idx, T* d_weight, Write write);

// A vector for each id: ids (...) give (..., embedding_dim).
template <class T>
struct Embedding {
  using Scalar = T;
  Tensor<T> weight;                  // (num_embeddings, embedding_dim)
  std::optional<Index> padding_idx;  // the id whose vector starts as zero and has no gradient

  struct Saved {
    Tensor<std::int64_t> ids;

    template <class Visit>
    void each_tensor(Visit&& visit) const {
      visit(ids);
    }
  };

  Embedding(Index num_embeddings, Index embedding_dim, std::optional<Index> padding_idx = std::nullopt);

  Index num_embeddings() const { return weight.extent(0); }
  Index embedding_dim() const { return weight.extent(1); }

  // Normal with mean 0 and variance 1, as PyTorch does.
  void initialise(Initialiser& random);
  Tensor<T> forward(const Tensor<std::int64_t>& ids, Saved* saved = nullptr, Tensor<T>* out = nullptr) const;
  void backward(const Saved& saved, const Tensor<T>& d_y, Embedding& gradients, Write write) const;

  template <class Self, class Visit>
  static void each_parameter(Self& self, Visit&& visit) {
    visit("weight", self.weight);
  }
};

}  // namespace blasformer
