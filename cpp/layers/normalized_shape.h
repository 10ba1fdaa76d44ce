#pragma once

// What LayerNorm and RMSNorm say of the axes they act on: the last ones, whose extents are normalized_shape.

#include <algorithm>

#include "core/describe.h"
#include "core/require.h"
#include "core/tensor.h"

namespace blasformer {

inline void require_normalized_shape(const Shape& normalized_shape) {
  const bool positive = std::ranges::all_of(normalized_shape, [](Index extent) { return extent > 0; });
  require(!normalized_shape.empty() && positive,
          "normalized_shape must hold at least one axis, all of them positive, got ",
          shape_text(normalized_shape));
}

// The axes of x before those; each entry is one row that is normalised.
inline Shape outer_shape(const Shape& x, const Shape& normalized_shape) {
  const auto rank = static_cast<std::ptrdiff_t>(normalized_shape.size());
  const bool fits = x.size() >= normalized_shape.size() &&
                    std::equal(normalized_shape.begin(), normalized_shape.end(), x.end() - rank);
  require(fits, "x must end in the axes of normalized_shape ", shape_text(normalized_shape), ", got ",
          shape_text(x));
  return Shape(x.begin(), x.end() - rank);
}

}  // namespace blasformer
