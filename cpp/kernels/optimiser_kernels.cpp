#include "kernels/optimiser_kernels.h"

#include "core/cpu.h"

namespace blasformer {

namespace baseline {
template <class T>
const OptimiserKernels<T>& optimiser_kernels();
}
namespace avx2 {
template <class T>
const OptimiserKernels<T>& optimiser_kernels();
}
namespace avx512 {
template <class T>
const OptimiserKernels<T>& optimiser_kernels();
}

template <class T>
const OptimiserKernels<T>& optimiser_kernels() {
  switch (active_isa()) {
    case Isa::avx512: return avx512::optimiser_kernels<T>();
    case Isa::avx2: return avx2::optimiser_kernels<T>();
    case Isa::baseline: break;
  }
  return baseline::optimiser_kernels<T>();
}

template const OptimiserKernels<float>& optimiser_kernels();
template const OptimiserKernels<double>& optimiser_kernels();

}  // namespace blasformer
