#pragma once

// The attention kernels of one instruction set, as a table of functions; attention_kernels<T>() is the table
// of the active one.

#include "kernels/attention_problem.h"

namespace blasformer {

// Rows [first, first + count) of one head.
struct HeadRows {
  Index batch, head, first, count;
};

// What a part of the keys gives to a run of few queries. Nothing but `seen` is set if that is 0.
template <class T>
struct AttentionPart {
  std::uint32_t seen;  // queries that have attended to something in it
  T *maximum, *sum;    // (queries,)
  T* output;           // (queries, value_dim), before it is divided by the sum
};

// What forward left: its statistics, each (batch, query_heads, query_length), and its output, of type T with
// dense columns; and the gradient of the output.
template <class T>
struct BackwardInputs {
  const T *maximum, *reciprocal_sum;
  AttentionOperand output, d_output;
};

// Where the gradients of a run go: d_query for its rows alone; key_length rows of d_key and d_value, with
// dense columns, written or added to. d_bias has a row for every query, with dense columns of type T, written
// or added to; its data is null if the bias is of another form, or there is none. delta is rowsum(d_output *
// output), which the gradient of sinks is made of.
template <class T>
struct BackwardOutputs {
  MutableAttentionOperand d_query;
  T* d_key;
  Index d_key_stride;
  T* d_value;
  Index d_value_stride;
  bool add;  // to d_key and d_value
  MutableAttentionOperand d_bias;
  bool add_bias;  // to d_bias; else no other query has these rows
  T* delta;       // (batch, query_heads, query_length), or null
};

template <class T>
struct AttentionKernels {
  Index query_tile;  // queries that are computed side by side, one per vector lane
  Index key_block;   // keys per step of the online softmax

  // Bytes of scratch memory that a run of so many queries needs, aligned to 64.
  Index (*forward_workspace)(const AttentionProblem&, Index queries);
  // Writes the run's rows of the output, and of the statistics (batch, heads, query_length) unless they are
  // null. A run must not cross the end of a head unless p.shares_tiles(query_tile).
  void (*forward)(const AttentionProblem&, const QueryRun&, void* workspace,
                  const MutableAttentionOperand& output, T* maximum, T* reciprocal_sum);
  // The same in two steps, where p.few_queries(): the keys [first, last) of each part, and then their results
  // in the order of the parts. The workspace is that of forward.
  void (*forward_part)(const AttentionProblem&, const QueryRun&, Index first, Index last, void* workspace,
                       AttentionPart<T>& part);
  void (*join_parts)(const AttentionProblem&, const QueryRun&, const AttentionPart<T>* parts, Index count,
                     void* workspace, const MutableAttentionOperand& output, T* maximum, T* reciprocal_sum);

  // out (count, key_length) (+)= the weights of the queries `rows` of one head; count <= query_tile.
  Index (*weights_workspace)(const AttentionProblem&);
  void (*weights)(const AttentionProblem&, Index batch, Index head, const Index* rows, Index count,
                  const T* maximum, const T* reciprocal_sum, void* workspace, bool add, T* out);
  Index (*backward_workspace)(const AttentionProblem&);
  void (*backward)(const AttentionProblem&, const QueryRun&, const BackwardInputs<T>&, void* workspace,
                   const BackwardOutputs<T>&);
  // out (count, last_key - first_key) += the gradient of the scores of rows of one head; count <= query_tile.
  Index (*bias_gradient_workspace)(const AttentionProblem&);
  void (*bias_gradient)(const AttentionProblem&, const HeadRows&, Index first_key, Index last_key,
                        const BackwardInputs<T>&, void* workspace, T* out);

  // out (count, key_length) = who may attend to whom.
  void (*explain)(const AttentionProblem&, Index batch, Index head, const Index* rows, Index count,
                  bool* out);
};

template <class T>
const AttentionKernels<T>& attention_kernels();

}  // namespace blasformer
