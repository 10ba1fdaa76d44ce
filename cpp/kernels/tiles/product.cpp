// Products of float32 matrices from tiles of bfloat16 parts (kernels/split_product.h), compiled once per
// tile unit, in a namespace of that name, as files in kernels/isa/ are per instruction set.
//
// Two tiles of rows times two of columns: four tiles hold sums, two a step of the left operand, two one of
// the right one. So a tile that is loaded takes part in two products, or in four.

#include <cfloat>
#include <cmath>

#include "kernels/isa/transpose.h"
#include "kernels/split_product.h"
#include "kernels/tiles/bundle.h"
#include "kernels/tiles/plain_tile.h"
#include "kernels/tiles/tile_unit.h"

namespace blasformer::BLASFORMER_ISA {

namespace {

constexpr Index kTileSize = kLines * kLines;  // the sums of a strip times a panel

// ---- Packing

typedef std::uint32_t Words __attribute__((vector_size(64)));
typedef float Floats __attribute__((vector_size(64)));
constexpr Index kLanes = 16;
static_assert(kLanes == kPairs && kLanes == kTileLines);

// What packing finds out about 16 elements, lane by lane, as bits of their magnitudes.
struct Found {
  Words lowest_less_one = ~Words{};  // zero comes last: so it does not count
  Words highest = {};
};

// pairs[part][lane] = the pair of that part of first[lane] and of second[lane].
template <int parts>
inline void split_pairs(const float* first, const float* second, std::uint32_t* const (&pairs)[parts],
                        Found& found, Words (&seen)[parts]) {
  Floats x[2];
  std::memcpy(&x[0], first, sizeof x[0]);
  std::memcpy(&x[1], second, sizeof x[1]);
  for (int i = 0; i < 2; ++i) {
    const Words magnitude = (Words)x[i] & 0x7fffffffu;
    const Words less_one = magnitude - 1u;
    found.highest = found.highest > magnitude ? found.highest : magnitude;
    found.lowest_less_one = found.lowest_less_one < less_one ? found.lowest_less_one : less_one;
  }
#pragma GCC unroll 3
  for (int part = 0; part < parts; ++part) {
    Words nearest[2];
    for (int i = 0; i < 2; ++i) {
      const Words bits = (Words)x[i];
      nearest[i] = (bits + (0x7fffu + (bits >> 16 & 1u))) & 0xffff0000u;  // ties to even
      seen[part] |= bits << 1;                                            // without the sign of a zero
      x[i] -= (Floats)nearest[i];
    }
    const Words both = nearest[0] >> 16 | nearest[1];
    std::memcpy(pairs[part], &both, sizeof both);
  }
}

constexpr std::int32_t kNoLowest = 1000, kNoHighest = -1000;
// Magnitudes that are split: from 2^-102, whose last digit is 2^-125, to the last that is not rounded to Inf.
constexpr std::uint32_t kLowestSplit = (127u - 102u) << 23, kHighestSplit = 0x7f7f7fffu;

inline void describe_line(std::uint32_t lowest_less_one, std::uint32_t highest, Index line,
                          BundleHead& head) {
  const std::uint32_t lowest = lowest_less_one + 1;  // 0 if all are 0
  head.lowest[line] = lowest == 0 ? kNoLowest : static_cast<std::int32_t>(lowest >> 23);
  head.highest[line] = highest == 0 ? kNoHighest : static_cast<std::int32_t>(highest >> 23);
  if (highest > kHighestSplit || (lowest != 0 && lowest < kLowestSplit)) {
    head.unsplit |= 1u << line;
  } else {
    head.lowest_of_all = head.lowest[line] < head.lowest_of_all ? head.lowest[line] : head.lowest_of_all;
    head.highest_of_all = head.highest[line] > head.highest_of_all ? head.highest[line] : head.highest_of_all;
  }
}

// Lines of an operand: element k of line l is data[l * line_stride + k * depth_stride], one stride is 1.
struct Lines {
  const float* data;
  Index line_stride, depth_stride;
  const float* at(Index line, Index k) const { return data + line * line_stride + k * depth_stride; }
};

// A step of 16 lines, the lines and elements beyond its end as zeros.
inline Lines padded(const Lines& lines, Index count, Index depth, bool along_depth, float* copy) {
  std::memset(copy, 0, kTileLines * kStep * sizeof(float));
  const Lines result = along_depth ? Lines{copy, kStep, 1} : Lines{copy, 1, kTileLines};
  for (Index line = 0; line < count; ++line) {
    for (Index k = 0; k < depth; ++k)
      copy[line * result.line_stride + k * result.depth_stride] = *lines.at(line, k);
  }
  return result;
}

template <int parts, bool left>
void pack_bundle(const Lines& lines, Index count, Index depth, unsigned char* packed) {
  const Index steps = ceil_div(depth, kStep);
  const bool along_depth = lines.depth_stride == 1;
  unsigned char* const tiles = packed + sizeof(BundleHead);
  BundleHead head{};
  head.lowest_of_all = kNoLowest;
  head.highest_of_all = kNoHighest;
  Words seen[parts] = {};
  for (Index half = 0; half < 2; ++half) {
    Found found[kTileLines];
    for (Index step = 0; step < steps; ++step) {
      std::uint32_t* tile[parts];
      for (int part = 0; part < parts; ++part)
        tile[part] =
            reinterpret_cast<std::uint32_t*>(tiles + ((part * steps + step) * 2 + half) * kTileBytes);
      const Index first = half * kTileLines, k = step * kStep;
      alignas(64) float copy[kTileLines * kStep];
      alignas(64) std::uint32_t turned[parts][kTileLines * kPairs];
      const Lines all{lines.at(first, k), lines.line_stride, lines.depth_stride};
      const bool whole = count - first >= kTileLines && depth - k >= kStep;
      const Lines source = whole ? all
                                 : padded(all, smaller(count - first, kTileLines), smaller(depth - k, kStep),
                                          along_depth, copy);
      // Sixteen lines, each with pairs of its elements; or sixteen pairs, each of elements of all lines.
      const Index stride = along_depth ? source.line_stride : source.depth_stride;
      const Index between = along_depth ? kPairs : kPairs * stride;
      const bool turn = along_depth != left;
      for (Index i = 0; i < 16; ++i) {
        std::uint32_t* pairs[parts];
        for (int part = 0; part < parts; ++part)
          pairs[part] = (turn ? turned[part] : tile[part]) + i * kLanes;
        const float* const x = source.data + i * stride;
        split_pairs<parts>(x, x + between, pairs, found[along_depth ? i : 0], seen);
      }
      if (turn) {
        for (int part = 0; part < parts; ++part) {
          const float* row[16];
          for (Index i = 0; i < 16; ++i) row[i] = reinterpret_cast<const float*>(turned[part] + i * kLanes);
          transpose_rows(row, 16, 16, reinterpret_cast<float*>(tile[part]));
        }
      }
    }
    for (Index line = 0; line < kTileLines; ++line) {
      std::uint32_t lowest_less_one = ~0u, highest = 0;
      if (along_depth) {
        for (Index i = 0; i < kLanes; ++i) {
          const std::uint32_t low = found[line].lowest_less_one[i], high = found[line].highest[i];
          lowest_less_one = low < lowest_less_one ? low : lowest_less_one;
          highest = high > highest ? high : highest;
        }
      } else {
        lowest_less_one = found[0].lowest_less_one[line];
        highest = found[0].highest[line];
      }
      describe_line(lowest_less_one, highest, half * kTileLines + line, head);
    }
  }
  head.parts = 1;
  for (int part = 1; part < parts; ++part) {
    for (Index i = 0; i < kLanes; ++i) head.parts = seen[part][i] != 0 ? part + 1 : head.parts;
  }
  for (Index line = 0; line < count; ++line) {
    if ((head.unsplit >> line & 1u) == 0) continue;
    for (Index k = 0; k < depth; ++k) {
      std::uint32_t bits;
      std::memcpy(&bits, lines.at(line, k), sizeof bits);
      const std::uint16_t upper = static_cast<std::uint16_t>(bits >> 16), lower = bits & 0xffffu;
      unsigned char* const place = tiles + place_in_part(line, k, left);
      std::memcpy(place, &upper, sizeof upper);
      std::memcpy(place + steps * 2 * kTileBytes, &lower, sizeof lower);
    }
  }
  std::memcpy(packed, &head, sizeof head);
}

template <int parts>
Index packed_bytes(Index depth) {
  return bundle_bytes(depth, parts);
}

template <int parts>
void pack_left(MatrixView<float> left, Index rows, Index depth, void* packed) {
  const Lines lines{left.data, left.row_stride, left.column_stride};
  for (Index row = 0; row < rows; row += kLines) {
    pack_bundle<parts, true>({lines.at(row, 0), lines.line_stride, lines.depth_stride},
                             smaller(kLines, rows - row), depth,
                             static_cast<unsigned char*>(packed) + row / kLines * bundle_bytes(depth, parts));
  }
}

template <int parts>
void pack_right(MatrixView<float> right, Index depth, Index columns, void* packed) {
  const Lines lines{right.data, right.column_stride, right.row_stride};
  for (Index column = 0; column < columns; column += kLines) {
    pack_bundle<parts, false>(
        {lines.at(column, 0), lines.line_stride, lines.depth_stride}, smaller(kLines, columns - column),
        depth, static_cast<unsigned char*>(packed) + column / kLines * bundle_bytes(depth, parts));
  }
}

// ---- Products

#if defined(BLASFORMER_ISA_avx512_bf16)

// sums = left right for the first parts, in groups of rows whose sums are held in registers.
template <int parts>
void sum_products(Tiles& unit, const Bundle& left, Index rows, const Bundle& right, Index, float* sums) {
  static_assert(parts == 1);
  for (Index row = 0; row < rows; row += Tiles::rows) unit.multiply(left, row, right, sums + row * kLines);
}

#else

// The tiles are numbered by constants; a bundle of 16 lines or fewer has one that counts.
template <int parts, int row_tiles, int column_tiles>
struct TileProducts {
  Tiles& unit;
  const Bundle& left;
  const Bundle& right;

