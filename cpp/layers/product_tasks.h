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

}  // namespace blasformer
