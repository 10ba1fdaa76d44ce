#pragma once

#include "core/index.h"

namespace blasformer {

// The elementary functions that kernels are made of, one by one and for whole arrays: their accuracy is
// tested here, for every instruction set. y[i] = f(x[i]).
template <class T>
struct MathKernels {
  using Function = void (*)(const T* x, Index size, T* y);
  Function exp;               // within 2 ulp
  Function exp_nonpositive;   // for x <= 0: within 2 ulp, and zero where the result would be denormal
  Function exp2_nonpositive;  // likewise
  Function tanh;              // within 3 ulp
  Function sigmoid;           // within 4 ulp
  Function gelu;              // x Phi(x), within 6 ulp
};

// Those of active_isa().
template <class T>
const MathKernels<T>& math_kernels();

}  // namespace blasformer
