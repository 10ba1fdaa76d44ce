#pragma once

// The attention kernels of one instruction set, as a table of functions; attention_kernels<T>() is the table of the active one.

#include "kernels/attention_problem.h"

namespace blasformer {

// A run of queries of one head: the unit of work.
struct AttentionTask {
  Index batch, head, first_row, rows;
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
  // out (count, key_length) = who may attend to whom.
  void (*explain)(const AttentionProblem&, Index batch, Index head, const Index* rows, Index count, bool* out);
};

template <class T>
const AttentionKernels<T>& attention_kernels();

}  // namespace blasformer
