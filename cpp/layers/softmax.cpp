#include "layers/softmax.h"

#include "core/denormals.h"
#include "kernels/row_kernels.h"
#include "layers/row_blocks.h"

namespace blasformer {

namespace {

template <class T>
void normalise(typename RowKernels<T>::Normalise kernel, const Elements<T>& x, Index rows, Index length,
               const MutableElements<T>& y) {
  const double nanoseconds = sizeof(T) == 4 ? 0.8 : 1.6;
  for_each_row_block(x, rows, length, y, nanoseconds, [=](const T* source, Index, Index count, T* target) {
    const FlushDenormals guard;
    kernel(source, count, length, target);
  });
}

}  // namespace

template <class T>
void softmax(const Elements<T>& x, Index rows, Index length, const MutableElements<T>& y) {
  normalise(row_kernels<T>().softmax, x, rows, length, y);
}

template <class T>
void log_softmax(const Elements<T>& x, Index rows, Index length, const MutableElements<T>& y) {
  normalise(row_kernels<T>().log_softmax, x, rows, length, y);
}

template void softmax(const Elements<float>&, Index, Index, const MutableElements<float>&);
template void softmax(const Elements<double>&, Index, Index, const MutableElements<double>&);
template void log_softmax(const Elements<float>&, Index, Index, const MutableElements<float>&);
template void log_softmax(const Elements<double>&, Index, Index, const MutableElements<double>&);

}  // namespace blasformer
