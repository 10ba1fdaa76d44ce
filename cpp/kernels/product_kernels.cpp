#include "kernels/product_kernels.h"

#include <cstdint>

#include "core/cpu.h"

namespace blasformer {

namespace baseline {
template <class T, class Stored>
const ProductKernels<T, Stored>& product_kernels();
}
namespace avx2 {
template <class T, class Stored>
const ProductKernels<T, Stored>& product_kernels();
}
namespace avx512 {
template <class T, class Stored>
const ProductKernels<T, Stored>& product_kernels();
}

template <class T, class Stored>
const ProductKernels<T, Stored>& product_kernels() {
  switch (active_isa()) {
    case Isa::avx512: return avx512::product_kernels<T, Stored>();
    case Isa::avx2: return avx2::product_kernels<T, Stored>();
    case Isa::baseline: break;
  }
  return baseline::product_kernels<T, Stored>();
}

template const ProductKernels<float>& product_kernels();
template const ProductKernels<double>& product_kernels();
template const ProductKernels<float, std::uint16_t>& product_kernels();

}  // namespace blasformer
