#pragma once

#include "kernels/attention_problem.h"

namespace blasformer {

// Estimated duration on one core in nanoseconds, for parallel_for to decide whether waking a worker pays:
// some 100 multiply-adds per nanosecond with AVX-512, and the placing and packing of tiles that small
// problems consist of.
inline double attention_work(const AttentionProblem& p) {
  const double scores = static_cast<double>(p.batch * p.query_heads) * static_cast<double>(p.query_length) *
                        static_cast<double>(p.key_length);
  const double tiles = static_cast<double>(p.batch * p.query_heads * ceil_div(p.query_length, 32));
  return scores * static_cast<double>(p.dim + p.value_dim + 20) * 0.01 + tiles * 300;
}

}  // namespace blasformer