  void load_left(Index part, Index step) const {
    unit.template load_left<0>(left.tile(part, step, 0));
    if constexpr (row_tiles > 1) unit.template load_left<1>(left.tile(part, step, 1));
  }
  void load_right(Index part, Index step) const {
    unit.template load_right<0>(right.tile(part, step, 0));
    if constexpr (column_tiles > 1) unit.template load_right<1>(right.tile(part, step, 1));
  }
  void multiply() const {
    unit.template multiply<0, 0>();
    if constexpr (column_tiles > 1) unit.template multiply<0, 1>();
    if constexpr (row_tiles > 1) unit.template multiply<1, 0>();
    if constexpr (row_tiles > 1 && column_tiles > 1) unit.template multiply<1, 1>();
  }
  void clear() const {
    unit.template clear<0, 0>();
    if constexpr (column_tiles > 1) unit.template clear<0, 1>();
    if constexpr (row_tiles > 1) unit.template clear<1, 0>();
    if constexpr (row_tiles > 1 && column_tiles > 1) unit.template clear<1, 1>();
  }
  void store(float* sums) const {
    unit.template store<0, 0>(sums);
    if constexpr (column_tiles > 1) unit.template store<0, 1>(sums + 16);
    if constexpr (row_tiles > 1) unit.template store<1, 0>(sums + 16 * kLines);
    if constexpr (row_tiles > 1 && column_tiles > 1) unit.template store<1, 1>(sums + 16 * kLines + 16);
  }

