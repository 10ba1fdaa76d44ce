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

// Calls body(x, first_row, rows, y), in parallel, for dense blocks of whole rows of `length` elements each; y
// may be x. nanoseconds: the estimated time per element on one core.
template <class T, class Body>
void for_each_row_block(const Elements<T>& x, Index rows, Index length, const MutableElements<T>& y,
                        double nanoseconds, Body body) {
  if (rows == 0 || length == 0) return;
  const Index block = x.in_place() && y.is_dense() ? kRowBlockElements : kGatheredBlockElements;
  const Index block_rows = std::clamp<Index>(block / length, 1, rows);
  const double work = nanoseconds * static_cast<double>(rows) * static_cast<double>(length);
  parallel_for(ceil_div(rows, block_rows), work, [&](Index task, int) {
    const Index first = task * block_rows, count = std::min(block_rows, rows - first);
    std::unique_ptr<T[]> buffer;
    if (!y.is_dense()) buffer.reset(new T[static_cast<std::size_t>(count * length)]);
    T* target = y.place(first * length, buffer.get());
    body(x.read(first * length, count * length, target), first, count, target);
    y.write(first * length, count * length, target);
  });
}

}  // namespace blasformer
