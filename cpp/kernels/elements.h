#pragma once

#include "core/array_view.h"
#include "core/index.h"

namespace blasformer {

// The type that elements are computed in: double for float64, float for float32 and the half types.
template <class T>
constexpr bool is_computed_in(DType dtype) {
  return (dtype == DType::float64) == (dtype_of<T>() == DType::float64);
}

// The elements of an array in row-major order, in blocks of type T: where they lie if the array is dense and
// of that type, otherwise gathered, and half types widened, into a buffer. The array is borrowed.
template <class T>
class Elements {
 public:
  explicit Elements(const T* dense);
  explicit Elements(const ArrayView& view);  // is_computed_in<T>(view.dtype)

  // The first element, if all elements lie where they are needed; otherwise null.
  const T* in_place() const { return dense_ ? static_cast<const T*>(view_.data) : nullptr; }
  // Elements [first, first + count). buffer, for count elements, is used only if needed.
  const T* read(Index first, Index count, T* buffer) const;

 private:
  ArrayView view_;  // neighbouring axes with one common stride are merged
  bool dense_;
};

// The same for writing.
template <class T>
class MutableElements {
 public:
  explicit MutableElements(T* dense);
  explicit MutableElements(const MutableArrayView& view);

  bool is_dense() const { return dense_; }
  // Where elements from `first` on are to be computed: their own place, or buffer if the array is not dense.
  T* place(Index first, T* buffer) const;
  // Brings elements [first, first + count) from there to their own place.
  void write(Index first, Index count, const T* block) const;

 private:
  MutableArrayView view_;
  bool dense_;
};

}  // namespace blasformer
