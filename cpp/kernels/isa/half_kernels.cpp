#include "kernels/half_kernels.h"

#include "kernels/isa/few_rows.h"
#include "kernels/isa/half_rows.h"
#include "kernels/isa/table.h"

namespace blasformer::BLASFORMER_ISA {

namespace {

constexpr HalfKernels kHalfKernels = {
    .widen_float16 = widen_float16,
    .widen_bfloat16 = widen_bfloat16,
    .narrow_float16 = narrow_float16,
    .narrow_bfloat16 = narrow_bfloat16,
    .few_rows_linear_bfloat16 = few_rows_linear<float, std::uint16_t>,
};

}  // namespace

template <>
const HalfKernels& table() {
  return kHalfKernels;
}

}  // namespace blasformer::BLASFORMER_ISA
