#include "layers/dropout.h"

#include <algorithm>

#include "core/philox.h"
#include "core/require.h"
#include "core/thread_pool.h"

namespace blasformer {

template <class T>
void dropout(const T* x, Index size, double p, std::uint64_t seed, T* y) {
  constexpr Index kBlocksPerTask = 4096;
  constexpr double kNanosecondsPerBlock = 12;
  const PhiloxKey key{{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)}};
  const auto threshold = static_cast<std::uint64_t>(p * 0x1p32);
  const T scale = p < 1 ? static_cast<T>(1 / (1 - p)) : T{0};
  const Index blocks = ceil_div(size, 4);
  parallel_for(
      ceil_div(blocks, kBlocksPerTask), kNanosecondsPerBlock * static_cast<double>(blocks),
      [&](Index task, int) {
        const Index end = std::min(blocks, (task + 1) * kBlocksPerTask);
        for (Index block = task * kBlocksPerTask; block < end; ++block) {
          const auto counter = static_cast<std::uint64_t>(block);
          const PhiloxBlock random = philox(
              {{static_cast<std::uint32_t>(counter), static_cast<std::uint32_t>(counter >> 32), 0, 0}}, key);
          const Index first = 4 * block, count = std::min<Index>(4, size - first);
          for (Index i = 0; i < count; ++i)
            y[first + i] = random.word[i] >= threshold ? x[first + i] * scale : T{0};
        }
      });
}

void require_probability(const char* name, double p) {
  require(p >= 0 && p <= 1, name, " must lie between 0 and 1, got ", p);
}

template void dropout(const float*, Index, double, std::uint64_t, float*);
template void dropout(const double*, Index, double, std::uint64_t, double*);

}  // namespace blasformer
