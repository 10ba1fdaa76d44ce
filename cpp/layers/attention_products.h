#pragma once

#include <string>

#include "kernels/attention_problem.h"

namespace blasformer {

// What computes the products of a call's blocks at current_precision() (AttentionProblem::split): by
// dtype and the shape of one head alone, never by the batch.
const SplitProductKernels* attention_products(const AttentionProblem& p);

// What computes the scores of bfloat16 numbers where the whole products are not (AttentionProblem::pairs), by
// the same.
PairProduct attention_pairs(const AttentionProblem& p);

// What computes a call, by name: an instruction set, or what computes its products.
std::string attention_kernel_name(const AttentionProblem& p);

// Gets the memory that a task needs so that none of its split products can fail.
void reserve_for_products(const AttentionProblem& p);

}  // namespace blasformer
