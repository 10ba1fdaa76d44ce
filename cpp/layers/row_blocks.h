#pragma once

#include <algorithm>
#include <memory>

#include "core/index.h"
#include "core/thread_pool.h"
#include "kernels/elements.h"

namespace blasformer {

// Rows are processed in blocks of about this many elements: enough to make handing out a task cheap, few
// enough to stay in the caches. Where rows are gathered, blocks of many rows use up the cache lines they
// touch.
constexpr Index kRowBlockElements = 8192, kGatheredBlockElements = 32768;

// How rows of `length` elements each are cut into blocks: by their shape alone.
struct RowBlocks {
  Index rows, block_rows;

  RowBlocks(Index rows_, Index length, Index elements)
      : rows(rows_),
        block_rows(std::clamp<Index>(elements / std::max<Index>(length, 1), 1, std::max<Index>(rows, 1))) {}
  Index count() const { return ceil_div(rows, block_rows); }
  Index first(Index block) const { return block * block_rows; }
  Index rows_of(Index block) const { return std::min(block_rows, rows - first(block)); }
};

// The blocks in which rows of two arrays are made into those of a third.
template <class T>
RowBlocks row_blocks(const Elements<T>& x, const Elements<T>& d_y, Index rows, Index length,
                     const MutableElements<T>& d_x) {
  const bool dense = x.in_place() && d_y.in_place() && d_x.is_dense();
  return RowBlocks(rows, length, dense ? kRowBlockElements : kGatheredBlockElements);
}

// Calls body(x, first_row, rows, y), in parallel, for dense blocks of whole rows of `length` elements each; y
// may be x. nanoseconds: the estimated time per element on one core.
template <class T, class Body>
void for_each_row_block(const Elements<T>& x, Index rows, Index length, const MutableElements<T>& y,
                        double nanoseconds, Body body) {
  if (rows == 0 || length == 0) return;
  const RowBlocks blocks(rows, length,
                         x.in_place() && y.is_dense() ? kRowBlockElements : kGatheredBlockElements);
  const double work = nanoseconds * static_cast<double>(rows) * static_cast<double>(length);
  parallel_for(blocks.count(), work, [&](Index block, int) {
    const Index first = blocks.first(block), count = blocks.rows_of(block);
    std::unique_ptr<T[]> buffer;
    if (!y.is_dense()) buffer.reset(new T[static_cast<std::size_t>(count * length)]);
    T* target = y.place(first * length, buffer.get());
    body(x.read(first * length, count * length, target), first, count, target);
    y.write(first * length, count * length, target);
  });
}

// The same for gradients, which are made of two arrays: body(x, d_y, block, d_x). d_x may be d_y.
template <class T, class Body>
void for_each_row_block(const RowBlocks& blocks, const Elements<T>& x, const Elements<T>& d_y, Index length,
                        const MutableElements<T>& d_x, double nanoseconds, Body body) {
  if (blocks.rows == 0 || length == 0) return;
  const double work = nanoseconds * static_cast<double>(blocks.rows) * static_cast<double>(length);
  parallel_for(blocks.count(), work, [&](Index block, int) {
    const Index first = blocks.first(block) * length, size = blocks.rows_of(block) * length;
    const auto buffer = [size](bool needed) {
      return std::unique_ptr<T[]>(needed ? new T[static_cast<std::size_t>(size)] : nullptr);
    };
    const std::unique_ptr<T[]> of_x = buffer(!x.in_place()), of_d_x = buffer(!d_x.is_dense());
    T* target = d_x.place(first, of_d_x.get());
    const T* source = x.read(first, size, of_x.get());
    body(source, d_y.read(first, size, target), block, target);
    d_x.write(first, size, target);
  });
}

}  // namespace blasformer
