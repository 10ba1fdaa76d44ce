#include "layers/split_matrix_product.h"

#include <algorithm>
#include <new>

#include "core/cpu.h"
#include "core/precision.h"
#include "core/thread_pool.h"
#include "core/workspace.h"
#include "kernels/split_product.h"

namespace blasformer {

namespace {

// How a product is cut: by shape alone, as in matrix_product.
struct SplitCut {
  Index depth;            // of a block: the sums of large products, each rounded, stay short
  Index rows;             // of a task: its packed rows fit into half of the L2 cache
  Index columns;          // of a task
  Index columns_at_once;  // packed at a time: the memory for it stays within bounds
};

Index even_part(Index extent, Index largest, Index multiple) {
  return round_up(ceil_div(extent, ceil_div(extent, largest)), multiple);
}

SplitCut split_cut(const SplitProductKernels& kernels, Index rows, Index columns, Index depth) {
  constexpr Index enough_tasks = 8, packed_bytes = 48 << 20, largest_rows = 192;
  SplitCut cut{};
  cut.depth = even_part(depth, 512, kernels.depth);
  const Index row_blocks = rows <= largest_rows ? 1 : round_up(ceil_div(rows, largest_rows), 2);
  cut.rows = round_up(ceil_div(rows, row_blocks), kernels.lines);
  const Index panel_bytes = kernels.packed_bytes(cut.depth) * ceil_div(depth, cut.depth);
  cut.columns_at_once = std::min(round_up(columns, kernels.lines),
                                 std::max<Index>(packed_bytes / panel_bytes, 1) * kernels.lines);
  const Index at_once = std::min(columns, cut.columns_at_once);
  const Index groups =
      std::min(ceil_div(enough_tasks, ceil_div(rows, cut.rows)), ceil_div(at_once, 4 * kernels.lines));
  cut.columns = even_part(at_once, ceil_div(at_once, groups), kernels.lines);
  return cut;
}

// Packing into three parts takes 0.2 ns for an element of the right operand where packing into none takes
// 0.07 (Zen 5); on the tiles a row then costs it some 0.006 ns where vectors need 0.013 (Sapphire Rapids).
bool is_large_enough(Index rows, Index columns, Index depth) {
  return rows >= 24 && columns >= 24 && depth >= 32;
}

}  // namespace

bool split_matrix_product(Index rows, Index columns, Index depth, MatrixView<float> left,
                          MatrixView<float> right, const float* bias, Write write, float* c, Index c_stride) {
  if (!is_large_enough(rows, columns, depth)) return false;
  const SplitProductKernels* const found = split_product_kernels(current_precision());
  if (found == nullptr) return false;
  const SplitProductKernels& kernels = *found;
  const SplitCut cut = split_cut(kernels, rows, columns, depth);
  const Index row_blocks = ceil_div(rows, cut.rows), depth_blocks = ceil_div(depth, cut.depth);
  const Index bundle = kernels.packed_bytes(cut.depth);

  for (Index begin = 0; begin < columns; begin += cut.columns_at_once) {
    const Index width = std::min(cut.columns_at_once, columns - begin);
    const Index panels = ceil_div(width, kernels.lines);
    // Blocks of the depth, each [panel].
    const SharedWorkspace workspace(depth_blocks * panels * bundle);
    unsigned char* const packed = static_cast<unsigned char*>(workspace.data());
    parallel_for(panels * depth_blocks, 0.2 * static_cast<double>(width * depth), [&](Index task, int) {
      const Index first = task % panels * kernels.lines, k = task / panels * cut.depth;
      kernels.pack_right(right.from(k, begin + first), std::min(cut.depth, depth - k),
                         std::min(kernels.lines, width - first), packed + task * bundle);
    });

    const Index groups = ceil_div(width, cut.columns);
    const double work = 0.006 * static_cast<double>(rows * depth) * static_cast<double>(width);
    parallel_for(row_blocks * groups, work, [&](Index task, int) {
      const Index row = task / groups * cut.rows, first = task % groups * cut.columns;
      const Index m = std::min(cut.rows, rows - row), n = std::min(cut.columns, width - first);
      float* const target = c + row * c_stride + begin + first;
      void* const strips = thread_workspace(ceil_div(m, kernels.lines) * bundle);
      const float* start = write == Write::add ? target : bias ? bias + begin + first : nullptr;
      Index start_stride = write == Write::add ? c_stride : 0;
      for (Index block = 0; block < depth_blocks; ++block) {
        const Index k = block * cut.depth, deep = std::min(cut.depth, depth - k);
        kernels.pack_left(left.from(row, k), m, deep, strips);
        // The panels of a block lie side by side however deep it is: the last one may be less so.
        const unsigned char* const panel = packed + block * panels * bundle;
        if (!kernels.multiply(strips, m, deep, panel + first / kernels.lines * bundle, bundle, n, start,
                              start_stride, target, c_stride))
          throw std::bad_alloc();
        start = target;
        start_stride = c_stride;
      }
    });
  }
  return true;
}

}  // namespace blasformer
