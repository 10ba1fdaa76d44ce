#pragma once

namespace blasformer {

// Whether what is computed for one row, or one sequence, must not depend on what else is in the call: then
// kernels are not chosen, and sums not cut, by the number of rows or by the length of other sequences. As
// calls by this thread are to be; a task of parallel_for is as the thread that called it.
bool batch_invariant();
void set_batch_invariant(bool invariant);

}  // namespace blasformer
