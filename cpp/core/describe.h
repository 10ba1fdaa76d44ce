#pragma once

// How errors speak of arrays.

#include <string>

#include "core/array_view.h"
#include "core/tensor.h"

namespace blasformer {

inline const char* dtype_text(DType dtype) {
  switch (dtype) {
    case DType::float32: return "float32";
    case DType::float64: return "float64";
    case DType::float16: return "float16";
    case DType::bfloat16: return "bfloat16";
    case DType::boolean: return "bool";
    case DType::int64: return "int64";
  }
  return "unknown";
}

inline std::string shape_text(const Index* shape, int rank) { return shape_text(Shape(shape, shape + rank)); }

template <class Void>
std::string shape_text(const BasicArrayView<Void>& view) {
  return shape_text(view.shape, view.rank);
}

// "float32 (2, 3)"
template <class Void>
std::string describe(const BasicArrayView<Void>& view) {
  return dtype_text(view.dtype) + (" " + shape_text(view));
}

}  // namespace blasformer
