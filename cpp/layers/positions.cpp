#include "layers/positions.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "core/thread_pool.h"
#include "kernels/row_kernels.h"

namespace blasformer {

namespace {

std::vector<double> frequencies(Index d_model, SinusoidLayout layout) {
  const Index half = d_model / 2;
  const double last = layout == SinusoidLayout::interleaved
                          ? static_cast<double>(half)
                          : static_cast<double>(std::max<Index>(half - 1, 1));
  std::vector<double> result(static_cast<std::size_t>(half));
  for (Index i = 0; i < half; ++i) {
    result[static_cast<std::size_t>(i)] = std::pow(10000.0, -static_cast<double>(i) / last);
  }
  return result;
}

// Row r encodes position_of(r).
template <class T, class PositionOf>
void encode(Index rows, Index d_model, SinusoidLayout layout, PositionOf position_of,
            const MutableElements<T>& y) {
  const Index half = d_model / 2;
  const std::vector<double> frequency = frequencies(d_model, layout);
  const auto cosine_sine = row_kernels<T>().cosine_sine;
  constexpr Index kPositionsPerTask = 32;
  const double work = 3 * static_cast<double>(rows) * static_cast<double>(d_model);
  parallel_for(ceil_div(rows, kPositionsPerTask), work, [&](Index task, int) {
    std::vector<T> cosine(static_cast<std::size_t>(half)), sine(static_cast<std::size_t>(half));
    std::vector<T> buffer(static_cast<std::size_t>(d_model));
    const Index end = std::min(rows, (task + 1) * kPositionsPerTask);
    for (Index r = task * kPositionsPerTask; r < end; ++r) {
      cosine_sine(static_cast<double>(position_of(r)), frequency.data(), half, cosine.data(), sine.data());
      T* row = y.place(r * d_model, buffer.data());
      if (layout == SinusoidLayout::concatenated) {
        std::copy(sine.begin(), sine.end(), row);
        std::copy(cosine.begin(), cosine.end(), row + half);
      } else {
        for (Index i = 0; i < half; ++i) {
          row[2 * i] = sine[static_cast<std::size_t>(i)];
          row[2 * i + 1] = cosine[static_cast<std::size_t>(i)];
        }
      }
      y.write(r * d_model, d_model, row);
    }
  });
}

}  // namespace

Tensor<std::int64_t> consecutive_positions(Index length, std::int64_t first) {
  Tensor<std::int64_t> positions({length});
  std::iota(positions.data(), positions.data() + length, first);
  return positions;
}

template <class T>
void sinusoidal_positions(Index length, Index d_model, SinusoidLayout layout, std::int64_t first,
                          const MutableElements<T>& y) {
  encode(length, d_model, layout, [first](Index r) { return first + r; }, y);
}

template <class T>
void sinusoidal_positions(const std::int64_t* positions, Index count, Index d_model, SinusoidLayout layout,
                          T* y) {
  encode(count, d_model, layout, [positions](Index r) { return positions[r]; }, MutableElements<T>(y));
}

template void sinusoidal_positions(Index, Index, SinusoidLayout, std::int64_t, const MutableElements<float>&);
template void sinusoidal_positions(Index, Index, SinusoidLayout, std::int64_t,
                                   const MutableElements<double>&);
template void sinusoidal_positions(const std::int64_t*, Index, Index, SinusoidLayout, float*);
template void sinusoidal_positions(const std::int64_t*, Index, Index, SinusoidLayout, double*);

}  // namespace blasformer
