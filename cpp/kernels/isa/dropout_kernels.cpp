#include "kernels/dropout_kernels.h"

#include "kernels/isa/kept_elements.h"
#include "kernels/isa/rows.h"
#include "kernels/isa/table.h"

namespace blasformer::BLASFORMER_ISA {

namespace {

template <class T>
void dropout(const T* x, Index first, Index last, std::uint32_t threshold, T scale, std::uint64_t seed,
             const T* residual, T* y) {
  using S = Simd<T>;
  const RoundKeys key(seed);
  const Vector<T> factor = S::broadcast(scale);
  for (Index begin = first; begin < last; begin += kDrawnAtOnce) {
    std::uint64_t kept = kept_elements(static_cast<std::uint64_t>(begin / 4), key, threshold);
    const Index end = begin + kDrawnAtOnce < last ? begin + kDrawnAtOnce : last;
    for (Index i = begin; i < end; i += S::lanes, kept >>= S::lanes) {
      const Index n = end - i < S::lanes ? end - i : S::lanes;
      const Vector<T> v =
          S::select(S::from_bits(static_cast<std::uint32_t>(kept)), load_lanes(x + i, n) * factor, S::zero());
      store_lanes(y + i, residual ? v + load_lanes(residual + i, n) : v, n);
    }
  }
}

template <class T>
constexpr DropoutKernels<T> kDropoutKernels = {.dropout = dropout<T>};

}  // namespace

template <>
const DropoutKernels<float>& table() {
  return kDropoutKernels<float>;
}
template <>
const DropoutKernels<double>& table() {
  return kDropoutKernels<double>;
}

}  // namespace blasformer::BLASFORMER_ISA
