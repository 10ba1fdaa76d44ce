#pragma once

#include "kernels/attention_problem.h"

namespace blasformer {

// Estimated duration on one core in nanoseconds, for parallel_for to decide whether waking a worker pays:
// some 100 multiply-adds per nanosecond with AVX-512, and the placing and packing of tiles that small
// problems consist of.
inline double attention_work(Index heads, Index query_length, Index key_length, Index dims) {
  const double scores =
      static_cast<double>(heads) * static_cast<double>(query_length) * static_cast<double>(key_length);
  const double tiles = static_cast<double>(heads * ceil_div(query_length, 32));
  return scores * static_cast<double>(dims + 20) * 0.01 + tiles * 300;
}

inline double attention_work(const AttentionProblem& p) {
  return attention_work(p.batch * p.query_heads, p.query_length, p.key_length, p.dim + p.value_dim);
}

}  // namespace blasformer
