#pragma once

// How operands of a split product lie in memory. A bundle is a strip of 32 rows of the left operand or a
// panel of 32 columns of the right one: 32 lines along the depth. Its parts follow one another, each in steps
// of 32 elements of the depth, each step in two tiles of 16 lines. A tile is 16 rows of 16 pairs of bfloat16
// numbers: the pair p of a step is its elements p and p + 16 (any order of the depth will do if both operands
// have it, and this one is the cheapest to make). In a left tile the rows are lines and the columns pairs, in
// a right tile it is the other way round.

#include <cstdint>
#include <cstring>

#include "core/index.h"

namespace blasformer {
namespace {

constexpr Index kLines = 32, kStep = 32, kTileLines = 16, kPairs = 16;
constexpr Index kTileBytes = kTileLines * kPairs * 4;

// Of the elements of a line: biased exponents, as the bits of float32 have them.
struct alignas(64) BundleHead {
  std::int32_t lowest[kLines], highest[kLines];  // of the nonzero ones
  std::int32_t lowest_of_all, highest_of_all;    // of the lines that are split
  std::uint32_t unsplit;                         // bit l: line l has elements that parts cannot represent
  std::int32_t parts;                            // those after it are all zero
};

// A line that is not split lies in the first two parts: the upper and the lower halves of its elements.
constexpr Index stored_parts(int parts) { return parts < 2 ? 2 : parts; }

inline Index bundle_bytes(Index depth, int parts) {
  return static_cast<Index>(sizeof(BundleHead)) +
         stored_parts(parts) * ceil_div(depth, kStep) * 2 * kTileBytes;
}

// A bundle that is read, from the step of the element `first` of its depth on.
struct Bundle {
  const BundleHead* head;
  const unsigned char* tiles;
  Index steps;  // of the whole depth

  Bundle(const void* packed, Index depth, Index first = 0)
      : head(static_cast<const BundleHead*>(packed)),
        tiles(static_cast<const unsigned char*>(packed) + sizeof(BundleHead) +
              first / kStep * 2 * kTileBytes),
        steps(ceil_div(depth, kStep)) {}
  const unsigned char* tile(Index part, Index step, Index half) const {
    return tiles + ((part * steps + step) * 2 + half) * kTileBytes;
  }
};

// Where the bfloat16 number of a line and a place k of the depth is within a part, in bytes.
inline Index place_in_part(Index line, Index k, bool left) {
  const Index pair = k % kPairs, upper = k % kStep / kPairs, row = line % kTileLines;
  const Index number = (left ? row * kPairs + pair : pair * kTileLines + row) * 2 + upper;
  return (k / kStep * 2 + line / kTileLines) * kTileBytes + number * 2;
}

}  // namespace
}  // namespace blasformer
