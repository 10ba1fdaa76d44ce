#include "kernels/row_kernels.h"

#include "core/cpu.h"

namespace blasformer {

namespace baseline {
template <class T>
const RowKernels<T>& row_kernels();
}
namespace avx2 {
template <class T>
const RowKernels<T>& row_kernels();
}
namespace avx512 {
template <class T>
const RowKernels<T>& row_kernels();
}

template <class T>
const RowKernels<T>& row_kernels() {
  switch (active_isa()) {
    case Isa::avx512: return avx512::row_kernels<T>();
    case Isa::avx2: return avx2::row_kernels<T>();
    case Isa::baseline: break;
  }
  return baseline::row_kernels<T>();
}

template const RowKernels<float>& row_kernels();
template const RowKernels<double>& row_kernels();

}  // namespace blasformer
