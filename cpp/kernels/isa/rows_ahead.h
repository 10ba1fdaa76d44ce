#pragma once

// Rows of memory that will be read or written soon, asked for a few lines at a time between the tiles of
// products. Asked for all at once they would wait for each other, and so would everything behind them: the
// core remembers some dozens of lines on their way. Spread over the tiles they cost nothing.

#include <cstdint>
#include <type_traits>

#include "core/array_view.h"
#include "core/index.h"
#include "kernels/attention_problem.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

// What asks is inlined: GCC 12 takes functions that do nothing but ask for functions without effects.
class RowsToAsk {
 public:
  // `count` rows of an operand from element `start` on; nothing if their elements have gaps, or if they are
  // more parts of memory than most problems have.
  template <class Void>
  void add(const BasicAttentionOperand<Void>& x, Index start, Index count, Index columns) {
    const Index item = item_size(x.dtype), bytes = columns * item;
    if (x.column_stride != 1) return;
    add(reinterpret_cast<std::uintptr_t>(x.data) + static_cast<std::uintptr_t>(start * item), count, bytes,
        x.row_stride * item, !std::is_const_v<Void>);
  }
  // Rows that are to be written.
  template <class T>
  void add_written(const T* rows, Index count, Index columns, Index stride) {
    constexpr Index item = sizeof(T);
    add(reinterpret_cast<std::uintptr_t>(rows), count, columns * item, stride * item, true);
  }

  // So that so many tiles ask for all that was added.
  void spread(Index tiles) {
    Index lines = 0;
    for (int i = 0; i < parts_; ++i) lines += part_[i].rows * ceil_div(part_[i].bytes, kLine);
    lines_of_tile_ = ceil_div(lines, tiles > 1 ? tiles : 1);
  }

  [[gnu::always_inline]] void ask(Index tiles = 1) {
    for (Index left = lines_of_tile_ * tiles; left > 0 && next_ < parts_;) {
      Part& part = part_[next_];
      const Index in_row = ceil_div(part.bytes - byte_, kLine), count = left < in_row ? left : in_row;
      const std::uintptr_t line = part.first + static_cast<std::uintptr_t>(byte_);
      if (part.written) {
        for (Index i = 0; i < count; ++i) __builtin_prefetch(place(line, i), 1, 2);
      } else {
        for (Index i = 0; i < count; ++i) __builtin_prefetch(place(line, i), 0, 2);
      }
      left -= count;
      byte_ += count * kLine;
      if (byte_ < part.bytes) continue;
      byte_ = 0;
      part.first += static_cast<std::uintptr_t>(part.stride);
      if (--part.rows == 0) ++next_;
    }
  }

 private:
  static constexpr Index kLine = 64;
  static constexpr int kMostParts = 12;
  struct Part {
    std::uintptr_t first;
    Index rows, bytes, stride;
    bool written;
  };

  static const void* place(std::uintptr_t first, Index line) {
    return reinterpret_cast<const void*>(first + static_cast<std::uintptr_t>(line * kLine));
  }

  void add(std::uintptr_t first, Index rows, Index bytes, Index stride, bool written) {
    if (rows <= 0 || bytes <= 0 || parts_ == kMostParts) return;
    const bool gapless = stride == bytes;
    part_[parts_++] = {first, gapless ? 1 : rows, gapless ? rows * bytes : bytes, stride, written};
  }

  Part part_[kMostParts];
  int parts_ = 0, next_ = 0;
  Index byte_ = 0;
  Index lines_of_tile_ = 0;
};

// What the next tile of queries needs, and what is needed later.
struct RowsAhead {
  RowsToAsk soon, later;

  [[gnu::always_inline]] void ask(Index tiles = 1) {
    soon.ask(tiles);
    later.ask(tiles);
  }
};

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
