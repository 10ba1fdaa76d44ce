#include "kernels/elements.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/half_kernels.h"

namespace blasformer {

namespace {

constexpr Index kConvertBlock = 512;  // halves on the stack, on their way to or from strided memory

// Merges neighbouring axes that one stride can walk, so that runs are long. At least one axis remains.
template <class View>
View merged(const View& view) {
  View result = view;
  result.rank = 1;
  result.shape[0] = 1;
  result.stride[0] = 1;
  for (int axis = 0; axis < view.rank; ++axis) {
    if (view.shape[axis] == 1) continue;
    int last = result.rank - 1;
    const bool first_axis = last == 0 && result.shape[0] == 1;
    const bool merges = result.stride[last] == view.shape[axis] * view.stride[axis];
    if (!first_axis && !merges) last = result.rank++;
    result.shape[last] = view.shape[axis] * (merges && !first_axis ? result.shape[last] : 1);
    result.stride[last] = view.stride[axis];
  }
  return result;
}

template <class View>
bool is_dense(const View& merged_view) {
  return merged_view.rank == 1 && (merged_view.stride[0] == 1 || merged_view.shape[0] <= 1);
}

// Calls run(offset, stride, position, n) for the pieces of one stride that make up elements [first, first +
// count): element position + i is at offset + i * stride.
template <class View, class Run>
void for_each_run(const View& view, Index first, Index count, Run run) {
  Index index[kMaxRank];
  Index offset = 0;
  for (int axis = view.rank - 1; axis >= 0; --axis) {
    index[axis] = first % view.shape[axis];
    first /= view.shape[axis];
    offset += index[axis] * view.stride[axis];
  }
  const int inner = view.rank - 1;
  for (Index position = 0; position < count;) {
    const Index n = std::min(view.shape[inner] - index[inner], count - position);
    run(offset, view.stride[inner], position, n);
    position += n;
    offset += n * view.stride[inner];
    index[inner] += n;
    for (int axis = inner; axis > 0 && index[axis] == view.shape[axis]; --axis) {
      offset += view.stride[axis - 1] - index[axis] * view.stride[axis];
      index[axis] = 0;
      ++index[axis - 1];
    }
  }
}

template <class Stored>
void gather(const ArrayView& view, Index first, Index count, Stored* target) {
  const Stored* source = static_cast<const Stored*>(view.data);
  for_each_run(view, first, count, [=](Index offset, Index stride, Index position, Index n) {
    if (stride == 1) {
      std::memcpy(target + position, source + offset, static_cast<std::size_t>(n) * sizeof(Stored));
    } else {
      for (Index i = 0; i < n; ++i) target[position + i] = source[offset + i * stride];
    }
  });
}

template <class Stored>
void scatter(const Stored* source, Index first, Index count, const MutableArrayView& view) {
  Stored* target = static_cast<Stored*>(view.data);
  for_each_run(view, first, count, [=](Index offset, Index stride, Index position, Index n) {
    if (stride == 1) {
      std::memcpy(target + offset, source + position, static_cast<std::size_t>(n) * sizeof(Stored));
    } else {
      for (Index i = 0; i < n; ++i) target[offset + i * stride] = source[position + i];
    }
  });
}

using Half = std::uint16_t;

// Calls step(first, count) for pieces of at most kConvertBlock elements.
template <class Step>
void in_pieces(Index count, Step step) {
  for (Index first = 0; first < count; first += kConvertBlock)
    step(first, std::min(kConvertBlock, count - first));
}

void read_halves(const ArrayView& view, Index first, Index count, float* target) {
  const HalfKernels& kernels = half_kernels();
  const auto widen = view.dtype == DType::float16 ? kernels.widen_float16 : kernels.widen_bfloat16;
  if (is_dense(view)) return widen(static_cast<const Half*>(view.data) + first, count, target);
  in_pieces(count, [&](Index begin, Index n) {
    Half halves[kConvertBlock];
    gather(view, first + begin, n, halves);
    widen(halves, n, target + begin);
  });
}

void write_halves(const float* source, Index first, Index count, const MutableArrayView& view) {
  const HalfKernels& kernels = half_kernels();
  const auto narrow = view.dtype == DType::float16 ? kernels.narrow_float16 : kernels.narrow_bfloat16;
  if (is_dense(view)) return narrow(source, count, static_cast<Half*>(view.data) + first);
  in_pieces(count, [&](Index begin, Index n) {
    Half halves[kConvertBlock];
    narrow(source + begin, n, halves);
    scatter(halves, first + begin, n, view);
  });
}

// A view that is_dense, whatever the number of elements.
template <class View, class Pointer>
View dense_view(Pointer data, DType dtype) {
  View view;
  view.data = data;
  view.dtype = dtype;
  view.rank = 1;
  view.stride[0] = 1;
  return view;
}

}  // namespace

template <class T>
Elements<T>::Elements(const T* dense) : view_(dense_view<ArrayView>(dense, dtype_of<T>())), dense_(true) {}

template <class T>
Elements<T>::Elements(const ArrayView& view)
    : view_(merged(view)), dense_(is_dense(view_) && view.dtype == dtype_of<T>()) {}

template <class T>
const T* Elements<T>::read(Index first, Index count, T* buffer) const {
  if (dense_) return static_cast<const T*>(view_.data) + first;
  if constexpr (dtype_of<T>() == DType::float32) {
    if (view_.dtype != DType::float32) {
      read_halves(view_, first, count, buffer);
      return buffer;
    }
  }
  gather(view_, first, count, buffer);
  return buffer;
}

template <class T>
MutableElements<T>::MutableElements(T* dense)
    : view_(dense_view<MutableArrayView>(dense, dtype_of<T>())), dense_(true) {}

template <class T>
MutableElements<T>::MutableElements(const MutableArrayView& view)
    : view_(merged(view)), dense_(blasformer::is_dense(view_) && view.dtype == dtype_of<T>()) {}

template <class T>
T* MutableElements<T>::place(Index first, T* buffer) const {
  return dense_ ? static_cast<T*>(view_.data) + first : buffer;
}

template <class T>
void MutableElements<T>::write(Index first, Index count, const T* block) const {
  if (dense_) return;
  if constexpr (dtype_of<T>() == DType::float32) {
    if (view_.dtype != DType::float32) return write_halves(block, first, count, view_);
  }
  scatter(block, first, count, view_);
}

template class Elements<float>;
template class Elements<double>;
template class MutableElements<float>;
template class MutableElements<double>;

}  // namespace blasformer
