#include "layers/rotary.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "core/tensor.h"
#include "kernels/row_kernels.h"
#include "layers/row_blocks.h"

namespace blasformer {

namespace {

// cos and sin of position * base^(-2 i / dims): (positions, dims / 2) each.
template <class T>
struct Rotations {
  Tensor<T> cosine, sine;

  Rotations(const std::int64_t* positions, Index count, double base, Index dims)
      : cosine({count, dims / 2}), sine({count, dims / 2}) {
    const Index pairs = dims / 2;
    std::vector<double> frequency(static_cast<std::size_t>(pairs));
    for (Index i = 0; i < pairs; ++i) {
      frequency[static_cast<std::size_t>(i)] =
          std::pow(base, -2 * static_cast<double>(i) / static_cast<double>(dims));
    }
    const auto kernel = row_kernels<T>().cosine_sine;
    constexpr Index kPositionsPerTask = 64;
    const double work = 4 * static_cast<double>(count) * static_cast<double>(pairs);
    parallel_for(ceil_div(count, kPositionsPerTask), work, [&](Index task, int) {
      const Index end = std::min(count, (task + 1) * kPositionsPerTask);
      for (Index p = task * kPositionsPerTask; p < end; ++p) {
        kernel(static_cast<double>(positions[p]), frequency.data(), pairs, cosine.data() + p * pairs,
               sine.data() + p * pairs);
      }
    });
  }
};

template <class T>
void rotate(const Rotations<T>& rotations, const Elements<T>& x, Index batch, Index heads, Index length,
            Index head_dim, bool positions_per_batch, RotaryPairs pairs, Index dims,
            const MutableElements<T>& y) {
  const RowKernels<T>& kernels = row_kernels<T>();
  const auto rotate_row =
      pairs == RotaryPairs::interleaved ? kernels.rotate_interleaved : kernels.rotate_halves;
  for_each_row_block(
      x, batch * heads * length, head_dim, y, 0.5, [&](const T* source, Index first, Index count, T* target) {
        for (Index row = first; row < first + count; ++row, source += head_dim, target += head_dim) {
          const Index entry = row / (heads * length);
          const Index place = ((positions_per_batch ? entry * length : 0) + row % length) * (dims / 2);
          rotate_row(source, rotations.cosine.data() + place, rotations.sine.data() + place, dims / 2,
                     target);
          if (source != target) std::copy(source + dims, source + head_dim, target + dims);
        }
      });
}

}  // namespace

template <class T>
void rotary_embedding(const Elements<T>& x, Index batch, Index heads, Index length, Index head_dim,
                      const std::int64_t* positions, bool positions_per_batch, double base, RotaryPairs pairs,
                      Index dims, const MutableElements<T>& y) {
  const Rotations<T> rotations(positions, (positions_per_batch ? batch : 1) * length, base, dims);
  rotate(rotations, x, batch, heads, length, head_dim, positions_per_batch, pairs, dims, y);
}

template <class T>
void rotary_backward(const Elements<T>& d_y, Index batch, Index heads, Index length, Index head_dim,
                     const std::int64_t* positions, bool positions_per_batch, double base, RotaryPairs pairs,
                     Index dims, const MutableElements<T>& d_x) {
  Rotations<T> rotations(positions, (positions_per_batch ? batch : 1) * length, base, dims);
  std::transform(rotations.sine.data(), rotations.sine.data() + rotations.sine.size(), rotations.sine.data(),
                 std::negate<T>());
  rotate(rotations, d_y, batch, heads, length, head_dim, positions_per_batch, pairs, dims, d_x);
}

template void rotary_embedding(const Elements<float>&, Index, Index, Index, Index, const std::int64_t*, bool,
                               double, RotaryPairs, Index, const MutableElements<float>&);
template void rotary_embedding(const Elements<double>&, Index, Index, Index, Index, const std::int64_t*, bool,
                               double, RotaryPairs, Index, const MutableElements<double>&);

template void rotary_backward(const Elements<float>&, Index, Index, Index, Index, const std::int64_t*, bool,
                              double, RotaryPairs, Index, const MutableElements<float>&);
template void rotary_backward(const Elements<double>&, Index, Index, Index, Index, const std::int64_t*, bool,
                              double, RotaryPairs, Index, const MutableElements<double>&);

}  // namespace blasformer
