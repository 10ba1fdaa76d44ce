#pragma once

#include "kernels/product_kernels.h"
#include "layers/write.h"

namespace blasformer {

// matrix_product of float32 by SplitProductKernels, at current_precision(). False, and nothing is done, where
// the ProductKernels are the better way.
bool split_matrix_product(Index rows, Index columns, Index depth, MatrixView<float> left,
                          MatrixView<float> right, const float* bias, Write write, float* c, Index c_stride);

}  // namespace blasformer
