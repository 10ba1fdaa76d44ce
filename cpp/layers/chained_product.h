#pragma once

// c = between(left first + first_bias) second + second_bias, by blocks of rows, where `first` may be several
// right sides of the same shape. What is between is never in memory, but for a block of rows and a part of
// the columns at a time in the cache of the core that makes and reads it.

#include <functional>
#include <initializer_list>

#include "core/index.h"
#include "kernels/product_kernels.h"
#include "layers/matrix_product.h"

namespace blasformer {

// The right side of one of the products: the first `columns` columns of it.
template <class T>
struct ChainedRight {
  const PackedRight<T>& right;
  Index columns;
  const T* bias;  // (columns,), or null
};

// Takes so many elements of the results of the first products, each result `stride` elements behind the one
// before, and leaves what the second product takes in the place of the first of them.
template <class T>
using Between = std::function<void(T* results, Index stride, Index size)>;

// Whether there are so many rows that this is not slower than one product after the other. The bits are the
// same.
bool chaining_pays(Index rows);

// False, and nothing is done, where that is the only way.
template <class T>
bool chained_product(Index rows, MatrixView<T> left, std::initializer_list<ChainedRight<T>> first,
                     const Between<T>& between, const ChainedRight<T>& second, T* c, Index c_stride);

}  // namespace blasformer
