#pragma once

#include "core/index.h"

namespace blasformer {

// tile (rows, columns), whose rows are `stride` apart, = the product of two bundles (bundle.h) by the
// ProductKernels: of the elements of the left one that begin with `first`, and all of the right one. False:
// no memory for it.
bool plain_tile(const void* left, Index rows, Index left_depth, Index first, const void* right, Index columns,
                Index depth, float* tile, Index stride) noexcept;

}  // namespace blasformer
