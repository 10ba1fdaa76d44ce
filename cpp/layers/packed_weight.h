#pragma once

#include <memory>
#include <mutex>

#include "core/index.h"
#include "layers/matrix_product.h"

namespace blasformer {

// Whether weights stay as they are for a while, and packing them is worth the memory, or change after each
// pass.
enum class Pass { inference, training };

// The packed copy of a weight of a layer: made by the first product of an inference pass that reads it. It is
// kept only where somebody has promised, by keep(), to forget() it whenever the weight changes. A copy of a
// layer begins without.
template <class T>
class PackedWeight {
 public:
  PackedWeight() = default;
  PackedWeight(const PackedWeight&) {}
  PackedWeight& operator=(const PackedWeight&) { return *this; }

  // For a product of so many rows, with out_features columns. Null where none is kept. weight: all of it,
  // (all_rows, in_features), dense.
  std::shared_ptr<const PackedRight<T>> of(const T* weight, Index in_features, Index all_rows, Index rows,
                                           Index out_features, Pass pass) const;
  void keep() const;
  void forget() const;
  Index nbytes() const;

 private:
  mutable std::mutex mutex_;
  mutable std::shared_ptr<const PackedRight<T>> packed_;
  mutable bool kept_ = false;
};

}  // namespace blasformer
