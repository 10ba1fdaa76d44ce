#pragma once

// The attention kernels of one instruction set, as a table of functions; attention_kernels<T>() is the table of the active one.

#include "kernels/attention_problem.h"

namespace blasformer {

// A run of queries of one head: the unit of work.
struct AttentionTask {
  Index batch, head, first_row, rows;
};

// The queries [first_row, first_row + rows) of every head that reads one key head.
struct BackwardTask {
  Index batch, key_head, first_row, rows;
};

// What forward left, each (batch, query_heads, query_length), and the gradient of its output.
template <class T>
struct BackwardInputs {
  const T *maximum, *reciprocal_sum, *delta;
  AttentionOperand d_output;
};

template <class T>
struct AttentionKernels {
  Index query_tile;  // queries that are computed side by side, one per vector lane
  Index key_block;   // keys per step of the online softmax

  // Bytes of scratch memory that one task of so many rows needs, aligned to 64.
  Index (*forward_workspace)(const AttentionProblem&, Index rows);
  // Writes the task's rows of the output, and of the statistics (batch, heads, query_length) unless they are null.
  void (*forward)(const AttentionProblem&, const AttentionTask&, void* workspace, const MutableAttentionOperand& output,
                  T* maximum, T* reciprocal_sum);

  // out (count, key_length) (+)= the weights of the queries `rows` of one head; count <= query_tile.
  Index (*weights_workspace)(const AttentionProblem&);
  void (*weights)(const AttentionProblem&, Index batch, Index head, const Index* rows, Index count, const T* maximum,
                  const T* reciprocal_sum, void* workspace, bool add, T* out);
  // delta = rowsum(d_output * output) of the task's rows; output is dense.
  void (*delta)(const AttentionProblem&, const AttentionTask&, const T* output, const AttentionOperand& d_output, T* delta);
  // Writes the task's rows of d_query, and the share of the task in d_key and d_value (key_length rows, dense).
  Index (*backward_workspace)(const AttentionProblem&);
  void (*backward)(const AttentionProblem&, const BackwardTask&, const BackwardInputs<T>&, void* workspace,
                   const MutableAttentionOperand& d_query, T* d_key, T* d_value);
  // out (count, last_key - first_key) += the gradient of the scores of queries [first_row, first_row + count) of one head.
  Index (*bias_gradient_workspace)(const AttentionProblem&);
  void (*bias_gradient)(const AttentionProblem&, Index batch, Index head, Index first_row, Index count, Index first_key,
                        Index last_key, const BackwardInputs<T>&, void* workspace, T* out);

  // out (count, key_length) = who may attend to whom.
  void (*explain)(const AttentionProblem&, Index batch, Index head, const Index* rows, Index count, bool* out);
};

template <class T>
const AttentionKernels<T>& attention_kernels();

}  // namespace blasformer
