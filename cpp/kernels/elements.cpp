#include "kernels/elements.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>

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

// Rows of one stride that are one stride apart, as a source or target of dense rows.
struct Tile {
  Index offset;  // of the first element
  Index rows, row_stride;
  Index columns, column_stride;
};

// Calls visit(tile, position) for the tiles that make up elements [first, first + count): element (r, c) of a
// tile is number position + r * columns + c of them. Rows are whole ones of the last axis unless a tile has
// but one.
template <class View, class Visit>
void for_each_tile(const View& view, Index first, Index count, Visit visit) {
  Index index[kMaxRank];
  Index offset = 0;
  for (int axis = view.rank - 1; axis >= 0; --axis) {
    index[axis] = first % view.shape[axis];
    first /= view.shape[axis];
    offset += index[axis] * view.stride[axis];
  }
  const int inner = view.rank - 1, outer = view.rank - 2;
  for (Index position = 0; position < count;) {
    Index rows = 1, columns = std::min(view.shape[inner] - index[inner], count - position);
    const bool whole = columns == view.shape[inner];
    if (whole && outer >= 0) rows = std::min(view.shape[outer] - index[outer], (count - position) / columns);
    visit(Tile{offset, rows, outer >= 0 ? view.stride[outer] : 0, columns, view.stride[inner]}, position);
    position += rows * columns;
    const auto advance = [&](int axis, Index steps) {
      index[axis] += steps;
      offset += steps * view.stride[axis];
    };
    if (whole && outer >= 0) {
      advance(outer, rows);
    } else {
      advance(inner, columns);
    }
    for (int axis = inner; axis > 0; --axis) {
      if (index[axis] < view.shape[axis]) continue;
      advance(axis, -index[axis]);
      advance(axis - 1, 1);
    }
  }
}

// Copies a tile element by element: copy(strided, dense) with the offsets of one element in either. If
// columns lie closer together than rows, it goes in square blocks, which keep a cache line until it is used
// up.
template <class Copy>
void copy_elements(const Tile& tile, Copy copy) {
  const bool transposed = tile.rows > 1 && std::abs(tile.row_stride) < std::abs(tile.column_stride);
  const Index block_rows = transposed ? 16 : 1, block_columns = transposed ? 16 : tile.columns;
  for (Index r0 = 0; r0 < tile.rows; r0 += block_rows) {
    const Index r1 = std::min(tile.rows, r0 + block_rows);
    for (Index c0 = 0; c0 < tile.columns; c0 += block_columns) {
      const Index c1 = std::min(tile.columns, c0 + block_columns);
      for (Index r = r0; r < r1; ++r) {
        for (Index c = c0; c < c1; ++c) {
          copy(tile.offset + r * tile.row_stride + c * tile.column_stride, r * tile.columns + c);
        }
      }
    }
  }
}

template <class Stored>
void gather(const ArrayView& view, Index first, Index count, Stored* target) {
  const Stored* source = static_cast<const Stored*>(view.data);
  for_each_tile(view, first, count, [=](const Tile& tile, Index position) {
    Stored* dense = target + position;
    if (tile.column_stride != 1) {
      return copy_elements(tile, [=](Index from, Index to) { dense[to] = source[from]; });
    }
    for (Index r = 0; r < tile.rows; ++r) {
      std::copy_n(source + tile.offset + r * tile.row_stride, tile.columns, dense + r * tile.columns);
    }
  });
}

template <class Stored>
void scatter(const Stored* source, Index first, Index count, const MutableArrayView& view) {
  Stored* target = static_cast<Stored*>(view.data);
  for_each_tile(view, first, count, [=](const Tile& tile, Index position) {
    const Stored* dense = source + position;
    if (tile.column_stride != 1) {
      return copy_elements(tile, [=](Index to, Index from) { target[to] = dense[from]; });
    }
    for (Index r = 0; r < tile.rows; ++r) {
      std::copy_n(dense + r * tile.columns, tile.columns, target + tile.offset + r * tile.row_stride);
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
