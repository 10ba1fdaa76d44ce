#pragma once

// The gradients of parameters that all rows share: sums over rows, formed in blocks of them, and of the
// blocks' sums in order, so that they have the same bits for every number of threads.

#include <algorithm>

#include "core/tensor.h"
#include "layers/row_blocks.h"
#include "layers/write.h"

namespace blasformer {

// No more blocks than this, however many rows there are: their sums take memory and time too.
constexpr Index kMostSumBlocks = 64;

// Blocks for rows of that many elements of which sums are formed.
inline RowBlocks summed_blocks(Index rows, Index length, Index least_elements) {
  return RowBlocks(rows, length, std::max(least_elements, ceil_div(rows, kMostSumBlocks) * length));
}

// The sums of one parameter, `size` elements in each block; none if the gradient is not wanted.
template <class T>
class ParameterSums {
 public:
  ParameterSums(T* gradient, const RowBlocks& blocks, Index size)
      : gradient_(gradient), blocks_(blocks.count()), size_(size) {
    if (gradient_) sums_ = Tensor<T>({blocks_, size_});
  }

  // Zeros, to which a block adds; null if the gradient is not wanted.
  T* of_block(Index block) {
    if (!gradient_) return nullptr;
    T* sums = sums_.data() + block * size_;
    std::fill_n(sums, size_, T{0});
    return sums;
  }

  // When all blocks are done.
  void write_gradient(Write write) const {
    if (!gradient_) return;
    constexpr Index kStrip = 128;
    const double work = 0.3 * static_cast<double>(blocks_) * static_cast<double>(size_);
    parallel_for(ceil_div(size_, kStrip), work, [&](Index strip, int) {
      const Index first = strip * kStrip, count = std::min(kStrip, size_ - first);
      double total[kStrip] = {};
      for (Index block = 0; block < blocks_; ++block) {
        const T* sums = sums_.data() + block * size_ + first;
        for (Index i = 0; i < count; ++i) total[i] += static_cast<double>(sums[i]);
      }
      T* gradient = gradient_ + first;
      for (Index i = 0; i < count; ++i) {
        gradient[i] =
            static_cast<T>(write == Write::add ? static_cast<double>(gradient[i]) + total[i] : total[i]);
      }
    });
  }

 private:
  T* gradient_;
  Index blocks_, size_;
  Tensor<T> sums_;  // (blocks, size)
};

}  // namespace blasformer
