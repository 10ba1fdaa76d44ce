#pragma once

#include <algorithm>

#include "core/blas.h"

namespace blasformer::blas {

// Cuts c = op(a) op(b) + beta c into products whose sizes and leading dimensions are at most limit, the
// largest number the BLAS can be told, and hands each to multiply(m, n, k, a, lda, b, ldb, beta, c, ldc). A
// matrix whose rows are further apart than that is taken row by row. The parts of k are added up in rising
// order.
template <class T, class Multiply>
void for_each_chunk(Index limit, Transpose transpose_a, Transpose transpose_b, Index m, Index n, Index k,
                    const T* a, Index lda, const T* b, Index ldb, T beta, T* c, Index ldc,
                    Multiply multiply) {
  const bool a_transposed = transpose_a == Transpose::yes;
  const bool b_transposed = transpose_b == Transpose::yes;
  const bool far_a = lda > limit, far_b = ldb > limit, far_c = ldc > limit;
  const Index m_chunk = far_c || (far_a && !a_transposed) ? 1 : limit;
  const Index n_chunk = far_b && b_transposed ? 1 : limit;
  const Index k_chunk = (far_a && a_transposed) || (far_b && !b_transposed) ? 1 : limit;
  for (Index i = 0; i < m; i += m_chunk) {
    for (Index j = 0; j < n; j += n_chunk) {
      for (Index l = 0; l < k; l += k_chunk) {
        multiply(std::min(m_chunk, m - i), std::min(n_chunk, n - j), std::min(k_chunk, k - l),
                 a + (a_transposed ? l * lda + i : i * lda + l), std::min(lda, limit),
                 b + (b_transposed ? j * ldb + l : l * ldb + j), std::min(ldb, limit), l == 0 ? beta : T(1),
                 c + i * ldc + j, std::min(ldc, limit));
      }
    }
  }
}

}  // namespace blasformer::blas
