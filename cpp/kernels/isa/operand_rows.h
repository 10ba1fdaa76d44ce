#pragma once

// Rows of the caller's arrays as dense rows of the type computed in, and back.

#include "core/element.h"
#include "kernels/attention_problem.h"
#include "kernels/isa/half_rows.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

// rows x columns of an operand, from element `start`, as dense rows of T.
template <class T>
void copy_rows(const AttentionOperand& x, Index start, Index rows, Index columns, T* out, Index out_stride) {
  for (Index r = 0; r < rows; ++r) {
    const Index row = start + r * x.row_stride;
    T* target = out + r * out_stride;
    if (x.column_stride == 1 && x.dtype == dtype_of<T>()) {
      const T* source = static_cast<const T*>(x.data) + row;
      for (Index c = 0; c < columns; ++c) target[c] = source[c];
      continue;
    }
    if constexpr (sizeof(T) == sizeof(float)) {
      const auto* half = static_cast<const std::uint16_t*>(x.data) + row;
      if (x.column_stride == 1 && x.dtype == DType::float16) {
        widen_float16(half, columns, target);
        continue;
      }
      if (x.column_stride == 1 && x.dtype == DType::bfloat16) {
        widen_bfloat16(half, columns, target);
        continue;
      }
    }
    for (Index c = 0; c < columns; ++c)
      target[c] = read_element<T>(x.data, x.dtype, row + c * x.column_stride);
  }
}

// A dense row, from element `start` of an operand on.
template <class T>
void write_row(const T* row, Index columns, const MutableAttentionOperand& out, Index start) {
  if constexpr (sizeof(T) == sizeof(float)) {
    auto* half = static_cast<std::uint16_t*>(out.data) + start;
    if (out.column_stride == 1 && out.dtype == DType::float16) return narrow_float16(row, columns, half);
    if (out.column_stride == 1 && out.dtype == DType::bfloat16) return narrow_bfloat16(row, columns, half);
  }
  for (Index c = 0; c < columns; ++c)
    write_element<T>(out.data, out.dtype, start + c * out.column_stride, row[c]);
}

// Rows of halves, as they are, into dense rows.
inline void copy_halves(const AttentionOperand& x, Index start, Index rows, Index columns,
                        std::uint16_t* out) {
  const auto* source = static_cast<const std::uint16_t*>(x.data) + start;
  for (Index r = 0; r < rows; ++r) {
    for (Index c = 0; c < columns; ++c) out[r * columns + c] = source[r * x.row_stride + c * x.column_stride];
  }
}

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
