#include "core/batch_invariance.h"

namespace blasformer {

namespace {
thread_local bool current = false;
}

bool batch_invariant() { return current; }
void set_batch_invariant(bool invariant) { current = invariant; }

}  // namespace blasformer
