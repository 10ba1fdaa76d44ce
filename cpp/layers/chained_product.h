#pragma once

// c = between(left first + first_bias) second + second_bias, by blocks of rows: what is between is never in
// memory, but for a block of rows and a part of the columns at a time in the cache of the core that makes and
// reads it.

#include <functional>

#include "core/index.h"
#include "kernels/product_kernels.h"
#include "layers/matrix_product.h"

namespace blasformer {

// The right side of one of the two products: the first `columns` columns of it.
template <class T>
struct ChainedRight {
  const PackedRight<T>& right;
  Index columns;
  const T* bias;  // (columns,), or null
};

// What is done with each element, in place, of those that lie at `elements`.
template <class T>
using Between = std::function<void(T* elements, Index size)>;

// Whether there are so many rows that this is not slower than two products. The bits are the same.
bool chaining_pays(Index rows);

// False, and nothing is done, where only two products can be made.
template <class T>
bool chained_product(Index rows, MatrixView<T> left, const ChainedRight<T>& first, const Between<T>& between,
                     const ChainedRight<T>& second, T* c, Index c_stride);

}  // namespace blasformer
