#pragma once

#include "core/precision.h"
#include "kernels/product_kernels.h"

namespace blasformer {

// The parts of a matrix product of float32 numbers that is computed from products of bfloat16 numbers, as
// ProductKernels is of one that is not. A float32 number is the exact sum of three bfloat16 numbers, each the
// nearest to what the ones before it leave (rounding to nearest leaves at most half a unit of 8 digits: 8 + 8
// + 7 binary digits and the signs of the parts hold 24). Of the nine products of parts the six largest are
// added up for Precision::highest: the rest is below 2^-24 of the product. Two parts and three products are
// Precision::high, one is Precision::medium. Zero parts, as of numbers that are bfloat16 already, cost
// nothing.
//
// The small products come first, from end to end of the block, and the large ones last: an element is rounded
// as often as there are large products, and not six times as often.
//
// What the parts cannot represent is found while packing and in the sums, and the elements of c it concerns,
// no others, are computed by the ProductKernels: Inf and NaN, magnitudes that the rounding of a part would
// make infinite, magnitudes so small that a part would be denormal (tiles take that for zero), and sums that
// overflowed or so small that a denormal product, taken for zero, may be felt. So an element of c depends on
// its own row and its own column alone, here too.
struct SplitProductKernels {
  Index lines;  // rows in a packed strip, columns in a packed panel; a block's last one is padded
  Index depth;  // a step of it: blocks whose depth is a multiple waste nothing

  // Strips, or panels, follow one another, each of so many bytes, aligned to 64.
  Index (*packed_bytes)(Index depth);
  void (*pack_left)(MatrixView<float> left, Index rows, Index depth, void* packed);
  void (*pack_right)(MatrixView<float> right, Index depth, Index columns, void* packed);
  // As in ProductKernels; right_stride is in bytes. False: no memory for what the plain kernels would have to
  // compute (no exception crosses kernels).
  bool (*multiply)(const void* left, Index rows, Index depth, const void* right, Index right_stride,
                   Index columns, const float* start, Index start_stride, float* c, Index c_stride);

  // The same between configure and release, for many small products in a row, with those elements of the
  // left operand that begin with `first`, a multiple of `depth`, and are as many as the right one has. False
  // cannot happen after reserve_plain_tile.
  void (*configure)();
  void (*release)();
  bool (*multiply_within)(const void* left, Index rows, Index left_depth, Index first, const void* right,
                          Index right_stride, Index depth, Index columns, const float* start,
                          Index start_stride, float* c, Index c_stride);
};

// Gets the memory that the calling thread needs for a tile of such a depth by the ProductKernels.
void reserve_plain_tile(Index depth);

// Those of active_tile_unit(), or null where the ProductKernels are the better, or only, way to that
// precision.
const SplitProductKernels* split_product_kernels(Precision precision);

}  // namespace blasformer
