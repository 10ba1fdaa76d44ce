#pragma once

// Scaled dot-product attention without parameters: the centre of the library (Vaswani et al. 2017, equation
// 1).
//
//   scores = softcap(scale * query key^T) + bias + alibi, over the keys a query may attend to
//   output = dropout(softmax(scores)) value
//
// computed tile by tile with an online softmax (Milakov and Gimelshein 2018; Dao 2023), forward and backward,
// for every mask in the same loop: memory grows with the length, never with its square.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/array_view.h"
#include "core/tensor.h"
#include "kernels/pair_product.h"

namespace blasformer {

struct SplitProductKernels;

enum class Causal { no, yes, upper_left, lower_right };

// The arguments of one call, as API users give them. Views are borrowed.
struct AttentionArguments {
  ArrayView query;  // (..., query_heads, query_length, dim); rank 2 is one head
  ArrayView key;    // (..., key_heads, key_length, dim); key_heads divides query_heads
  ArrayView value;  // (..., key_heads, key_length, value_dim)
  std::optional<ArrayView>
      mask;  // bool, broadcasts to (..., query_heads, query_length, key_length); true = may attend
  std::optional<ArrayView> bias;  // of query's dtype, broadcasts likewise
  Causal causal = Causal::no;
  std::optional<ArrayView> query_offset;                  // int64, () or (batch,)
  bool window = false;                                    // whether the two sides below were given at all
  std::optional<Index> window_left, window_right;         // inclusive; nothing = unbounded
  std::optional<ArrayView> query_lengths, key_lengths;    // int64, () or (batch,)
  std::optional<ArrayView> query_segments, key_segments;  // int64, (batch, length)
  std::optional<ArrayView> alibi_slopes;                  // (query_heads,) or (batch, query_heads)
  std::optional<ArrayView> sinks;                         // (query_heads,)
  std::optional<double> softcap;
  std::optional<double> scale;  // default 1 / sqrt(dim)
  double dropout_p = 0;
  std::optional<std::uint64_t> seed;    // nothing: nothing is dropped
  std::optional<bool> batch_invariant;  // nothing: as the thread is to be
};

// The normaliser of each row, (..., query_heads, query_length), in the units of the kernels: backward and
// weights need it. weight = exp(unit * (score - maximum)) * reciprocal_sum; a row that may attend to nothing
// has reciprocal_sum 0.
template <class T>
struct AttentionStatistics {
  Tensor<T> maximum, reciprocal_sum;
  double unit = 1;  // 1 when scores are logits, scale when they are query key^T
  // How forward was computed. What reads the statistics must be computed likewise.
  bool batch_invariant = false;
  const SplitProductKernels* split = nullptr;
  PairProduct pairs = nullptr;
};

// Throws std::invalid_argument or TypeMismatch unless the arguments fit together; returns the shape of the
// output.
Shape attention_output_shape(const AttentionArguments& arguments);

// T is the type computed in: double for float64 operands, float for the others. statistics may be null.
template <class T>
void attention_forward(const AttentionArguments& arguments, const MutableArrayView& output,
                       AttentionStatistics<T>* statistics);

// Where the gradients go: arrays of the shapes and dtypes of the arguments. That of a bias, or of sinks, is
// dense.
struct AttentionGradientViews {
  MutableArrayView query, key, value;
  std::optional<MutableArrayView> bias, sinks;  // where they are wanted
};

// statistics and output are those of forward, output in the type computed in and with dense columns; d_output
// has the shape of the output and the dtype of the arguments, with any strides.
template <class T>
void attention_backward(const AttentionArguments& arguments, const AttentionStatistics<T>& statistics,
                        const ArrayView& output, const ArrayView& d_output,
                        const AttentionGradientViews& gradients);

// Which weights somebody asked to see: (batch, heads, rows, key_length), or (batch, rows, key_length) for
// their mean over the heads.
struct WeightSelection {
  std::vector<Index> heads, rows;
  bool mean = false;
};

// The softmax weights of the selected heads and queries, before dropout; `weights` is dense, of query's
// dtype.
template <class T>
void attention_weights(const AttentionArguments& arguments, const AttentionStatistics<T>& statistics,
                       const WeightSelection& selection, const MutableArrayView& weights);

// The logarithm of the softmax's denominator, (..., query_heads, query_length): -inf for a query that attends
// to nothing.
template <class T>
void attention_logsumexp(const AttentionStatistics<T>& statistics, T* logsumexp);

// Who may attend to whom by the masks: (batch, query_heads, query_length, key_length).
void explain_mask(const AttentionArguments& arguments, bool* allowed);

// What attention_forward would do.
struct AttentionPlan {
  std::string kernel;
  Index query_tile, key_block, queries_per_task, keys_per_task, tasks;
  int threads;
  Index workspace_bytes;  // per thread
  Index shared_bytes;     // for all
};
AttentionPlan attention_plan(const AttentionArguments& arguments);

}  // namespace blasformer
