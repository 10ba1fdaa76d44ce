#pragma once

// Checks the arguments of an attention call and brings them into the form the kernels take.

#include <memory>
#include <vector>

#include "core/array_view.h"
#include "kernels/attention_problem.h"
#include "layers/attention.h"

namespace blasformer {

// A problem and what it points into.
class CheckedAttention {
 public:
  // Throws std::invalid_argument or TypeMismatch unless the arguments fit together. Operands are read in
  // place.
  explicit CheckedAttention(const AttentionArguments& arguments);
  CheckedAttention(const CheckedAttention&) = delete;
  CheckedAttention& operator=(const CheckedAttention&) = delete;

  const AttentionProblem& problem() const { return problem_; }
  Shape output_shape() const;      // (..., query_heads, query_length, value_dim)
  Shape statistics_shape() const;  // (..., query_heads, query_length)
  Shape weights_shape() const;     // (..., query_heads, query_length, key_length)

  // An array of the caller of the given shape, as an operand. The result points into this object.
  MutableAttentionOperand operand(const MutableArrayView& view);
  AttentionOperand operand(const ArrayView& view);
  // A mask or bias, broadcast from the right to (..., query_heads, query_length, key_length).
  AttentionOperand broadcast(const ArrayView& view, const char* name);

 private:
  const Index* batch_offsets(const Index* shape, const Index* stride, int rank);
  const Index* per_sequence(const ArrayView& view, const char* name, Index lowest, Index highest);
  const Index* segments(const ArrayView& view, const char* name, Index length);
  const double* per_head(const ArrayView& view, const char* name, bool per_batch);
  void check_shapes(const AttentionArguments& arguments);
  void set_positions(const AttentionArguments& arguments);
  Index* keep_indices(Index count);

  AttentionProblem problem_;
  Shape batch_shape_;
  bool single_head_ = false;  // rank 2: no axis of heads
  std::vector<std::unique_ptr<Index[]>> indices_;
  std::vector<std::unique_ptr<double[]>> numbers_;
};

// The arguments of what reads the statistics that forward left.
template <class T>
AttentionArguments computed_as(const AttentionStatistics<T>& statistics, AttentionArguments arguments) {
  arguments.batch_invariant = statistics.batch_invariant;
  return arguments;
}

}  // namespace blasformer
