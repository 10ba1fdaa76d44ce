#pragma once

#include <string>

#include "core/index.h"

namespace blasformer::blas {

enum class Transpose : bool { no, yes };

// c = alpha * op(a) op(b) + beta * c, row-major; op(a) is (m, k), op(b) is (k, n). One thread; safe to call
// from several threads at once. Sizes beyond 32 bits are cut into several calls. beta = 0 does not read c.
void gemm(Transpose transpose_a, Transpose transpose_b, Index m, Index n, Index k, float alpha,
          const float* a, Index lda, const float* b, Index ldb, float beta, float* c, Index ldc);
void gemm(Transpose transpose_a, Transpose transpose_b, Index m, Index n, Index k, double alpha,
          const double* a, Index lda, const double* b, Index ldb, double beta, double* c, Index ldc);

std::string config();     // what OpenBLAS says of itself: version, kernels, options
std::string core_name();  // the kernels it chose for this CPU
std::string path();       // the file it was loaded from

}  // namespace blasformer::blas
