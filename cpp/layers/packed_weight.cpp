#include "layers/packed_weight.h"

#include <pthread.h>

#include <mutex>
#include <type_traits>
#include <utility>

namespace blasformer {

namespace {

// For the packed copies of all weights, a few instructions at a time. Nobody else holds it while the process
// is forked: in the child it would be held for ever.
std::mutex& packed_mutex() {
  static std::mutex mutex;
  [[maybe_unused]] static const int registered =
      pthread_atfork([] { mutex.lock(); }, [] { mutex.unlock(); }, [] { mutex.unlock(); });
  return mutex;
}

}  // namespace

template <class T>
auto PackedWeight<T>::of(const T* weight, Index in_features, Index all_rows, Index rows, Index out_features,
                         Pass pass) const -> std::shared_ptr<const PackedRight<T>> {
  {
    const std::lock_guard lock(packed_mutex());
    if (!kept_) return nullptr;
    for (const auto& packed : packed_) {
      if (packed != nullptr && packed->fits(rows, out_features)) return packed;
    }
  }
  if (pass == Pass::training) return nullptr;
  // Without the lock: packing waits for other threads. Two that pack at once make the same.
  std::shared_ptr<const PackedRight<T>> packed;
  if constexpr (std::is_same_v<T, float>) {
    if (!bfloat16_.empty())
      packed = packed_right(rows, all_rows, in_features,
                            MatrixView<std::uint16_t>{bfloat16_.data(), 1, in_features});
  }
  if (bfloat16_.empty())
    packed = packed_right(rows, all_rows, in_features, MatrixView<T>{weight, 1, in_features});
  if (packed == nullptr) return nullptr;
  auto previous = packed;  // given up without the lock
  const std::lock_guard lock(packed_mutex());
  packed_[packed->is_split()].swap(previous);
  return packed;
}

template <class T>
void PackedWeight<T>::keep() const {
  const std::lock_guard lock(packed_mutex());
  kept_ = true;
}

template <class T>
void PackedWeight<T>::forget() const {
  std::shared_ptr<const PackedRight<T>> forgotten[2];  // given up without the lock
  const std::lock_guard lock(packed_mutex());
  std::swap(packed_, forgotten);
}

template <class T>
Index PackedWeight<T>::nbytes() const {
  const std::lock_guard lock(packed_mutex());
  Index bytes = 0;
  for (const auto& packed : packed_) bytes += packed != nullptr ? packed->nbytes() : 0;
  return bytes;
}

template class PackedWeight<float>;
template class PackedWeight<double>;

}  // namespace blasformer
