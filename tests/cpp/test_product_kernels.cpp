// Products by the kernels themselves, in memory that ends where their operands end: what the sanitizers would
// see of a step outside. Their results are tested from Python.

#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "core/cpu.h"
#include "core/half.h"
#include "kernels/product_kernels.h"
#include "layers/product_tasks.h"

namespace blasformer {

namespace {

template <class Visit>
void each_isa(const Visit& visit) {
  const std::string before = active_isa_name();
  for (const std::string& isa : detected_isas()) {
    use_isa(isa);
    visit();
  }
  use_isa(before);
}

std::size_t size(Index extent) { return static_cast<std::size_t>(extent); }

// left (rows, depth) right (depth, columns), whose columns are dense, + 1.
template <class Stored>
std::vector<float> product(Index rows, Index columns, Index depth, const std::vector<float>& left,
                           const std::vector<Stored>& right, bool from_memory = false) {
  const ProductKernels<float, Stored>& kernels = product_kernels<float, Stored>();
  const auto multiply = from_memory ? kernels.multiply_from_memory : kernels.multiply;
  std::vector<float> strips(size(rows * depth)), start(size(columns), 1.0f), c(size(rows * columns));
  // The number before what is packed is read, too.
  std::vector<Stored> packed(size(1 + round_up(columns, kernels.panel) * depth));
  kernels.pack_left({left.data(), depth, 1}, rows, depth, strips.data());
  kernels.pack_right({right.data(), 1, depth}, depth, columns, packed.data() + 1);
  multiply(strips.data(), rows, depth, {packed.data() + 1, kernels.panel * depth, kernels.panel}, columns,
           start.data(), 0, c.data(), columns);
  return c;
}

// The same where the right side is read as it lies.
std::vector<float> in_place_product(Index rows, Index columns, Index depth, const std::vector<float>& left,
                                    const std::vector<float>& right) {
  const ProductKernels<float>& packing = product_kernels<float>();
  const InPlaceProductKernels<float>& kernels = in_place_product_kernels<float>();
  const Index stride = round_up(rows, kernels.lanes);
  std::vector<float> packed(size(round_up(rows, packing.panel) * depth));
  std::vector<float> sums(size(columns * stride), 1.0f), c(size(rows * columns));
  packing.pack_right({left.data(), 1, depth}, depth, rows, packed.data());
  kernels.multiply({right.data(), 1, depth}, columns, depth, packed.data(), rows, sums.data(), stride);
  kernels.write(sums.data(), stride, rows, columns, c.data(), columns);
  return c;
}

// The same where whole panels are read as they lie, in lines `line` numbers apart. The right side ends
// with the last number of the last line: what is read beyond it is found by the address sanitizer.
std::vector<float> lying_product(Index rows, Index columns, Index depth, const std::vector<float>& left,
                                 const std::vector<float>& right, Index line) {
  const ProductKernels<float>& kernels = product_kernels<float>();
  std::vector<float> strips(size(rows * depth)), start(size(columns), 1.0f), c(size(rows * columns));
  std::vector<float> lines(size((depth - 1) * line + columns), std::numeric_limits<float>::quiet_NaN());
  for (Index k = 0; k < depth; ++k) {
    for (Index j = 0; j < columns; ++j) lines[size(k * line + j)] = right[size(j * depth + k)];
  }
  kernels.pack_left({left.data(), depth, 1}, rows, depth, strips.data());
  kernels.multiply(strips.data(), rows, depth, {lines.data(), kernels.panel, line}, columns, start.data(), 0,
                   c.data(), columns);
  return c;
}

}  // namespace

TEST(columns_are_cut_into_parts_of_whole_units_none_of_which_is_much_smaller) {
  for (const Index columns : {0, 1, 15, 16, 17, 528, 1000, 1040}) {
    for (const Index unit : {1, 16, 32}) {
      for (const Index most : {1, 2, 7, 8}) {
        const ColumnCut cut(columns, unit, most);
        CHECK(cut.parts() >= 1 && cut.parts() <= most && cut.largest() % unit == 0);
        Index end = 0;
        for (Index number = 0; number < cut.parts(); ++number) {
          const ColumnCut::Part part = cut.part(number);
          CHECK(part.begin == end && part.begin % unit == 0 && part.size() <= cut.largest());
          CHECK(part.size() > cut.largest() - 2 * unit);
          end = part.end;
        }
        CHECK(end == columns);
      }
    }
  }
}

TEST(whole_panels_read_as_they_lie_give_the_bits_of_packed_ones_within_their_memory) {
  each_isa([] {
    const Index panel = product_kernels<float>().panel;
    for (const Index depth : {1, 2, 31, 64, 67}) {
      for (const Index panels : {1, 2, 3, 5}) {
        const Index columns = panels * panel;
        std::vector<float> right(size(columns * depth));
        for (std::size_t i = 0; i < right.size(); ++i) right[i] = static_cast<float>(i % 89) / 89 - 0.5f;
        for (const Index rows : {1, 2, 3, 4, 7, 12, 13, 26}) {
          std::vector<float> left(size(rows * depth));
          for (std::size_t i = 0; i < left.size(); ++i) left[i] = static_cast<float>(i % 97) / 97 - 0.5f;
          const std::vector<float> expected = product(rows, columns, depth, left, right);
          for (const Index line : {columns, columns + 1, columns + 37}) {
            const std::vector<float> c = lying_product(rows, columns, depth, left, right, line);
            CHECK(std::memcmp(c.data(), expected.data(), c.size() * sizeof(float)) == 0);
          }
        }
      }
    }
  });
}

TEST(columns_read_as_they_lie_give_the_bits_of_packed_ones_within_their_memory) {
  each_isa([] {
    for (const Index depth : {1, 2, 15, 31, 33, 64, 67}) {
      for (const Index columns : {Index{1}, Index{7}, Index{16}, Index{17}, Index{31}, Index{65},
                                  in_place_product_kernels<float>().most_columns}) {
        std::vector<float> right(size(columns * depth));
        for (std::size_t i = 0; i < right.size(); ++i) right[i] = static_cast<float>(i % 89) / 89 - 0.5f;
        for (const Index rows : {1, 4, 8, 13, 16, 17, 32, 39, 48, 63}) {
          std::vector<float> left(size(rows * depth));
          for (std::size_t i = 0; i < left.size(); ++i) left[i] = static_cast<float>(i % 97) / 97 - 0.5f;
          const std::vector<float> expected = product(rows, columns, depth, left, right);
          const std::vector<float> c = in_place_product(rows, columns, depth, left, right);
          CHECK(std::memcmp(c.data(), expected.data(), c.size() * sizeof(float)) == 0);
        }
      }
    }
  });
}

TEST(columns_in_bfloat16_give_the_bits_of_widened_ones_within_their_memory) {
  each_isa([] {
    for (const Index depth : {1, 2, 15, 31, 33, 64, 67}) {
      for (const Index columns : {1, 7, 16, 17, 31, 33, 65, 97, 130}) {
        std::vector<std::uint16_t> right(size(columns * depth));
        std::vector<float> widened(right.size());
        for (std::size_t i = 0; i < right.size(); ++i) {
          right[i] = float32_to_bfloat16(static_cast<float>(i % 89) / 89 - 0.5f);
          widened[i] = bfloat16_to_float32(right[i]);
        }
        for (const Index rows : {1, 2, 3, 4, 7, 12, 13, 26}) {
          std::vector<float> left(size(rows * depth));
          for (std::size_t i = 0; i < left.size(); ++i) left[i] = static_cast<float>(i % 97) / 97 - 0.5f;
          const std::vector<float> expected = product(rows, columns, depth, left, widened);
          const std::vector<float> c = product(rows, columns, depth, left, right);
          CHECK(std::memcmp(c.data(), expected.data(), c.size() * sizeof(float)) == 0);
        }
      }
    }
  });
}

TEST(panels_from_memory_give_the_bits_of_panels_in_caches) {
  each_isa([] {
    for (const Index depth : {67, 256, 301}) {
      for (const Index columns : {1, 31, 32, 130}) {
        std::vector<float> right(size(columns * depth));
        std::vector<std::uint16_t> halves(right.size());
        for (std::size_t i = 0; i < right.size(); ++i) {
          halves[i] = float32_to_bfloat16(static_cast<float>(i % 89) / 89 - 0.5f);
          right[i] = static_cast<float>(i % 83) / 83 - 0.5f;
        }
        for (const Index rows : {1, 3, 4, 9, 12, 13, 26, 101, 200}) {
          std::vector<float> left(size(rows * depth));
          for (std::size_t i = 0; i < left.size(); ++i) left[i] = static_cast<float>(i % 97) / 97 - 0.5f;
          CHECK(product(rows, columns, depth, left, right, true) ==
                product(rows, columns, depth, left, right));
          CHECK(product(rows, columns, depth, left, halves, true) ==
                product(rows, columns, depth, left, halves));
        }
      }
    }
  });
}

}  // namespace blasformer
