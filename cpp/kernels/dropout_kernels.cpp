#include "kernels/dropout_kernels.h"

#include "core/cpu.h"

namespace blasformer {

namespace baseline {
template <class T>
const DropoutKernels<T>& dropout_kernels();
}
namespace avx2 {
template <class T>
const DropoutKernels<T>& dropout_kernels();
}
namespace avx512 {
template <class T>
const DropoutKernels<T>& dropout_kernels();
}

template <class T>
const DropoutKernels<T>& dropout_kernels() {
  switch (active_isa()) {
    case Isa::avx512: return avx512::dropout_kernels<T>();
    case Isa::avx2: return avx2::dropout_kernels<T>();
    case Isa::baseline: break;
  }
  return baseline::dropout_kernels<T>();
}

template const DropoutKernels<float>& dropout_kernels();
template const DropoutKernels<double>& dropout_kernels();

}  // namespace blasformer
