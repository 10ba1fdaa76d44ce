#include "layers/softmax.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "core/denormals.h"
#include "kernels/elements.h"
#include "kernels/gradient_kernels.h"
#include "kernels/row_kernels.h"
#include "layers/row_blocks.h"

namespace blasformer {

namespace {

// The two kernels of one function: for dense rows, and for columns that lie side by side.
template <class T>
struct Kernels {
  typename RowKernels<T>::Normalise rows;
  typename RowKernels<T>::NormaliseColumns columns;
};

template <class T>
constexpr double kNanoseconds = sizeof(T) == 4 ? 0.8 : 1.6;  // per element

template <class T>
void normalise_rows(const Kernels<T>& kernels, const Elements<T>& x, Index rows, Index length,
                    const MutableElements<T>& y) {
  for_each_row_block(x, rows, length, y, kNanoseconds<T>,
                     [&](const T* source, Index, Index count, T* target) {
                       const FlushDenormals guard;
                       kernels.rows(source, count, length, target);
                     });
}

template <class View>
View with_axis_last(View view, int axis) {
  for (int i = axis; i + 1 < view.rank; ++i) {
    std::swap(view.shape[i], view.shape[i + 1]);
    std::swap(view.stride[i], view.stride[i + 1]);
  }
  return view;
}

// Both arrays as sheets of columns that lie side by side in memory; nothing if they are not so arranged.
struct Sheets {
  ArrayView x;         // (..., length, columns), stride 1 along columns
  MutableArrayView y;  // likewise
};

// x and y have the axis that is normalised at the end.
std::optional<Sheets> as_sheets(ArrayView x, MutableArrayView y) {
  if (x.dtype != y.dtype) return std::nullopt;
  int columns = 0;
  while (columns < x.rank - 1 && (x.stride[columns] != 1 || y.stride[columns] != 1)) ++columns;
  if (columns == x.rank - 1) return std::nullopt;
  x = with_axis_last(x, columns);
  y = with_axis_last(y, columns);
  // Axes that continue the columns in both arrays make them longer.
  for (int axis = x.rank - 3; axis >= 0; --axis) {
    Index& extent = x.shape[x.rank - 1];
    if (x.stride[axis] != extent || y.stride[axis] != extent) continue;
    extent *= x.shape[axis];
    y.shape[x.rank - 1] = extent;
    x.shape[axis] = y.shape[axis] = 1;
  }
  return Sheets{x, y};
}

template <class T>
void normalise_sheets(const Kernels<T>& kernels, const ArrayView& x, const MutableArrayView& y) {
  const int leading = x.rank - 2;
  const Index length = x.shape[leading], columns = x.shape[leading + 1];
  Index sheets = 1;
  for (int axis = 0; axis < leading; ++axis) sheets *= x.shape[axis];
  const Index strip = round_up(std::max<Index>(kRowBlockElements / length, 64), 64);
  const Index strips = ceil_div(columns, strip);
  const double work = kNanoseconds<T> * static_cast<double>(sheets * length) * static_cast<double>(columns);
  parallel_for(sheets * strips, work, [&](Index task, int) {
    const FlushDenormals guard;
    Index sheet = task / strips, x_offset = task % strips * strip, y_offset = x_offset;
    const Index count = std::min(strip, columns - x_offset);
    for (int axis = leading - 1; axis >= 0; --axis) {
      x_offset += sheet % x.shape[axis] * x.stride[axis];
      y_offset += sheet % x.shape[axis] * y.stride[axis];
      sheet /= x.shape[axis];
    }
    kernels.columns(static_cast<const T*>(x.data) + x_offset, length, x.stride[leading], count,
                    static_cast<T*>(y.data) + y_offset, y.stride[leading]);
  });
}

template <class T>
void normalise(const Kernels<T>& kernels, const ArrayView& x, int axis, const MutableArrayView& y) {
  Index size = 1;
  for (int i = 0; i < x.rank; ++i) size *= x.shape[i];
  if (size == 0) return;
  const ArrayView source = with_axis_last(x, axis);
  const MutableArrayView target = with_axis_last(y, axis);
  const Index length = x.shape[axis];
  if (x.dtype == dtype_of<T>() && x.stride[axis] != 1) {
    if (const auto sheets = as_sheets(source, target)) return normalise_sheets(kernels, sheets->x, sheets->y);
  }
  normalise_rows(kernels, Elements<T>(source), size / length, length, MutableElements<T>(target));
}

template <class T>
Kernels<T> softmax_kernels() {
  return {row_kernels<T>().softmax, row_kernels<T>().softmax_columns};
}

template <class T>
Kernels<T> log_softmax_kernels() {
  return {row_kernels<T>().log_softmax, row_kernels<T>().log_softmax_columns};
}

// ---- Gradients

template <class T>
struct BackwardKernels {
  typename GradientKernels<T>::Normalise rows;
  typename GradientKernels<T>::NormaliseColumns columns;
};

template <class T>
void rows_backward(const BackwardKernels<T>& kernels, const Elements<T>& y, const Elements<T>& d_y,
                   Index rows, Index length, const MutableElements<T>& d_x) {
  const RowBlocks blocks = row_blocks(y, d_y, rows, length, d_x);
  for_each_row_block(blocks, y, d_y, length, d_x, kNanoseconds<T>,
                     [&](const T* source, const T* gradient, Index block, T* target) {
                       const FlushDenormals guard;
                       kernels.rows(source, gradient, blocks.rows_of(block), length, target);
                     });
}

// Dense sheets of columns, (sheets, length, columns).
template <class T>
void columns_backward(const BackwardKernels<T>& kernels, const T* y, const T* d_y, Index sheets, Index length,
                      Index columns, T* d_x) {
  const Index strip = round_up(std::max<Index>(kRowBlockElements / length, 64), 64);
  const Index strips = ceil_div(columns, strip);
  const double work = kNanoseconds<T> * static_cast<double>(sheets * length) * static_cast<double>(columns);
  parallel_for(sheets * strips, work, [&](Index task, int) {
    const FlushDenormals guard;
    const Index column = task % strips * strip, offset = task / strips * length * columns + column;
    kernels.columns(y + offset, d_y + offset, length, columns, std::min(strip, columns - column),
                    d_x + offset);
  });
}

template <class T>
void normalise_backward(const BackwardKernels<T>& kernels, const ArrayView& y, const ArrayView& d_y, int axis,
                        const MutableArrayView& d_x) {
  Index sheets = 1, columns = 1;
  for (int i = 0; i < axis; ++i) sheets *= y.shape[i];
  for (int i = axis + 1; i < y.rank; ++i) columns *= y.shape[i];
  const Index length = y.shape[axis];
  if (sheets * length * columns == 0) return;
  const MutableElements<T> target(d_x);
  const T* dense_y = Elements<T>(y).in_place();
  const T* dense_d_y = Elements<T>(d_y).in_place();
  if (columns > 1 && dense_y && dense_d_y && target.is_dense()) {
    return columns_backward(kernels, dense_y, dense_d_y, sheets, length, columns, static_cast<T*>(d_x.data));
  }
  rows_backward(kernels, Elements<T>(with_axis_last(y, axis)), Elements<T>(with_axis_last(d_y, axis)),
                sheets * columns, length, MutableElements<T>(with_axis_last(d_x, axis)));
}

template <class T>
BackwardKernels<T> softmax_backward_kernels() {
  return {gradient_kernels<T>().softmax, gradient_kernels<T>().softmax_columns};
}

template <class T>
BackwardKernels<T> log_softmax_backward_kernels() {
  return {gradient_kernels<T>().log_softmax, gradient_kernels<T>().log_softmax_columns};
}

}  // namespace

template <class T>
void softmax(const ArrayView& x, int axis, const MutableArrayView& y) {
  normalise(softmax_kernels<T>(), x, axis, y);
}

template <class T>
void log_softmax(const ArrayView& x, int axis, const MutableArrayView& y) {
  normalise(log_softmax_kernels<T>(), x, axis, y);
}

template <class T>
void softmax(const T* x, Index rows, Index length, T* y) {
  normalise_rows(softmax_kernels<T>(), Elements<T>(x), rows, length, MutableElements<T>(y));
}

template <class T>
void log_softmax(const T* x, Index rows, Index length, T* y) {
  normalise_rows(log_softmax_kernels<T>(), Elements<T>(x), rows, length, MutableElements<T>(y));
}

template <class T>
void softmax_backward(const ArrayView& y, const ArrayView& d_y, int axis, const MutableArrayView& d_x) {
  normalise_backward(softmax_backward_kernels<T>(), y, d_y, axis, d_x);
}

template <class T>
void log_softmax_backward(const ArrayView& y, const ArrayView& d_y, int axis, const MutableArrayView& d_x) {
  normalise_backward(log_softmax_backward_kernels<T>(), y, d_y, axis, d_x);
}

template <class T>
void softmax_backward(const T* y, const T* d_y, Index rows, Index length, T* d_x) {
  rows_backward(softmax_backward_kernels<T>(), Elements<T>(y), Elements<T>(d_y), rows, length,
                MutableElements<T>(d_x));
}

template <class T>
void log_softmax_backward(const T* y, const T* d_y, Index rows, Index length, T* d_x) {
  rows_backward(log_softmax_backward_kernels<T>(), Elements<T>(y), Elements<T>(d_y), rows, length,
                MutableElements<T>(d_x));
}

template void softmax<float>(const ArrayView&, int, const MutableArrayView&);
template void softmax<double>(const ArrayView&, int, const MutableArrayView&);
template void log_softmax<float>(const ArrayView&, int, const MutableArrayView&);
template void log_softmax<double>(const ArrayView&, int, const MutableArrayView&);
template void softmax(const float*, Index, Index, float*);
template void softmax(const double*, Index, Index, double*);
template void log_softmax(const float*, Index, Index, float*);
template void log_softmax(const double*, Index, Index, double*);
template void softmax_backward<float>(const ArrayView&, const ArrayView&, int, const MutableArrayView&);
template void softmax_backward<double>(const ArrayView&, const ArrayView&, int, const MutableArrayView&);
template void log_softmax_backward<float>(const ArrayView&, const ArrayView&, int, const MutableArrayView&);
template void log_softmax_backward<double>(const ArrayView&, const ArrayView&, int, const MutableArrayView&);
template void softmax_backward(const float*, const float*, Index, Index, float*);
template void softmax_backward(const double*, const double*, Index, Index, double*);
template void log_softmax_backward(const float*, const float*, Index, Index, float*);
template void log_softmax_backward(const double*, const double*, Index, Index, double*);

}  // namespace blasformer
