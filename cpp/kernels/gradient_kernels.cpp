#include "kernels/gradient_kernels.h"

#include "core/cpu.h"

namespace blasformer {

namespace baseline {
template <class T>
const GradientKernels<T>& gradient_kernels();
}
namespace avx2 {
template <class T>
const GradientKernels<T>& gradient_kernels();
}
namespace avx512 {
template <class T>
const GradientKernels<T>& gradient_kernels();
}

template <class T>
const GradientKernels<T>& gradient_kernels() {
  switch (active_isa()) {
    case Isa::avx512: return avx512::gradient_kernels<T>();
    case Isa::avx2: return avx2::gradient_kernels<T>();
    case Isa::baseline: break;
  }
  return baseline::gradient_kernels<T>();
}

template const GradientKernels<float>& gradient_kernels();
template const GradientKernels<double>& gradient_kernels();

}  // namespace blasformer
