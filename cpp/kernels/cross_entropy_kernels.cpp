#include "kernels/cross_entropy_kernels.h"

#include "core/cpu.h"

namespace blasformer {

namespace baseline {
template <class T>
const CrossEntropyKernels<T>& cross_entropy_kernels();
}
namespace avx2 {
template <class T>
const CrossEntropyKernels<T>& cross_entropy_kernels();
}
namespace avx512 {
template <class T>
const CrossEntropyKernels<T>& cross_entropy_kernels();
}

template <class T>
const CrossEntropyKernels<T>& cross_entropy_kernels() {
  switch (active_isa()) {
    case Isa::avx512: return avx512::cross_entropy_kernels<T>();
    case Isa::avx2: return avx2::cross_entropy_kernels<T>();
    case Isa::baseline: break;
  }
  return baseline::cross_entropy_kernels<T>();
}

template const CrossEntropyKernels<float>& cross_entropy_kernels();
template const CrossEntropyKernels<double>& cross_entropy_kernels();

}  // namespace blasformer
