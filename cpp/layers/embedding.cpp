#include "layers/embedding.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/require.h"
#include "core/thread_pool.h"
#include "layers/destination.h"

namespace blasformer {

namespace {

constexpr Index kIdsPerTask = 32;

// Elements are copied bit by bit, whatever they mean.
template <class Stored>
void copy_rows(const std::int64_t* ids, Index count, const ArrayView& weight, Stored* y) {
  const Index dim = weight.shape[1], stride = weight.stride[1];
  for (Index i = 0; i < count; ++i, y += dim) {
    const Stored* row = static_cast<const Stored*>(weight.data) + ids[i] * weight.stride[0];
    if (stride == 1) {
      std::memcpy(y, row, static_cast<std::size_t>(dim) * sizeof(Stored));
    } else {
      for (Index j = 0; j < dim; ++j) y[j] = row[j * stride];
    }
  }
}

}  // namespace

void require_ids_in_range(const std::int64_t* ids, Index count, Index num_embeddings) {
  const std::int64_t* wrong =
      std::find_if(ids, ids + count, [=](std::int64_t id) { return id < 0 || id >= num_embeddings; });
  if (wrong != ids + count) {
    fail<std::out_of_range>("ids must be in [0, ", num_embeddings, ") to select rows of weight, got ", *wrong,
                            " at position ", wrong - ids);
  }
}

void embedding(const std::int64_t* ids, Index count, const ArrayView& weight, void* y) {
  require_ids_in_range(ids, count, weight.shape[0]);
  const Index dim = weight.shape[1];
  const double nanoseconds = 10 + 0.3 * static_cast<double>(dim);
  parallel_for(ceil_div(count, kIdsPerTask), nanoseconds * static_cast<double>(count), [&](Index task, int) {
    const Index first = task * kIdsPerTask, n = std::min(kIdsPerTask, count - first);
    const auto copy = [&](auto* all) { copy_rows(ids + first, n, weight, all + first * dim); };
    switch (item_size(weight.dtype)) {
      case 8: return copy(static_cast<std::uint64_t*>(y));
      case 4: return copy(static_cast<std::uint32_t*>(y));
      default: return copy(static_cast<std::uint16_t*>(y));
    }
  });
}

template <class T>
void embedding_backward(const std::int64_t* ids, Index count, const T* d_y, Index num_embeddings,
                        Index embedding_dim, std::optional<Index> padding_idx, T* d_weight, Write write) {
  require_ids_in_range(ids, count, num_embeddings);
  if (write == Write::replace) {
    constexpr Index kElementsPerTask = 1 << 16;
    const Index size = num_embeddings * embedding_dim;
    parallel_for(ceil_div(size, kElementsPerTask), 0.2 * static_cast<double>(size), [&](Index task, int) {
      const Index first = task * kElementsPerTask;
      std::fill_n(d_weight + first, std::min(kElementsPerTask, size - first), T{0});
    });
  }
  // Each task has columns of its own, for which it goes through all ids.
  constexpr Index kStrip = 64;
  const double work = static_cast<double>(count) * (2 + 0.4 * static_cast<double>(embedding_dim));
  parallel_for(ceil_div(embedding_dim, kStrip), work, [&](Index strip, int) {
    const Index first = strip * kStrip, columns = std::min(kStrip, embedding_dim - first);
    for (Index i = 0; i < count; ++i) {
      if (ids[i] == padding_idx) continue;
      const T* gradient = d_y + i * embedding_dim + first;
      T* sums = d_weight + ids[i] * embedding_dim + first;
      for (Index j = 0; j < columns; ++j) sums[j] += gradient[j];
    }
  });
}

template void embedding_backward(const std::int64_t*, Index, const float*, Index, Index, std::optional<Index>,
                                 float*, Write);
template void embedding_backward(const std::int64_t*, Index, const double*, Index, Index,
                                 std::optional<Index>, double*, Write);

template <class T>
Embedding<T>::Embedding(Index num_embeddings, Index embedding_dim, std::optional<Index> padding_idx_)
    : padding_idx(padding_idx_) {
  require(num_embeddings > 0, "num_embeddings must be positive, got ", num_embeddings);
  require(embedding_dim > 0, "embedding_dim must be positive, got ", embedding_dim);
  require(!padding_idx || (*padding_idx >= 0 && *padding_idx < num_embeddings),
          "padding_idx must lie in [0, ", num_embeddings, "), got ", padding_idx.value_or(0));
  weight = Tensor<T>({num_embeddings, embedding_dim});
}

template <class T>
void Embedding<T>::initialise(Initialiser& random) {
  random.normal(weight);
  if (padding_idx) std::fill_n(weight.data() + *padding_idx * embedding_dim(), embedding_dim(), T{0});
}

template <class T>
Tensor<T> Embedding<T>::forward(const Tensor<std::int64_t>& ids, Saved* saved, Tensor<T>* out) const {
  Shape shape = ids.shape();
  shape.push_back(embedding_dim());
  Tensor<T> y = memory_for(std::move(shape), out);
  embedding(ids.data(), ids.size(), weight.data(), num_embeddings(), embedding_dim(), y.data());
  if (saved != nullptr) saved->ids = ids;
  return y;
}

template <class T>
void Embedding<T>::backward(const Saved& saved, const Tensor<T>& d_y, Embedding& gradients,
                            Write write) const {
  if (gradients.weight.empty()) return;
  embedding_backward(saved.ids.data(), saved.ids.size(), d_y.data(), num_embeddings(), embedding_dim(),
                     padding_idx, gradients.weight.data(), write);
}

template struct Embedding<float>;
template struct Embedding<double>;

}  // namespace blasformer
