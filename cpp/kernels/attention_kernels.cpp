#include "kernels/attention_kernels.h"

#include "core/cpu.h"

namespace blasformer {

namespace baseline {
extern const AttentionKernels<float> attention_float;
extern const AttentionKernels<double> attention_double;
}  // namespace baseline
namespace avx2 {
extern const AttentionKernels<float> attention_float;
extern const AttentionKernels<double> attention_double;
}  // namespace avx2
namespace avx512 {
extern const AttentionKernels<float> attention_float;
extern const AttentionKernels<double> attention_double;
}  // namespace avx512

template <>
const AttentionKernels<float>& attention_kernels<float>() {
  switch (active_isa()) {
    case Isa::avx512: return avx512::attention_float;
    case Isa::avx2: return avx2::attention_float;
    case Isa::baseline: break;
  }
  return baseline::attention_float;
}

template <>
const AttentionKernels<double>& attention_kernels<double>() {
  switch (active_isa()) {
    case Isa::avx512: return avx512::attention_double;
    case Isa::avx2: return avx2::attention_double;
    case Isa::baseline: break;
  }
  return baseline::attention_double;
}

}  // namespace blasformer
