#include "kernels/math_kernels.h"

#include "core/cpu.h"

namespace blasformer {

namespace baseline {
template <class T>
const MathKernels<T>& math_kernels();
}
namespace avx2 {
template <class T>
const MathKernels<T>& math_kernels();
}
namespace avx512 {
template <class T>
const MathKernels<T>& math_kernels();
}

template <class T>
const MathKernels<T>& math_kernels() {
  switch (active_isa()) {
    case Isa::avx512: return avx512::math_kernels<T>();
    case Isa::avx2: return avx2::math_kernels<T>();
    case Isa::baseline: break;
  }
  return baseline::math_kernels<T>();
}

template const MathKernels<float>& math_kernels();
template const MathKernels<double>& math_kernels();

}  // namespace blasformer
