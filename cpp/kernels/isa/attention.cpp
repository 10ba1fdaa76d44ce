#include "kernels/attention_kernels.h"
#include "kernels/isa/attention_backward.h"
#include "kernels/isa/attention_few.h"
#include "kernels/isa/attention_forward.h"
#include "kernels/isa/attention_weights.h"
#include "kernels/isa/table.h"

namespace blasformer::BLASFORMER_ISA {

namespace {

template <class T>
Index forward_workspace(const AttentionProblem& p, Index queries) {
  return p.few_queries() ? few_workspace<T>(p) : tiles_workspace<T>(p, queries);
}

template <class T>
void forward(const AttentionProblem& p, const QueryRun& run, void* workspace,
             const MutableAttentionOperand& output, T* maximum, T* reciprocal_sum) {
  const auto kernel = p.few_queries() ? forward_few<T> : forward_tiles<T>;
  kernel(p, run, workspace, output, maximum, reciprocal_sum);
}

template <class T>
constexpr AttentionKernels<T> kTable = {
    .query_tile = kTileQueries<T>,
    .key_block = kKeyBlock,
    .forward_workspace = forward_workspace<T>,
    .forward = forward<T>,
    .forward_part = forward_part<T>,
    .join_parts = join_parts<T>,
    .weights_workspace = weights_workspace<T>,
    .weights = weights<T>,
    .backward_workspace = backward_workspace<T>,
    .backward = backward<T>,
    .bias_gradient_workspace = bias_gradient_workspace<T>,
    .bias_gradient = bias_gradient<T>,
    .explain = explain<T>,
};

}  // namespace

template <>
const AttentionKernels<float>& table() {
  return kTable<float>;
}
template <>
const AttentionKernels<double>& table() {
  return kTable<double>;
}

}  // namespace blasformer::BLASFORMER_ISA
