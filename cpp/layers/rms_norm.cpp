#include "layers/rms_norm.h"

#include "kernels/row_kernels.h"
#include "layers/row_blocks.h"

namespace blasformer {

template <class T>
void rms_norm(const Elements<T>& x, Index rows, Index features, const T* weight, double eps, const MutableElements<T>& y,
              T* reciprocal_rms) {
  const auto kernel = row_kernels<T>().rms_norm;
  const double nanoseconds = sizeof(T) == 4 ? 0.3 : 0.6;
  for_each_row_block(x, rows, features, y, nanoseconds, [=](const T* source, Index first, Index count, T* target) {
    kernel(source, count, features, weight, eps, target, reciprocal_rms ? reciprocal_rms + first : nullptr);
  });
}

template void rms_norm(const Elements<float>&, Index, Index, const float*, double, const MutableElements<float>&, float*);
template void rms_norm(const Elements<double>&, Index, Index, const double*, double, const MutableElements<double>&,
                       double*);

}  // namespace blasformer
