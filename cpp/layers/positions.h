#pragma once

#include <cstdint>

#include "core/index.h"
#include "core/tensor.h"
#include "kernels/elements.h"

namespace blasformer {

// first, first + 1, ..: (length,).
Tensor<std::int64_t> consecutive_positions(Index length, std::int64_t first = 0);

// interleaved   features 2 i and 2 i + 1 are sin and cos of position * 10000^(-2 i / d_model)
//               (Vaswani et al. 2017)
// concatenated  all sines, then all cosines; frequencies 10000^(-i / (d_model / 2 - 1))
//               (tensor2tensor, fairseq, Whisper)
enum class SinusoidLayout { interleaved, concatenated };

// y (length, d_model): row r encodes position first + r. d_model is even. Computed in double.
template <class T>
void sinusoidal_positions(Index length, Index d_model, SinusoidLayout layout, std::int64_t first,
                          const MutableElements<T>& y);

// The same for positions of any order: y (count, d_model), dense.
template <class T>
void sinusoidal_positions(const std::int64_t* positions, Index count, Index d_model, SinusoidLayout layout,
                          T* y);

// As the first, for a dense array.
template <class T>
void sinusoidal_positions(Index length, Index d_model, SinusoidLayout layout, std::int64_t first, T* y) {
  sinusoidal_positions(length, d_model, layout, first, MutableElements<T>(y));
}

}  // namespace blasformer
