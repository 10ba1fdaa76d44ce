#pragma once

#include <algorithm>
#include <limits>

#include "core/index.h"
#include "core/thread_pool.h"

namespace blasformer {

// Into how many tasks a product that takes `work` nanoseconds on one core is cut, if its shape allows: two
// for every thread, so that they end at about the same time. Only for cuts that no sum depends on.
inline Index enough_product_tasks(double work) {
  const int threads = planned_threads(std::numeric_limits<Index>::max(), work);
  return std::max<Index>(8, 2 * threads);
}

// The columns of a product in parts of whole units, panels or vectors, as even as can be: with a small last
// part one of two threads would have less to do. (1040 features, 66 vectors: 1.10 times as fast as with seven
// parts of nine and one of two; Zen 4, two threads.)
class ColumnCut {
 public:
  struct Part {
    Index begin, end;
    Index size() const { return end - begin; }
  };

  ColumnCut(Index columns, Index unit, Index most_parts)
      : columns_(columns),
        unit_(unit),
        units_(std::max<Index>(ceil_div(columns, unit), 1)),
        parts_(std::min(most_parts, units_)) {}

  Index parts() const { return parts_; }
  Index largest() const { return ceil_div(units_, parts_) * unit_; }
  Part part(Index number) const {
    const auto units_before = [&](Index part) { return units_ * part / parts_; };
    return {units_before(number) * unit_, std::min(columns_, units_before(number + 1) * unit_)};
  }

 private:
  Index columns_, unit_, units_, parts_;
};

}  // namespace blasformer
