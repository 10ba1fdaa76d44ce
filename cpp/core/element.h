#pragma once

// Single elements of the caller's arrays, widened from and narrowed to half types.

#include "core/array_view.h"
#include "core/half.h"

namespace blasformer {

template <class T>
static inline T read_element(const void* data, DType dtype, Index i) {
  if (dtype == dtype_of<T>()) return static_cast<const T*>(data)[i];
  const std::uint16_t half = static_cast<const std::uint16_t*>(data)[i];
  return static_cast<T>(dtype == DType::float16 ? float16_to_float32(half) : bfloat16_to_float32(half));
}

template <class T>
static inline void write_element(void* data, DType dtype, Index i, T value) {
  if (dtype == dtype_of<T>()) {
    static_cast<T*>(data)[i] = value;
  } else {
    const float narrow = static_cast<float>(value);
    static_cast<std::uint16_t*>(data)[i] =
        dtype == DType::float16 ? float32_to_float16(narrow) : float32_to_bfloat16(narrow);
  }
}

}  // namespace blasformer
