#pragma once

#include <cstdint>

#include "core/index.h"
#include "kernels/elements.h"

namespace blasformer {

// Which features turn together: (2 i, 2 i + 1), as in GPT-J and the first Llama, or (i, i + dims / 2), as in
// GPT-NeoX.
enum class RotaryPairs { interleaved, halves };

// Rotary positions as part of attention, where queries and keys turn by their positions.
struct RotaryPositions {
  RotaryPairs pairs;
  double base;
  Index dims;  // features of a head that turn
};

// Rotates pair i of the first dims features of x by the angle position * base^(-2 i / dims) (Su et al. 2021);
// the rest is copied. x and y are (batch, heads, length, head_dim); y may be x. positions are (length,), or
// (batch, length) if positions_per_batch. dims is even. Angles, sines and cosines are computed in double.
template <class T>
void rotary_embedding(const Elements<T>& x, Index batch, Index heads, Index length, Index head_dim,
                      const std::int64_t* positions, bool positions_per_batch, double base, RotaryPairs pairs,
                      Index dims, const MutableElements<T>& y);

// The same for dense arrays.
template <class T>
void rotary_embedding(const T* x, Index batch, Index heads, Index length, Index head_dim,
                      const std::int64_t* positions, bool positions_per_batch, double base, RotaryPairs pairs,
                      Index dims, T* y) {
  rotary_embedding(Elements<T>(x), batch, heads, length, head_dim, positions, positions_per_batch, base,
                   pairs, dims, MutableElements<T>(y));
}

// d_x, given d_y: the rotation by the opposite angles. d_x may be d_y.
template <class T>
void rotary_backward(const Elements<T>& d_y, Index batch, Index heads, Index length, Index head_dim,
                     const std::int64_t* positions, bool positions_per_batch, double base, RotaryPairs pairs,
                     Index dims, const MutableElements<T>& d_x);

// The same for dense arrays.
template <class T>
void rotary_backward(const T* d_y, Index batch, Index heads, Index length, Index head_dim,
                     const std::int64_t* positions, bool positions_per_batch, double base, RotaryPairs pairs,
                     Index dims, T* d_x) {
  rotary_backward(Elements<T>(d_y), batch, heads, length, head_dim, positions, positions_per_batch, base,
                  pairs, dims, MutableElements<T>(d_x));
}

}  // namespace blasformer
