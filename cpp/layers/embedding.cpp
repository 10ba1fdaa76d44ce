#include "layers/embedding.h"

#include <algorithm>
#include <cstring>

#include "core/require.h"
#include "core/thread_pool.h"

namespace blasformer {

namespace {

constexpr Index kIdsPerTask = 32;

void require_ids_in_range(const std::int64_t* ids, Index count, Index num_embeddings) {
  const std::int64_t* wrong =
      std::find_if(ids, ids + count, [=](std::int64_t id) { return id < 0 || id >= num_embeddings; });
  if (wrong != ids + count) {
    fail<std::out_of_range>("ids must be in [0, ", num_embeddings, ") to select rows of weight, got ", *wrong, " at position ",
                            wrong - ids);
  }
}

// Elements are copied bit by bit, whatever they mean.
template <class Stored>
void copy_rows(const std::int64_t* ids, Index count, const ArrayView& weight, Stored* y) {
  const Index dim = weight.shape[1], stride = weight.stride[1];
  for (Index i = 0; i < count; ++i, y += dim) {
    const Stored* row = static_cast<const Stored*>(weight.data) + ids[i] * weight.stride[0];
    if (stride == 1) {
      std::memcpy(y, row, static_cast<std::size_t>(dim) * sizeof(Stored));
    } else {
      for (Index j = 0; j < dim; ++j) y[j] = row[j * stride];
    }
  }
}

}  // namespace

void embedding(const std::int64_t* ids, Index count, const ArrayView& weight, void* y) {
  require_ids_in_range(ids, count, weight.shape[0]);
  const Index dim = weight.shape[1];
  const double nanoseconds = 10 + 0.3 * static_cast<double>(dim);
  parallel_for(ceil_div(count, kIdsPerTask), nanoseconds * static_cast<double>(count), [&](Index task, int) {
    const Index first = task * kIdsPerTask, n = std::min(kIdsPerTask, count - first);
    const auto copy = [&](auto* all) { copy_rows(ids + first, n, weight, all + first * dim); };
    switch (item_size(weight.dtype)) {
      case 8: return copy(static_cast<std::uint64_t*>(y));
      case 4: return copy(static_cast<std::uint32_t*>(y));
      default: return copy(static_cast<std::uint16_t*>(y));
    }
  });
}

}  // namespace blasformer
