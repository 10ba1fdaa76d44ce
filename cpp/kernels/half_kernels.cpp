#include "kernels/half_kernels.h"

#include "core/cpu.h"

namespace blasformer {

namespace baseline {
const HalfKernels& half_kernels();
}
namespace avx2 {
const HalfKernels& half_kernels();
}
namespace avx512 {
const HalfKernels& half_kernels();
}

const HalfKernels& half_kernels() {
  switch (active_isa()) {
    case Isa::avx512: return avx512::half_kernels();
    case Isa::avx2: return avx2::half_kernels();
    case Isa::baseline: break;
  }
  return baseline::half_kernels();
}

}  // namespace blasformer
