#pragma once

#include <cstdint>

#include "core/index.h"

namespace blasformer {

// c (rows, 16 vectors) = left right^T for rows of bfloat16 numbers, added up in float32 and two products at a
// time: these are exact, so it is as accurate as float32 multiply-adds are, at half their cost. `left` is
// read where it lies, its rows left_stride numbers apart; right[pair][lane] holds two neighbours of the row
// of each lane, the first in the lower half. Denormals are zero.
using PairProduct = void (*)(Index rows, Index vectors, Index pairs, const std::uint16_t* left,
                             Index left_stride, const float* right, Index right_stride, float* c,
                             Index c_stride);

// That of active_tile_unit(), or null where multiply-adds are the better, or only, way.
PairProduct pair_product();

}  // namespace blasformer