  void sum(float* sums) const {
    const int left_parts = left.head->parts, right_parts = right.head->parts;
    clear();
    // The small products, in the order that needs the fewest loads.
    for (Index step = 0; step < right.steps && left_parts + right_parts > 2; ++step) {
      load_right(0, step);
      if (parts > 2 && left_parts > 2) {
        load_left(2, step);
        multiply();
      }
      if (left_parts > 1) {
        load_left(1, step);
        multiply();
      }
      if (right_parts > 1) {
        load_right(1, step);
        if (parts > 2 && left_parts > 1) multiply();
        load_left(0, step);
        multiply();
      }
      if (parts > 2 && right_parts > 2) {
        load_right(2, step);
        multiply();
      }
    }
    for (Index step = 0; step < right.steps; ++step) {
      load_left(0, step);
      load_right(0, step);
      multiply();
    }
    store(sums);
  }
};

template <int parts>
void sum_products(Tiles& unit, const Bundle& left, Index rows, const Bundle& right, Index columns,
                  float* sums) {
  if (rows > 16 && columns > 16) {
    TileProducts<parts, 2, 2>{unit, left, right}.sum(sums);
  } else if (rows > 16) {
    TileProducts<parts, 2, 1>{unit, left, right}.sum(sums);
  } else if (columns > 16) {
    TileProducts<parts, 1, 2>{unit, left, right}.sum(sums);
  } else {
    TileProducts<parts, 1, 1>{unit, left, right}.sum(sums);
  }
}

#endif

// What denormals taken for zero may have cost an element: some 2^12 additions for a depth of 512, below
// 2^-126 each. Beside a sum of 2^-86 that is a 32nd of what its last rounding may cost.
constexpr float kFeltBelow = 0x1p-86f;
// Exponents (biased twice) of two elements, none of whose products of parts, and no sum of them, is denormal:
// a part may be 2^23 times smaller than its number, and end with its last digit.
constexpr std::int32_t kNeverDenormal = 2 * 127 - 80;

// Exponents (biased twice) of two elements which `depth` times may overflow, or the rounding of their parts.
inline std::int32_t may_overflow_from(Index depth) {
  std::int32_t doublings = 0;
  while (Index{1} << doublings < depth) ++doublings;
  return 2 * 127 + 124 - doublings;
}

// Whether any of the sums is infinite, NaN or below kFeltBelow: whether they need a closer look.
inline bool may_be_wrong(Index rows, Index columns, const float* sums) {
  constexpr std::uint32_t felt_below = (127u - 86u) << 23, infinite = 0xffu << 23;
  Words suspect = {};
  for (Index row = 0; row < rows; ++row) {
    for (Index column = 0; column < columns; column += kLanes) {
      Words sum;
      std::memcpy(&sum, sums + row * kLines + column, sizeof sum);
      suspect |= (Words)((sum & 0x7fffffffu) - felt_below >= infinite - felt_below);
    }
  }
  std::uint32_t any = 0;
  for (Index i = 0; i < kLanes; ++i) any |= suspect[i];
  return any != 0;
}

// Replaces the sums that parts cannot, or may not, give. False: no memory for that.
inline bool correct_sums(const Bundle& left, Index rows, Index left_depth, Index first, const Bundle& right,
                         Index columns, Index depth, float* sums) {
  const BundleHead &rows_head = *left.head, &columns_head = *right.head;
  const std::int32_t overflow = may_overflow_from(depth);
  if ((rows_head.unsplit | columns_head.unsplit) == 0 &&
      ((rows_head.lowest_of_all + columns_head.lowest_of_all >= kNeverDenormal &&
        rows_head.highest_of_all + columns_head.highest_of_all < overflow) ||
       !may_be_wrong(rows, columns, sums)))
    return true;
  std::uint32_t wrong[kLines], any = 0;
  for (Index row = 0; row < rows; ++row) {
    wrong[row] = (rows_head.unsplit >> row & 1u) != 0 ? ~0u : columns_head.unsplit;
    for (Index column = 0; column < columns; ++column) {
      const float magnitude = std::fabs(sums[row * kLines + column]);
      const bool felt =
          rows_head.lowest[row] + columns_head.lowest[column] < kNeverDenormal && !(magnitude >= kFeltBelow);
      const bool overflown =
          rows_head.highest[row] + columns_head.highest[column] >= overflow && !(magnitude <= FLT_MAX);
      wrong[row] |= static_cast<std::uint32_t>(felt || overflown) << column;
    }
    any |= wrong[row];
  }
  if (any == 0) return true;
  alignas(64) float plain[kTileSize];
  if (!plain_tile(left.head, rows, left_depth, first, right.head, columns, depth, plain, kLines))
    return false;
  for (Index row = 0; row < rows; ++row) {
    for (Index column = 0; column < columns; ++column) {
      if ((wrong[row] >> column & 1u) != 0) sums[row * kLines + column] = plain[row * kLines + column];
    }
  }
  return true;
}

// c = start + sums, or sums.
inline void write_sums(const float* sums, Index rows, Index columns, const float* start, Index start_stride,
                       float* c, Index c_stride) {
  for (Index row = 0; row < rows; ++row) {
    const float* const sum = sums + row * kLines;
    float* const target = c + row * c_stride;
    if (start == nullptr) {
      std::memcpy(target, sum, static_cast<std::size_t>(columns) * sizeof(float));
    } else if (columns == kLines) {
      const float* const begin = start + row * start_stride;
      Floats x[2], y[2];
      std::memcpy(x, begin, sizeof x);
      std::memcpy(y, sum, sizeof y);
      x[0] += y[0];
      x[1] += y[1];
      std::memcpy(target, x, sizeof x);
    } else {
      const float* const begin = start + row * start_stride;
      for (Index column = 0; column < columns; ++column) target[column] = begin[column] + sum[column];
    }
  }
}

template <int parts>
bool multiply_within(const void* left, Index rows, Index left_depth, Index first, const void* right,
                     Index right_stride, Index depth, Index columns, const float* start, Index start_stride,
                     float* c, Index c_stride) {
  const Index left_stride = bundle_bytes(left_depth, parts);
  Tiles unit;
  for (Index column = 0; column < columns; column += kLines) {
    const Bundle panel(static_cast<const unsigned char*>(right) + column / kLines * right_stride, depth);
    const Index width = smaller(kLines, columns - column);
    for (Index row = 0; row < rows; row += kLines) {
      const Bundle strip(static_cast<const unsigned char*>(left) + row / kLines * left_stride, left_depth,
                         first);
      const Index height = smaller(kLines, rows - row);
      float* const target = c + row * c_stride + column;
      for (Index r = 0; r < height; ++r) {
        __builtin_prefetch(target + r * c_stride, 1);
        __builtin_prefetch(target + r * c_stride + width - 1, 1);
      }
      alignas(64) float sums[kTileSize];
      sum_products<parts>(unit, strip, height, panel, width, sums);
      if (!correct_sums(strip, height, left_depth, first, panel, width, depth, sums)) return false;
      write_sums(sums, height, width, start == nullptr ? nullptr : start + row * start_stride + column,
                 start_stride, target, c_stride);
    }
  }
  return true;
}

template <int parts>
bool multiply(const void* left, Index rows, Index depth, const void* right, Index right_stride, Index columns,
              const float* start, Index start_stride, float* c, Index c_stride) {
  Tiles::configure();  // and not a destructor: exceptions need symbols that no kernel may have
  const bool complete = multiply_within<parts>(left, rows, depth, 0, right, right_stride, depth, columns,
                                               start, start_stride, c, c_stride);
  Tiles::release();
  return complete;
}

template <int parts>
constexpr SplitProductKernels kSplitProductKernels = {
    .lines = kLines,
    .depth = kStep,
    .packed_bytes = packed_bytes<parts>,
    .pack_left = pack_left<parts>,
    .pack_right = pack_right<parts>,
    .multiply = multiply<parts>,
    .configure = Tiles::configure,
    .release = Tiles::release,
    .multiply_within = multiply_within<parts>,
};

}  // namespace

const SplitProductKernels& split_product_kernels(Precision precision);
const SplitProductKernels& split_product_kernels([[maybe_unused]] Precision precision) {
#if !defined(BLASFORMER_ISA_avx512_bf16)
  if (precision == Precision::highest) return kSplitProductKernels<3>;
  if (precision == Precision::high) return kSplitProductKernels<2>;
#endif
  return kSplitProductKernels<1>;
}

}  // namespace blasformer::BLASFORMER_ISA
