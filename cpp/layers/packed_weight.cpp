#include "layers/packed_weight.h"

#include <type_traits>

namespace blasformer {

template <class T>
auto PackedWeight<T>::of(const T* weight, Index in_features, Index all_rows, Index rows, Index out_features,
                         Pass pass) const -> std::shared_ptr<const PackedRight<T>> {
  {
    const std::lock_guard lock(mutex_);
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
  const std::lock_guard lock(mutex_);
  packed_[packed->is_split()] = packed;
  return packed;
}

template <class T>
void PackedWeight<T>::keep() const {
  const std::lock_guard lock(mutex_);
  kept_ = true;
}

template <class T>
void PackedWeight<T>::forget() const {
  const std::lock_guard lock(mutex_);
  for (auto& packed : packed_) packed.reset();
}

template <class T>
Index PackedWeight<T>::nbytes() const {
  const std::lock_guard lock(mutex_);
  Index bytes = 0;
  for (const auto& packed : packed_) bytes += packed != nullptr ? packed->nbytes() : 0;
  return bytes;
}

template class PackedWeight<float>;
template class PackedWeight<double>;

}  // namespace blasformer
