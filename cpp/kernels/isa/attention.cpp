#include "kernels/attention_kernels.h"
#include "kernels/isa/attention_forward.h"
#include "kernels/isa/attention_weights.h"

namespace blasformer::BLASFORMER_ISA {

namespace {

template <class T>
constexpr AttentionKernels<T> kTable = {
    kTileQueries<T>, kKeyBlock, forward_workspace<T>, forward<T>, weights_workspace<T>, weights<T>, explain<T>,
};

}  // namespace

extern const AttentionKernels<float> attention_float;
extern const AttentionKernels<double> attention_double;

const AttentionKernels<float> attention_float = kTable<float>;
const AttentionKernels<double> attention_double = kTable<double>;

}  // namespace blasformer::BLASFORMER_ISA
