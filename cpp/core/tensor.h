#pragma once

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <new>
#include <ostream>
#include <utility>
#include <vector>

#include "core/index.h"
#include "core/memory.h"

namespace blasformer {

using Shape = std::vector<Index>;

inline Index element_count(const Shape& shape) {
  Index count = 1;
  for (Index extent : shape) {
    if (__builtin_mul_overflow(count, extent, &count)) throw std::bad_array_new_length();
  }
  return count;
}

// How errors describe a shape, "(2, 3)". The text is only made when it is written: what `require` is given
// costs nothing while the condition holds. Borrows the shape.
class ShapeText {
 public:
  ShapeText(const Index* shape, Index rank) : shape_(shape), rank_(rank) {}

  friend std::ostream& operator<<(std::ostream& out, const ShapeText& text) {
    out << '(';
    for (Index axis = 0; axis < text.rank_; ++axis) out << (axis > 0 ? ", " : "") << text.shape_[axis];
    return out << (text.rank_ == 1 ? ",)" : ")");
  }

 private:
  const Index* shape_;
  Index rank_;
};

inline ShapeText shape_text(const Shape& shape) { return {shape.data(), static_cast<Index>(shape.size())}; }

// A dense row-major array that shares its memory with its copies, aligned to a cache line.
template <class T>
class Tensor {
 public:
  Tensor() = default;
  // Memory is not initialised.
  explicit Tensor(Shape shape) : shape_(std::move(shape)), size_(element_count(shape_)) {
    std::size_t bytes = 0;
    if (__builtin_mul_overflow(size_, sizeof(T), &bytes)) throw std::bad_array_new_length();
    data_ = std::shared_ptr<T[]>(static_cast<T*>(allocate_memory(bytes)), release_memory);
  }
  // Shares memory that holds at least that many elements.
  Tensor(std::shared_ptr<T[]> memory, Shape shape)
      : data_(std::move(memory)), shape_(std::move(shape)), size_(element_count(shape_)) {}
  static Tensor full(Shape shape, T value) {
    Tensor result(std::move(shape));
    std::fill_n(result.data(), result.size(), value);
    return result;
  }

  Tensor copy() const {
    Tensor result(shape_);
    std::copy_n(data(), size_, result.data());
    return result;
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  const Shape& shape() const { return shape_; }
  Index extent(Index axis) const { return shape_[static_cast<std::size_t>(axis)]; }
  Index rank() const { return static_cast<Index>(shape_.size()); }
  Index size() const { return size_; }
  bool empty() const { return data_ == nullptr; }
  const std::shared_ptr<T[]>& memory() const { return data_; }  // what a NumPy view keeps alive

 private:
  std::shared_ptr<T[]> data_;
  Shape shape_;
  Index size_ = 0;
};

}  // namespace blasformer
