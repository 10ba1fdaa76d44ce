#pragma once

#include <cstdint>

#include "core/index.h"

namespace blasformer {

// What an array stores. Half types are storage only: they are widened to float32 at the edge of a tile.
enum class DType : std::uint8_t { float32, float64, float16, bfloat16, boolean, int64 };

constexpr Index item_size(DType dtype) {
  switch (dtype) {
    case DType::float64:
    case DType::int64: return 8;
    case DType::float32: return 4;
    case DType::float16:
    case DType::bfloat16: return 2;
    case DType::boolean: return 1;
  }
  return 0;
}

template <class T>
constexpr DType dtype_of();
template <>
constexpr DType dtype_of<float>() {
  return DType::float32;
}
template <>
constexpr DType dtype_of<double>() {
  return DType::float64;
}

constexpr int kMaxRank = 8;

// An array of the caller: borrowed memory, any strides (counted in elements, negative and zero included).
template <class Void>
struct BasicArrayView {
  Void* data = nullptr;
  DType dtype = DType::float32;
  int rank = 0;
  Index shape[kMaxRank] = {};
  Index stride[kMaxRank] = {};
};

using ArrayView = BasicArrayView<const void>;
using MutableArrayView = BasicArrayView<void>;

}  // namespace blasformer
