#include "core/precision.h"

namespace blasformer {

namespace {
thread_local Precision current = Precision::highest;
}

Precision current_precision() { return current; }
void set_current_precision(Precision precision) { current = precision; }

}  // namespace blasformer
