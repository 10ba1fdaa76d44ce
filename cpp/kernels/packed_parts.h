#pragma once

#include "core/index.h"

namespace blasformer {

// How many bytes of a strip or panel of such a depth, as SplitProductKernels pack it, their products read:
// parts that are all zero come last, and are not read.
Index used_bytes(const void* packed, Index depth);

}  // namespace blasformer
