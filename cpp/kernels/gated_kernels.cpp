#include "kernels/gated_kernels.h"

#include "core/cpu.h"

namespace blasformer {

namespace baseline {
template <class T>
const GatedKernels<T>& gated_kernels();
}
namespace avx2 {
template <class T>
const GatedKernels<T>& gated_kernels();
}
namespace avx512 {
template <class T>
const GatedKernels<T>& gated_kernels();
}

template <class T>
const GatedKernels<T>& gated_kernels() {
  switch (active_isa()) {
    case Isa::avx512: return avx512::gated_kernels<T>();
    case Isa::avx2: return avx2::gated_kernels<T>();
    case Isa::baseline: break;
  }
  return baseline::gated_kernels<T>();
}

template const GatedKernels<float>& gated_kernels();
template const GatedKernels<double>& gated_kernels();

}  // namespace blasformer
