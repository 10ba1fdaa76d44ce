#include "layers/layer_norm.h"

#include "kernels/row_kernels.h"
#include "layers/row_blocks.h"

namespace blasformer {

template <class T>
void layer_norm(const Elements<T>& x, Index rows, Index features, const T* weight, const T* bias, double eps,
                const MutableElements<T>& y, T* mean, T* reciprocal_std) {
  const auto kernel = row_kernels<T>().layer_norm;
  const double nanoseconds = sizeof(T) == 4 ? 0.4 : 0.8;
  for_each_row_block(x, rows, features, y, nanoseconds, [=](const T* source, Index first, Index count, T* target) {
    kernel(source, count, features, weight, bias, eps, target, mean ? mean + first : nullptr,
           reciprocal_std ? reciprocal_std + first : nullptr);
  });
}

template void layer_norm(const Elements<float>&, Index, Index, const float*, const float*, double,
                         const MutableElements<float>&, float*, float*);
template void layer_norm(const Elements<double>&, Index, Index, const double*, const double*, double,
                         const MutableElements<double>&, double*, double*);

}  // namespace blasformer
