#include "layers/split_matrix_product.h"

#include <algorithm>
#include <new>
#include <utility>

#include "core/batch_invariance.h"
#include "core/cpu.h"
#include "core/precision.h"
#include "core/thread_pool.h"
#include "core/workspace.h"
#include "kernels/packed_parts.h"
#include "kernels/split_product.h"
#include "layers/pack_right.h"
#include "layers/product_tasks.h"

namespace blasformer {

namespace {

// How a product is cut, as in matrix_product: only the cut of the depth is seen in the results.
struct SplitCut {
  Index depth;            // of a block: the sums of large products, each rounded, stay short
  Index rows;             // of a task: its packed rows fit into half of the L2 cache
  Index columns;          // of a task
  Index columns_at_once;  // packed at a time: the memory for it stays within bounds
};

Index even_part(Index extent, Index largest, Index multiple) {
  return round_up(ceil_div(extent, ceil_div(extent, largest)), multiple);
}

// By the depth alone: a copy that is packed once serves all products.
Index depth_of_blocks(const SplitProductKernels& kernels, Index depth) {
  return even_part(depth, 512, kernels.depth);
}

// Nanoseconds on one core.
double product_work(Index rows, Index columns, Index depth) {
  return 0.006 * static_cast<double>(rows * depth) * static_cast<double>(columns);
}

SplitCut split_cut(const SplitProductKernels& kernels, Index rows, Index columns, Index depth) {
  constexpr Index packed_bytes = 48 << 20, largest_rows = 192;
  const Index enough_tasks = enough_product_tasks(product_work(rows, columns, depth));
  SplitCut cut{};
  cut.depth = depth_of_blocks(kernels, depth);
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
// One part of a copy that is kept, on AVX512_BF16 (Zen 5, 768 x 768): 41 us for 8 rows, 52 for 16, where
// vectors need 39 and 77.
bool is_large_enough(Index rows, Index columns, Index depth) {
  const Index least_rows = batch_invariant() ? 0 : current_precision() == Precision::medium ? 8 : 24;
  return rows >= least_rows && columns >= 24 && depth >= 32;
}

// Packed columns: blocks of the depth, each [panel] of `bundle` bytes, however deep the last block is.
struct SplitPanels {
  const unsigned char* data;
  Index count, bundle;
  Index first;  // the panel that a product begins with
};

template <class Stored>
void pack_panels(const SplitProductKernels& kernels, Index block, Index depth, Index columns,
                 MatrixView<Stored> right, unsigned char* packed) {
  const Index panels = ceil_div(columns, kernels.lines), bundle = kernels.packed_bytes(block);
  parallel_for(panels * ceil_div(depth, block), 0.2 * static_cast<double>(columns * depth),
               [&](Index task, int) {
                 const Index first = task % panels * kernels.lines, k = task / panels * block;
                 pack_right(kernels, right.from(k, first), std::min(block, depth - k),
                            std::min(kernels.lines, columns - first), packed + task * bundle);
               });
}

void multiply_panels(const SplitProductKernels& kernels, const SplitCut& cut, Index rows, Index columns,
                     Index depth, MatrixView<float> left, const SplitPanels& right, const float* bias,
                     Write write, float* c, Index c_stride) {
  const Index row_blocks = ceil_div(rows, cut.rows), groups = ceil_div(columns, cut.columns);
  const Index read_by_all = row_blocks == 1 ? rows * depth * Index{sizeof(float)} : 0;
  const Work work(product_work(rows, columns, depth), read_by_all);
  parallel_for(row_blocks * groups, work, [&](Index task, int) {
    const Index row = task / groups * cut.rows, first = task % groups * cut.columns;
    const Index m = std::min(cut.rows, rows - row), n = std::min(cut.columns, columns - first);
    float* const target = c + row * c_stride + first;
    void* const strips = thread_workspace(ceil_div(m, kernels.lines) * kernels.packed_bytes(cut.depth));
    const float* start = write == Write::add ? target : bias ? bias + first : nullptr;
    Index start_stride = write == Write::add ? c_stride : 0;
    for (Index k = 0, block = 0; k < depth; k += cut.depth, ++block) {
      const Index deep = std::min(cut.depth, depth - k);
      kernels.pack_left(left.from(row, k), m, deep, strips);
      const Index panel = block * right.count + right.first + first / kernels.lines;
      if (!kernels.multiply(strips, m, deep, right.data + panel * right.bundle, right.bundle, n, start,
                            start_stride, target, c_stride))
        throw std::bad_alloc();
      start = target;
      start_stride = c_stride;
    }
  });
}

}  // namespace

const SplitProductKernels* split_kernels_for(Index rows, Index columns, Index depth) {
  return is_large_enough(rows, columns, depth) ? split_product_kernels(current_precision()) : nullptr;
}

namespace {

template <class Stored>
bool multiply(Index rows, Index columns, Index depth, MatrixView<float> left, MatrixView<Stored> right,
              const float* bias, Write write, float* c, Index c_stride) {
  const SplitProductKernels* const kernels = split_kernels_for(rows, columns, depth);
  if (kernels == nullptr) return false;
  const SplitCut cut = split_cut(*kernels, rows, columns, depth);
  const Index bundle = kernels->packed_bytes(cut.depth);
  for (Index begin = 0; begin < columns; begin += cut.columns_at_once) {
    const Index width = std::min(cut.columns_at_once, columns - begin);
    const Index panels = ceil_div(width, kernels->lines);
    const SharedWorkspace workspace(ceil_div(depth, cut.depth) * panels * bundle);
    unsigned char* const packed = static_cast<unsigned char*>(workspace.data());
    pack_panels(*kernels, cut.depth, depth, width, right.from(0, begin), packed);
    multiply_panels(*kernels, cut, rows, width, depth, left, SplitPanels{packed, panels, bundle, 0},
                    bias ? bias + begin : nullptr, write, c + begin, c_stride);
  }
  return true;
}

}  // namespace

bool split_matrix_product(Index rows, Index columns, Index depth, MatrixView<float> left,
                          MatrixView<float> right, const float* bias, Write write, float* c, Index c_stride) {
  return multiply(rows, columns, depth, left, right, bias, write, c, c_stride);
}

bool split_matrix_product(Index rows, Index columns, Index depth, MatrixView<float> left,
                          MatrixView<std::uint16_t> right, const float* bias, Write write, float* c,
                          Index c_stride) {
  return multiply(rows, columns, depth, left, right, bias, write, c, c_stride);
}

template <class Stored>
PackedSplitRight::PackedSplitRight(const SplitProductKernels& kernels, Index depth, Index columns,
                                   MatrixView<Stored> right)
    : kernels_(&kernels), depth_(depth), panels_(ceil_div(columns, kernels.lines)), bundle_(0) {
  const Index block = depth_of_blocks(kernels, depth), whole = kernels.packed_bytes(block);
  const Index count = ceil_div(depth, block) * panels_;
  memory_ = Tensor<unsigned char>({count * whole});
  pack_panels(kernels, block, depth, columns, right, memory_.data());
  for (Index i = 0; i < count; ++i) {
    const Index deep = std::min(block, depth - i / panels_ * block);
    bundle_ = std::max(bundle_, used_bytes(memory_.data() + i * whole, deep));
  }
  if (bundle_ == whole) return;
  Tensor<unsigned char> used({count * bundle_});
  for (Index i = 0; i < count; ++i)
    std::copy_n(memory_.data() + i * whole, bundle_, used.data() + i * bundle_);
  memory_ = std::move(used);
}

template PackedSplitRight::PackedSplitRight(const SplitProductKernels&, Index, Index, MatrixView<float>);
template PackedSplitRight::PackedSplitRight(const SplitProductKernels&, Index, Index,
                                            MatrixView<std::uint16_t>);

bool PackedSplitRight::can_begin_at(Index column) const { return column % kernels_->lines == 0; }

void PackedSplitRight::product(Index rows, Index columns, MatrixView<float> left, Index first_column,
                               const float* bias, float* c, Index c_stride) const {
  const SplitCut cut = split_cut(*kernels_, rows, columns, depth_);
  const SplitPanels panels{memory_.data(), panels_, bundle_, first_column / kernels_->lines};
  multiply_panels(*kernels_, cut, rows, columns, depth_, left, panels, bias, Write::replace, c, c_stride);
}

}  // namespace blasformer
