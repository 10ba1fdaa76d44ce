#include "kernels/math_kernels.h"

#include "kernels/isa/activation_functions.h"
#include "kernels/isa/map.h"
#include "kernels/isa/table.h"
#include "kernels/isa/vector_math.h"

namespace blasformer::BLASFORMER_ISA {

namespace {

template <class T>
constexpr MathKernels<T> kMathKernels = {
    .exp = [](const T* x, Index size, T* y) { map(x, size, y, [](auto v) { return exp<T>(v); }); },
    .exp_nonpositive = [](const T* x, Index size,
                          T* y) { map(x, size, y, [](auto v) { return exp_nonpositive<T>(v); }); },
    .exp2_nonpositive =
        [](const T* x, Index size, T* y) {
          map(x, size, y, [](auto v) { return exp2_nonpositive<T>(v, Simd<T>::broadcast(T(1))); });
        },
    .tanh = [](const T* x, Index size, T* y) { map(x, size, y, [](auto v) { return tanh<T>(v); }); },
    .sigmoid =
        [](const T* x, Index size, T* y) {
          map(x, size, y, [](auto v) { return times_sigmoid<T>(Simd<T>::broadcast(T(1)), v); });
        },
    .gelu = [](const T* x, Index size, T* y) { map(x, size, y, [](auto v) { return Gelu<T>::value(v); }); },
};

}  // namespace

template <>
const MathKernels<float>& table() {
  return kMathKernels<float>;
}
template <>
const MathKernels<double>& table() {
  return kMathKernels<double>;
}

}  // namespace blasformer::BLASFORMER_ISA
