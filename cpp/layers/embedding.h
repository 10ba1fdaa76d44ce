#pragma once

#include <cstdint>

#include "core/index.h"

namespace blasformer {

// y[i] = weight[ids[i]]: weight (num_embeddings, embedding_dim), ids (count,), y (count, embedding_dim), dense.
// Throws std::out_of_range, before anything is written, if an id is not in [0, num_embeddings).
template <class T>
void embedding(const std::int64_t* ids, Index count, const T* weight, Index num_embeddings, Index embedding_dim, T* y);

}  // namespace blasformer
