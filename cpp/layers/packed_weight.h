#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "core/index.h"
#include "core/tensor.h"
#include "layers/matrix_product.h"

namespace blasformer {

// Whether weights stay as they are for a while, and packing them is worth the memory, or change after each
// pass.
enum class Pass { inference, training };

// What a layer has of a weight beside its parameter. The packed copies: one for each kind of product, made by
// the first one of an inference pass that reads it (on bfloat16 tiles many rows read other copies than few).
// They are kept only where somebody has promised, by keep(), to forget() it
// whenever the weight changes; a copy of a layer begins without. And, if it holds the weight in half the
// memory, the weight itself: then the parameter is a tensor without numbers, and what is packed is bfloat16.
template <class T>
class PackedWeight {
 public:
  PackedWeight() = default;
  PackedWeight(const PackedWeight& other) : bfloat16_(other.bfloat16_) {}
  PackedWeight& operator=(const PackedWeight& other) {
    bfloat16_ = other.bfloat16_;
    return *this;
  }

  // For a product of so many rows, with out_features columns. Null where none is kept. weight: all of it,
  // (all_rows, in_features), dense.
  std::shared_ptr<const PackedRight<T>> of(const T* weight, Index in_features, Index all_rows, Index rows,
                                           Index out_features, Pass pass) const;
  void keep() const;
  void forget() const;
  Index nbytes() const;

  // The weight as bfloat16 numbers, (all_rows, in_features), or empty. Held by a layer that nobody computes
  // with yet.
  const Tensor<std::uint16_t>& bfloat16() const { return bfloat16_; }
  void hold(Tensor<std::uint16_t> bfloat16) const { bfloat16_ = std::move(bfloat16); }

 private:
  mutable std::shared_ptr<const PackedRight<T>> packed_[2];  // the second is split
  mutable bool kept_ = false;
  mutable Tensor<std::uint16_t> bfloat16_;
};

}  // namespace blasformer
