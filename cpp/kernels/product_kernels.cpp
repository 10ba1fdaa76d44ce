#include "kernels/product_kernels.h"

#include "core/cpu.h"

namespace blasformer {

namespace baseline {
template <class T>
const ProductKernels<T>& product_kernels();
}
namespace avx2 {
template <class T>
const ProductKernels<T>& product_kernels();
}
namespace avx512 {
template <class T>
const ProductKernels<T>& product_kernels();
}

template <class T>
const ProductKernels<T>& product_kernels() {
  switch (active_isa()) {
    case Isa::avx512: return avx512::product_kernels<T>();
    case Isa::avx2: return avx2::product_kernels<T>();
    case Isa::baseline: break;
  }
  return baseline::product_kernels<T>();
}

template const ProductKernels<float>& product_kernels();
template const ProductKernels<double>& product_kernels();

}  // namespace blasformer
