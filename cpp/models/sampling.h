#pragma once

// How the next token is chosen from the logits of all.

#include <cstdint>
#include <optional>

#include "core/tensor.h"

namespace blasformer {

struct SamplingOptions {
  double temperature = 1;      // logits are divided by it; 0: the most probable token
  std::optional<Index> top_k;  // only the k most probable (Fan et al. 2018)
  double top_p = 1;            // of these the most probable that have that probability (Holtzman et al. 2020)
};

// ids[row] is the first token, in the order of ids, at which the sum of the probabilities of those that are
// left exceeds uniform[row] in [0, 1). Ties go to lower ids. Throws std::invalid_argument if a row of logits
// (rows, vocabulary) has no finite maximum.
template <class T>
void sample(const T* logits, Index rows, Index vocabulary, const SamplingOptions& options,
            const double* uniform, std::int64_t* ids);

}  // namespace blasformer
