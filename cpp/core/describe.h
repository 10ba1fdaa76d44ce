#pragma once

// How errors speak of arrays.

#include <sstream>
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

inline ShapeText shape_text(const Index* shape, int rank) { return {shape, rank}; }

template <class Void>
ShapeText shape_text(const BasicArrayView<Void>& view) {
  return {view.shape, view.rank};
}

// "float32 (2, 3)"
template <class Void>
std::string describe(const BasicArrayView<Void>& view) {
  std::ostringstream text;
  text << dtype_text(view.dtype) << ' ' << shape_text(view);
  return text.str();
}

}  // namespace blasformer
