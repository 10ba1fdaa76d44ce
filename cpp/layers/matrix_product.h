#pragma once

// c = left right, the product that layers consist of, on all cores.

#include "core/index.h"
#include "kernels/product_kernels.h"
#include "layers/write.h"

namespace blasformer {

// c (rows, columns), whose rows are c_stride apart, = left (rows, depth) right (depth, columns) + bias, or
// +=; bias (columns,) or null. c is apart from the others.
template <class T>
void matrix_product(Index rows, Index columns, Index depth, MatrixView<T> left, MatrixView<T> right,
                    const T* bias, Write write, T* c, Index c_stride);

}  // namespace blasformer
