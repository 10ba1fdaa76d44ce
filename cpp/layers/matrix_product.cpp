#include "layers/matrix_product.h"

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <type_traits>
#include <vector>

#include "core/batch_invariance.h"
#include "core/blas.h"
#include "core/cpu.h"
#include "core/precision.h"
#include "core/tensor.h"
#include "core/thread_pool.h"
#include "core/workspace.h"
#include "kernels/half_kernels.h"
#include "kernels/row_kernels.h"
#include "kernels/split_product.h"
#include "layers/chained_product.h"
#include "layers/product_tasks.h"
#include "layers/split_matrix_product.h"

namespace blasformer {

namespace {

// How a product is cut. Only the cut of the depth is seen in the results of our kernels, and it depends on
// the depth alone; sums of blocks, each begun anew, also keep their accuracy where the depth is large.
struct ProductCut {
  Index depth;         // of a block: a strip of rows and a panel of columns fit into the L1 cache together
  Index rows;          // of a task: its packed rows fit into the L2 cache
  Index rows_at_once;  // packed at a time, a multiple of `rows`: the memory for them stays within bounds
  Index column_parts;  // whole panels, a task each
};

Index even_part(Index extent, Index largest, Index multiple) {
  return round_up(ceil_div(extent, ceil_div(extent, largest)), multiple);
}

// A product of which the depth is the columns of another begins every block with a panel of those. float64 is
// expected to be exact to its last digits: its sums are shorter.
template <class T>
Index depth_of_blocks(Index depth) {
  return even_part(std::max<Index>(depth, 1), sizeof(T) == 4 ? 512 : 128, kWidestPanel<T>);
}

// depth_at_once: how much of the depth of a row is packed at a time.
template <class T>
ProductCut product_cut(Index rows, Index columns, Index depth, Index depth_at_once, Index panel,
                       Index enough_tasks) {
  constexpr Index packed_bytes = 8 << 20, item = sizeof(T);
  // An even number of blocks: two cores, or four, finish together.
  constexpr Index largest_rows = 256;
  const Index row_blocks = rows <= largest_rows ? 1 : round_up(ceil_div(rows, largest_rows), 2);
  const Index block_rows = ceil_div(rows, row_blocks);
  const Index at_once =
      std::max<Index>(1, packed_bytes / (item * std::max<Index>(depth_at_once, 1) * block_rows));
  const Index chunks = ceil_div(row_blocks, at_once);
  const Index blocks_at_once = ceil_div(row_blocks, chunks);
  return {depth_of_blocks<T>(depth), block_rows, block_rows * blocks_at_once,
          std::min(ceil_div(enough_tasks, blocks_at_once), ceil_div(columns, panel))};
}

// Nanoseconds on one core. Of few rows reading the right side takes the time.
template <class T>
double product_work(Index rows, Index columns, Index depth) {
  const double per_flop = sizeof(T) == 4 ? 0.01 : 0.02;
  const Index fewest = 4;
  return 2 * per_flop * static_cast<double>(std::max(rows, fewest) * depth) * static_cast<double>(columns);
}

// The same where threads share the columns: each reads all rows of the left side.
template <class T>
Work work_by_columns(Index rows, Index columns, Index depth) {
  return {product_work<T>(rows, columns, depth), rows * depth * Index{sizeof(T)}};
}

// The cut where the right side may be so small that every core keeps all of it in its L2 cache: then tasks
// are rows alone, which the core that multiplies them packs, and which it often has written just before.
template <class T, class Stored>
ProductCut small_right_cut(Index rows, Index columns, Index depth, Index depth_at_once, Index panel) {
  constexpr Index least_rows = 24, right_bytes = 256 << 10, item = sizeof(Stored);
  const Index enough_tasks = enough_product_tasks(product_work<T>(rows, columns, depth));
  ProductCut cut = product_cut<T>(rows, columns, depth, depth_at_once, panel, enough_tasks);
  const Index row_blocks = std::min(enough_tasks, rows / least_rows / 2 * 2);
  if (row_blocks == 0 || round_up(columns, panel) * depth_at_once * item > right_bytes) return cut;
  cut.rows = std::min(cut.rows, ceil_div(rows, row_blocks));
  cut.rows_at_once = cut.rows_at_once / cut.rows * cut.rows;
  cut.column_parts = 1;
  return cut;
}

// Columns that are packed at a time: the memory for them stays within bounds.
template <class T>
Index columns_at_once(Index columns, Index depth, Index panel) {
  constexpr Index packed_bytes = 32 << 20, item = sizeof(T);
  return std::max(panel, std::min(round_up(columns, panel),
                                  packed_bytes / item / std::max<Index>(depth, 1) / panel * panel));
}

// Where there is no AVX2 OpenBLAS has kernels for what there is, such as AVX, and ours would be SSE2's: it is
// up to twice as fast. (Everywhere else ours is as fast or faster: benchmarks/README.md.) But what its sums
// are depends on the shape of the product.
bool blas_is_better() { return active_isa() == Isa::baseline && !batch_invariant(); }

template <class T>
void blas_product(Index rows, Index columns, Index depth, MatrixView<T> left, MatrixView<T> right,
                  const T* bias, Write write, T* c, Index c_stride, double work) {
  constexpr Index enough_tasks = 8;  // for any number of threads: its sums depend on the cut
  const ProductCut cut = product_cut<T>(rows, columns, depth, depth, 16, enough_tasks);
  const ColumnCut column_cut(columns, 16, cut.column_parts);
  const Index groups = column_cut.parts();
  // Of a single row or column both strides may be 1.
  const auto transpose = [](const MatrixView<T>& x, Index width) {
    return x.column_stride == 1 && x.row_stride >= width ? blas::Transpose::no : blas::Transpose::yes;
  };
  const auto stride = [](const MatrixView<T>& x, blas::Transpose transposed) {
    return transposed == blas::Transpose::no ? x.row_stride : x.column_stride;
  };
  const blas::Transpose left_as = transpose(left, depth), right_as = transpose(right, columns);
  parallel_for(ceil_div(rows, cut.rows) * groups, work, [&](Index task, int) {
    const ColumnCut::Part part = column_cut.part(task % groups);
    const Index row = task / groups * cut.rows, first = part.begin;
    const Index m = std::min(cut.rows, rows - row), n = part.size();
    T* const target = c + row * c_stride + first;
    if (write == Write::replace && bias != nullptr) {
      for (Index i = 0; i < m; ++i) std::copy_n(bias + first, n, target + i * c_stride);
    }
    const T beta = write == Write::add || bias != nullptr ? 1 : 0;
    blas::gemm(left_as, right_as, m, n, depth, T(1), left.from(row, 0).data, stride(left, left_as),
               right.from(0, first).data, stride(right, right_as), beta, target, c_stride);
  });
}

// Elements in a cache line.
template <class T>
constexpr Index kLine = 64 / Index{sizeof(T)};

// What is packed for a loop: one copy, or one for every worker, who packs it before its first task.
template <class T>
struct Copies {
  T* data;
  Index stride;  // from the copy of a worker to that of the next; 0 if there is but one
  bool for_each_worker() const { return stride > 0; }
  T* of(int worker) const { return data + worker * stride; }
};

// Of what is no larger every worker packs a copy for itself rather than read what another one has packed.
// Time of one copy over that of a worker's own, linear() where two cores share their last cache (Zen 4,
// AVX-512 and AVX2, float32): 64 rows, 64 -> 64 features 1.34 and 1.20, 64 -> 256 1.49 and 1.30, 256 -> 64
// 1.52 and 1.25, 256 -> 256 1.24 and 1.08; 128 rows, 128 -> 128 1.29 and 1.13; 256 rows, 64 -> 64 1.10 and
// 1.04, 128 -> 128 1.15 and 1.08, 256 -> 256 1.06 and 1.03. Where they do not share it: 1.4 to 2.2.
// The left side that is packed for a right side read in place: 48 rows, 768 -> 768, 1.04 and 1.02; 64 rows
// 1.03 and 1.01; 96 rows, 384 -> 384, 1.07 and 1.01. Where they do not share it: 1.10 to 1.36.
template <class T>
Index stride_of_copies(Index size, int threads) {
  constexpr Index copied_bytes = 256 << 10;
  return threads > 1 && size * Index{sizeof(T)} <= copied_bytes ? round_up(size, kLine<T>) : 0;
}

// What is left free before packed columns: a cache line where ProductKernels read the number before.
template <class T, class Stored>
constexpr Index kFree = std::is_same_v<T, Stored> ? 0 : 64 / Index{sizeof(Stored)};

// Packed columns: blocks of the depth, each [panel][depth][column].
template <class Stored>
struct PackedColumns {
  const Stored* data;
  Index width;  // whole panels
  Index panel;
  void begin(int) const {}
  // Those from a column on, a whole panel, of a block of the depth that begins at k.
  Panels<Stored> of_block(int, Index k, Index deep, Index column) const {
    return {data + k * width + column * deep, deep * panel, panel};
  }
};

// Columns as they lie, whole panels.
template <class T>
struct LyingColumns {
  MatrixView<T> right;
  Index panel;
  void begin(int) const {}
  Panels<T> of_block(int, Index k, Index, Index column) const {
    return {right.from(k, column).data, panel, right.row_stride};
  }
};

// Whether to read whole panels of the right side as they lie. Time of packing it, over that of reading it so,
// for linear_backward (Zen 4, two threads, float32, AVX-512): 48 rows, 64 -> 256 and 256 -> 64 features 1.3
// and 1.5, 128 -> 128 1.38, 256 -> 256 1.34, 512 -> 512 1.08 to 1.19; 128 rows, 1.24, 1.34, 1.34, 1.15, 1.03;
// 250 rows 1.16, 1.23, 1.17, 1.10, 1.02; 1000 rows 1.0 to 1.6; more features, and weights of more than what
// is allowed here, 0.78 to 1.0: the L2 cache does not keep them, and lines a page apart do not stay in L1.
// float64: 1.15 to 1.37 for 128 rows, but 0.84 for 384 -> 384 if more were allowed. AVX2, whose lines are
// half as long: 1.04 to 1.4 for 48 to 250 rows and up to 128 features, 0.95 to 1.0 for 1000 rows.
template <class T>
bool faster_as_it_lies(Index rows, Index columns, Index depth, MatrixView<T> right) {
  const bool is_avx512 = active_isa() == Isa::avx512;
  const Index most_rows = is_avx512 ? std::numeric_limits<Index>::max() : 512;
  const Index most_bytes = !is_avx512 ? 128 << 10 : sizeof(T) == 4 ? 1 << 20 : 256 << 10;
  return right.column_stride == 1 && rows <= most_rows &&
         columns * std::max<Index>(depth, 1) <= most_bytes / Index{sizeof(T)};
}

template <class T, class Stored>
void pack_panels(const ProductKernels<T, Stored>& kernels, Index block, Index depth, Index columns,
                 MatrixView<Stored> right, Stored* packed) {
  const Index panel = kernels.panel, width = round_up(columns, panel);
  const Index panels_of_task = std::max<Index>(1, 16384 / (panel * block));
  const Index parts = ceil_div(width / panel, panels_of_task), blocks = ceil_div(depth, block);
  parallel_for(parts * blocks, 0.4 * static_cast<double>(width * depth), [&](Index task, int) {
    const Index first = task % parts * panels_of_task * panel, k = task / parts * block;
    const Index count = std::min(panels_of_task * panel, columns - first), deep = std::min(block, depth - k);
    kernels.pack_right(right.from(k, first), deep, count, packed + k * width + first * deep);
  });
}

// Columns of which every worker packs a copy.
template <class T, class Stored>
struct CopiedColumns {
  const ProductKernels<T, Stored>& kernels;
  MatrixView<Stored> right;
  Index block, depth, columns;
  Copies<Stored> copies;
  void begin(int worker) const { pack_panels(kernels, block, depth, columns, right, copies.of(worker)); }
  Panels<Stored> of_block(int worker, Index k, Index deep, Index column) const {
    const PackedColumns<Stored> packed{copies.of(worker), round_up(columns, kernels.panel), kernels.panel};
    return packed.of_block(worker, k, deep, column);
  }
};

// Rows of the left side: [block of rows][block of the depth][strip].
template <class T, class Stored>
void pack_strips(const ProductKernels<T, Stored>& kernels, const ProductCut& cut, Index rows, Index depth,
                 MatrixView<T> left, T* strips) {
  const Index row_blocks = ceil_div(rows, cut.rows), blocks = ceil_div(depth, cut.depth);
  parallel_for(row_blocks * blocks, 0.2 * static_cast<double>(rows * depth), [&](Index task, int) {
    const Index row = task / blocks * cut.rows, k = task % blocks * cut.depth;
    const Index m = std::min(cut.rows, rows - row);
    kernels.pack_left(left.from(row, k), m, std::min(cut.depth, depth - k), strips + row * depth + k * m);
  });
}

// Where the sums of a part of c begin.
template <class T>
struct Start {
  const T* data;
  Index stride;
};

template <class T>
Start<T> start_of(Write write, const T* bias, Index column, const T* target, Index c_stride) {
  if (write == Write::add) return {target, c_stride};
  return {bias ? bias + column : nullptr, 0};
}

// c = left times columns [first_column, ..) of right. `strips`: room for cut.rows_at_once rows.
template <class T, class Stored, class Columns>
void multiply_panels(const ProductKernels<T, Stored>& kernels,
                     typename ProductKernels<T, Stored>::Multiply multiply, const ProductCut& cut, Index rows,
                     Index columns, Index depth, MatrixView<T> left, const Columns& right, Index first_column,
                     const T* bias, Write write, Copies<T> strips, T* c, Index c_stride, int threads) {
  const ColumnCut column_cut(columns, kernels.panel, cut.column_parts);
  const Index groups = column_cut.parts();
  const bool is_strip = rows == 1 && left.column_stride == 1;  // as it lies
  for (Index top = 0; top < rows; top += cut.rows_at_once) {
    const Index height = std::min(cut.rows_at_once, rows - top);
    const auto pack = [&](int worker) {
      pack_strips(kernels, cut, height, depth, left.from(top, 0), strips.of(worker));
    };
    if (!is_strip && groups > 1 && !strips.for_each_worker()) pack(0);
    const auto begin = [&](int worker) {
      if (!is_strip && groups > 1 && strips.for_each_worker()) pack(worker);
      right.begin(worker);
    };
    const Work work = groups > 1 && height <= cut.rows ? work_by_columns<T>(height, columns, depth)
                                                       : product_work<T>(height, columns, depth);
    parallel_for(
        ceil_div(height, cut.rows) * groups, work, begin,
        [&](Index task, int worker) {
          const ColumnCut::Part part = column_cut.part(task % groups);
          const Index row = task / groups * cut.rows, first = part.begin;
          const Index m = std::min(cut.rows, height - row), n = part.size();
          T* const own = strips.of(worker) + row * depth;
          if (!is_strip && groups == 1) pack_strips(kernels, cut, m, depth, left.from(top + row, 0), own);
          const T* const packed = is_strip ? left.data : own;
          T* const target = c + (top + row) * c_stride + first;
          Start<T> start = start_of(write, bias, first, target, c_stride);
          for (Index k = 0; k == 0 || k < depth; k += cut.depth) {
            const Index deep = std::min(cut.depth, depth - k);
            multiply(packed + k * m, m, deep, right.of_block(worker, k, deep, first_column + first), n,
                     start.data, start.stride, target, c_stride);
            start = {target, c_stride};
          }
        },
        threads);
  }
}

// The same where all rows are one block: each panel is read by one task alone, which packs it into its cache
// and multiplies by it at once, or reads it as it lies.
template <class T, class Stored>
void multiply_while_packing(const ProductKernels<T, Stored>& kernels, const ProductCut& cut, Index rows,
                            Index columns, Index depth, MatrixView<T> left, MatrixView<Stored> right,
                            const T* bias, Write write, T* c, Index c_stride) {
  const ColumnCut column_cut(columns, kernels.panel, cut.column_parts);
  const Work work = work_by_columns<T>(rows, columns, depth);
  const int threads = most_threads(column_cut.parts(), work.nanoseconds);
  const Index stride = stride_of_copies<T>(rows * depth, threads);
  const SharedWorkspace workspace(std::max(rows * depth, threads * stride) * Index{sizeof(T)});
  const Copies<T> strips{static_cast<T*>(workspace.data()), stride};
  const auto pack = [&](int worker) { pack_strips(kernels, cut, rows, depth, left, strips.of(worker)); };
  if (!strips.for_each_worker()) pack(0);
  const auto begin = [&](int worker) {
    if (strips.for_each_worker()) pack(worker);
  };
  bool as_it_lies = false;
  if constexpr (std::is_same_v<Stored, T>) as_it_lies = faster_as_it_lies(rows, columns, depth, right);
  const auto multiply = [&](Index task, int worker) {
    constexpr Index free = kFree<T, Stored>;
    Stored* const panel =
        static_cast<Stored*>(thread_workspace((free + kernels.panel * cut.depth) * Index{sizeof(Stored)})) +
        free;
    const auto [begin, end] = column_cut.part(task);
    for (Index k = 0; k == 0 || k < depth; k += cut.depth) {
      const Index deep = std::min(cut.depth, depth - k);
      for (Index column = begin; column < end; column += kernels.panel) {
        const Index n = std::min(kernels.panel, end - column);
        const MatrixView<Stored> part = right.from(k, column);
        Panels<Stored> panels{part.data, 0, part.row_stride};
        if (!as_it_lies || n < kernels.panel) {
          kernels.pack_right(part, deep, n, panel);
          panels = {panel, 0, kernels.panel};
        }
        T* const target = c + column;
        const Start<T> start =
            k > 0 ? Start<T>{target, c_stride} : start_of(write, bias, column, target, c_stride);
        kernels.multiply(strips.of(worker) + k * rows, rows, deep, panels, n, start.data, start.stride,
                         target, c_stride);
      }
    }
  };
  parallel_for(column_cut.parts(), work, begin, multiply, threads);
}

// How many rows each part has when so many are cut into two.
template <class T>
Index rows_of_half(Index rows) {
  return round_up(ceil_div(rows, 2), product_kernels<T>().panel);
}

// Into how many parts of the rows such a product is cut, each for cores of its own, which pack it themselves.
// What one core packs and another reads has to cross from cache to cache; the right side, which nobody has
// just written, is read by both. Parts that are not even, that are too short to read it twice, and right
// sides that come from memory do not pay. Time of one part over that of two where two cores share their last
// cache, and where they do not (a round trip of a line takes 55 and 330 ns; Zen 4, two threads, float32):
//   128 rows,   768 -> 768   768 -> 3072   3072 -> 768  |  256 rows, 768 -> 768  3072 -> 768
//   AVX-512     1.03, 1.13   1.01, 1.00    1.00, 1.12   |            1.02, 1.15  1.00, 1.13
// Against packing: 384 rows, 768 -> 768, 1.03 and 1.37; 512 rows 1.01 and 1.24, 768 -> 3072 1.04 and 1.24.
// AVX2: 128 rows 0.99 to 1.01 and 0.98 to 1.11; against packing, 256 and 512 rows 1.00 to 1.03 and 1.05 to
// 1.18, float64 0.99 to 1.08 and 1.00 to 1.22.
template <class T>
Index row_parts_in_place(Index rows, Index columns, Index depth) {
  constexpr Index least_rows = 128, right_bytes = 10 << 20;
  const bool is_even = 2 * rows_of_half<T>(rows) - rows <= rows / 16;
  return rows >= least_rows && is_even && columns * depth <= right_bytes / Index{sizeof(T)} ? 2 : 1;
}

// Whether to read the right side as it lies. Time of packing it, over that of reading it so (Zen 5, two
// threads, float32; float64 gains up to 0.08 more):
//   128 rows,   768 -> 768   768 -> 3072   3072 -> 768   1024 -> 1024   4096 -> 4096
//   AVX-512        1.07         1.08          1.09           1.08           1.26
//   AVX2           1.04         1.03          1.05           1.02           1.11
// 256 rows: 0.98 to 1.07 with AVX-512, 0.96 to 1.04 with AVX2; 512 rows with AVX-512: 1.01. Half of a vector
// that is not filled takes what is gained: 0.84 for 33 rows, 0.98 for 40, 1.01 for 44 and 1.10 for 48 with
// AVX-512 (768 -> 768). A depth of 256: 0.96 to 1.05, of 128: 0.90 to 1.02, of 64: 0.77 to 0.93.
// Zen 4: 128 rows 1.06 to 1.21 with AVX-512 and 1.04 to 1.16 with AVX2, 256 rows 1.01 to 1.04 and 1.00; more
// rows with AVX-512 0.95 to 1.01. Of two parts (row_parts_in_place) each may have 256 rows.
template <class T>
bool faster_in_place(Index rows, Index columns, Index depth, MatrixView<T> right) {
  const Index lanes = in_place_product_kernels<T>().lanes, unused = round_up(rows, lanes) - rows;
  const Index parts = row_parts_in_place<T>(rows, columns, depth);
  const Index most_rows = active_isa() == Isa::avx512 || parts == 2 ? 256 : 128;
  constexpr Index least_depth = 384;
  constexpr Index most_packed = (8 << 20) / Index{sizeof(T)};  // memory for it stays within bounds
  return right.row_stride == 1 && rows <= most_rows * parts && 2 * unused < lanes && depth >= least_depth &&
         rows * depth <= most_packed;
}

// The same where the right side is read as it lies.
template <class T>
void multiply_in_place(Index rows, Index columns, Index depth, MatrixView<T> left, MatrixView<T> right,
                       const T* bias, T* c, Index c_stride) {
  const InPlaceProductKernels<T>& kernels = in_place_product_kernels<T>();
  const ProductKernels<T>& packing = product_kernels<T>();
  const Index block = depth_of_blocks<T>(depth), panel = packing.panel, width = round_up(rows, panel);
  const Index row_parts = row_parts_in_place<T>(rows, columns, depth);
  const Work work =
      row_parts == 1 ? work_by_columns<T>(rows, columns, depth) : product_work<T>(rows, columns, depth);
  const Index rows_of_part = row_parts == 2 ? rows_of_half<T>(rows) : rows;
  const ColumnCut cut(columns, kernels.lanes, ceil_div(enough_product_tasks(work.nanoseconds), row_parts));
  const int threads = most_threads(row_parts * cut.parts(), work.nanoseconds);
  const Index packed_size = width * depth;
  const Index copy = row_parts == 1 ? stride_of_copies<T>(packed_size, threads) : 0;
  const SharedWorkspace workspace(std::max(packed_size, threads * copy) * Index{sizeof(T)});
  const Copies<T> copies{static_cast<T*>(workspace.data()), copy};
  const auto pack = [&](int worker) {
    parallel_for(width / panel, 0.4 * static_cast<double>(width * depth), [&](Index task, int) {
      const Index row = task * panel, count = std::min(panel, rows - row);
      const MatrixView<T> columns_of_left{left.from(row, 0).data, left.column_stride, left.row_stride};
      for (Index k = 0; k < depth; k += block) {
        const Index deep = std::min(block, depth - k);
        packing.pack_right(columns_of_left.from(k, 0), deep, count,
                           copies.of(worker) + k * width + row * deep);
      }
    });
  };
  if (!copies.for_each_worker()) pack(0);
  const auto begin = [&](int worker) {
    if (copies.for_each_worker()) pack(worker);
  };
  const Index at_once = even_part(cut.largest(), kernels.most_columns, kernels.lanes);
  const Index stride = round_up(rows_of_part, kernels.lanes);
  const auto multiply = [&](Index task, int worker) {
    const T* const packed = copies.of(worker);
    T* const sums = static_cast<T*>(thread_workspace(at_once * stride * Index{sizeof(T)}));
    const Index row = task / cut.parts() * rows_of_part, m = std::min(rows_of_part, rows - row);
    const auto [first, end] = cut.part(task % cut.parts());
    for (Index column = first; column < end; column += at_once) {
      const Index n = std::min(at_once, end - column);
      for (Index i = 0; i < n; ++i)  // x + -0 is x for all x, 0 and -0, too
        std::fill_n(sums + i * stride, stride, bias ? bias[column + i] : T(-0.0));
      for (Index k = 0; k < depth; k += block) {
        const Index deep = std::min(block, depth - k);
        kernels.multiply(right.from(k, column), n, deep, packed + k * width + row * deep, m, sums, stride);
      }
      kernels.write(sums, stride, m, n, c + row * c_stride + column, c_stride);
    }
  };
  parallel_for(row_parts * cut.parts(), work, begin, multiply, threads);
}

// The same for so few rows that packing would take longer than the product.
constexpr Index kOrderedRows = 4;
template <class T>
void ordered_product(Index rows, Index columns, Index depth, MatrixView<T> left, MatrixView<T> right,
                     const T* bias, T* c, Index c_stride) {
  constexpr Index columns_of_task = 64;
  const Work work(0.1 * sizeof(T) / 4 * static_cast<double>(columns * depth),
                  rows * depth * Index{sizeof(T)});
  parallel_for(ceil_div(columns, columns_of_task), work, [&](Index task, int) {
    const Index first = task * columns_of_task, count = std::min(columns_of_task, columns - first);
    row_kernels<T>().ordered_linear(left.data, left.row_stride, rows, depth, depth_of_blocks<T>(depth),
                                    right.from(0, first).data, right.column_stride,
                                    bias ? bias + first : nullptr, count, c + first, c_stride);
  });
}

// OpenBLAS reads no bfloat16: it is given all of it widened, in memory of the call.
void blas_product(Index rows, Index columns, Index depth, MatrixView<float> left,
                  MatrixView<std::uint16_t> right, const float* bias, Write write, float* c, Index c_stride,
                  double work) {
  const SharedWorkspace workspace(columns * depth * Index{sizeof(float)});
  float* const widened = static_cast<float*>(workspace.data());
  parallel_for(columns, 0.2 * static_cast<double>(columns * depth), [&](Index column, int) {
    half_kernels().widen_bfloat16(right.from(0, column).data, depth, widened + column * depth);
  });
  blas_product(rows, columns, depth, left, MatrixView<float>{widened, 1, depth}, bias, write, c, c_stride,
               work);
}

template <class T, class Stored>
void product(Index rows, Index columns, Index depth, MatrixView<T> left, MatrixView<Stored> right,
             const T* bias, Write write, T* c, Index c_stride) {
  if (rows == 0 || columns == 0) return;
  if constexpr (sizeof(T) == sizeof(float)) {
    if (split_matrix_product(rows, columns, depth, left, right, bias, write, c, c_stride)) return;
  }
  if (blas_is_better())
    return blas_product(rows, columns, depth, left, right, bias, write, c, c_stride,
                        product_work<T>(rows, columns, depth));
  // Without it that is for linear(). The sums are those of what follows.
  if constexpr (std::is_same_v<Stored, T>) {
    if (batch_invariant() && rows <= kOrderedRows && write == Write::replace && left.column_stride == 1 &&
        right.row_stride == 1)
      return ordered_product(rows, columns, depth, left, right, bias, c, c_stride);
  }
  const ProductKernels<T, Stored>& kernels = product_kernels<T, Stored>();
  if constexpr (std::is_same_v<Stored, T>) {
    if (write == Write::replace && faster_in_place(rows, columns, depth, right))
      return multiply_in_place(rows, columns, depth, left, right, bias, c, c_stride);
  }
  const Index at_once = columns_at_once<Stored>(columns, depth, kernels.panel);
  // What is packed at a time stays in the caches until it is read.
  const Index block = depth_of_blocks<T>(depth);
  const Index deep = std::min(std::max<Index>(depth, 1), block * std::max<Index>(1, 512 / block));
  const ProductCut cut =
      small_right_cut<T, Stored>(rows, std::min(columns, at_once), depth, deep, kernels.panel);
  if (rows == cut.rows && columns <= at_once)
    return multiply_while_packing(kernels, cut, rows, columns, depth, left, right, bias, write, c, c_stride);
  bool as_it_lies = false;
  if constexpr (std::is_same_v<Stored, T>)
    as_it_lies = columns % kernels.panel == 0 && faster_as_it_lies(rows, columns, depth, right);
  const Index widest = std::min(columns, at_once);
  const int threads = most_threads(ceil_div(std::min(rows, cut.rows_at_once), cut.rows) * cut.column_parts,
                                   product_work<T>(rows, widest, deep));
  // Every panel begins at a cache line.
  constexpr Index free = kFree<T, Stored>;
  const Index left_size = round_up(std::min(rows, cut.rows_at_once) * deep, kLine<T>);
  const Index right_size =
      as_it_lies ? 0 : round_up(free + round_up(widest, kernels.panel) * deep, kLine<Stored>);
  const bool is_copied = !as_it_lies && cut.column_parts == 1 && rows <= cut.rows_at_once;
  const Index stride = is_copied ? stride_of_copies<Stored>(right_size, threads) : 0;
  const SharedWorkspace workspace(left_size * Index{sizeof(T)} +
                                  std::max(right_size, threads * stride) * Index{sizeof(Stored)});
  const Copies<T> strips{static_cast<T*>(workspace.data()), 0};
  const Copies<Stored> packed{reinterpret_cast<Stored*>(strips.data + left_size) + free, stride};
  for (Index begin = 0; begin < columns; begin += at_once) {
    const Index width = std::min(at_once, columns - begin);
    for (Index k = 0; k == 0 || k < depth; k += deep) {
      const Index part = std::min(deep, depth - k);
      const auto multiply_by = [&](const auto& panels) {
        multiply_panels(kernels, kernels.multiply, cut, rows, width, part, left.from(0, k), panels, 0,
                        bias ? bias + begin : nullptr, k > 0 ? Write::add : write, strips, c + begin,
                        c_stride, threads);
      };
      if constexpr (std::is_same_v<Stored, T>) {
        if (as_it_lies) {
          multiply_by(LyingColumns<T>{right.from(k, begin), kernels.panel});
          continue;
        }
      }
      if (packed.for_each_worker()) {
        multiply_by(CopiedColumns<T, Stored>{kernels, right.from(k, begin), cut.depth, part, width, packed});
        continue;
      }
      pack_panels(kernels, cut.depth, part, width, right.from(k, begin), packed.data);
      multiply_by(PackedColumns<Stored>{packed.data, round_up(width, kernels.panel), kernels.panel});
    }
  }
}

}  // namespace

template <class T>
void matrix_product(Index rows, Index columns, Index depth, MatrixView<T> left, MatrixView<T> right,
                    const T* bias, Write write, T* c, Index c_stride) {
  product(rows, columns, depth, left, right, bias, write, c, c_stride);
}

void matrix_product(Index rows, Index columns, Index depth, MatrixView<float> left,
                    MatrixView<std::uint16_t> right, const float* bias, Write write, float* c,
                    Index c_stride) {
  product(rows, columns, depth, left, right, bias, write, c, c_stride);
}

template void matrix_product(Index, Index, Index, MatrixView<float>, MatrixView<float>, const float*, Write,
                             float*, Index);
template void matrix_product(Index, Index, Index, MatrixView<double>, MatrixView<double>, const double*,
                             Write, double*, Index);

// A core reads all of the right sides for each of its blocks of rows. Encoder layers with GELU, time with
// one product after the other over time with blocks (Zen 5, two threads, AVX-512): width 768, 1.00 for 128
// and 197 rows, 1.00 to 1.03 for 256, 1.02 to 1.04 for 512 and 1024; width 384, 1.01 for 128 and 256, 1.00
// for 512, 1.04 to 1.08 for 1024; gated ones 0.99 to 1.01 for 256, 1.03 to 1.06 for 512 and 1024; stacks of
// width 768 and 384, whose weights come from memory, 1.02 and 1.04 for 1024. With AVX2 0.99 to 1.02, with
// float64 1.00 to 1.06. Networks alone, gated: 896 -> 4864, 1.07 for 512 rows, 1.06 for 2048; 1536 -> 8960,
// 1.01 and 1.02; 2048 -> 5504, 0.99 for 2048; with GELU 1152 -> 4304, 1.00 for 729, 1.06 for 2048. Of 16384
// rows with 3072 columns between, 196 MB are not needed.
bool chaining_pays(Index rows) {
  constexpr Index rows_of_thread = 128;
  return rows >= rows_of_thread * num_threads();
}

namespace {

// Of a task: as many tasks for each thread.
Index rows_of_chain(Index rows) {
  constexpr Index largest_rows = 192;
  return ceil_div(rows, round_up(ceil_div(rows, largest_rows), num_threads()));
}

template <class T>
const SplitProductKernels* split_kernels([[maybe_unused]] Index rows, [[maybe_unused]] Index columns,
                                         [[maybe_unused]] Index depth) {
  if constexpr (sizeof(T) == sizeof(float)) return split_kernels_for(rows, columns, depth);
  return nullptr;
}

template <class T, class Stored>
class PackedPanels final : public PackedRight<T> {
 public:
  PackedPanels(Index columns, Index depth, MatrixView<Stored> right)
      : kernels_(product_kernels<T, Stored>()),
        depth_(depth),
        width_(round_up(columns, kernels_.panel)),
        memory_({kFree<T, Stored> + width_ * depth}) {
    pack_panels(kernels_, depth_of_blocks<T>(depth), depth, columns, right,
                memory_.data() + kFree<T, Stored>);
  }

  bool fits(Index rows, Index columns) const override {
    return split_kernels<T>(rows, columns, depth_) == nullptr && !blas_is_better() &&
           &kernels_ == &product_kernels<T, Stored>();
  }
  bool is_split() const override { return false; }
  bool can_begin_at(Index column) const override { return column % kernels_.panel == 0; }
  Index nbytes() const override { return width_ * depth_ * Index{sizeof(Stored)}; }

  void product(Index rows, Index columns, MatrixView<T> left, Index first_column, const T* bias, T* c,
               Index c_stride) const override {
    if (rows == 0 || columns == 0) return;
    const ProductCut cut =
        apart(small_right_cut<T, Stored>(rows, columns, depth_, depth_, kernels_.panel), rows, columns);
    const int threads = most_threads(ceil_div(std::min(rows, cut.rows_at_once), cut.rows) * cut.column_parts,
                                     product_work<T>(rows, columns, depth_));
    const Index height = std::min(rows, cut.rows_at_once);
    const Index stride = cut.column_parts > 1 ? stride_of_copies<T>(height * depth_, threads) : 0;
    const SharedWorkspace workspace(std::max(height * depth_, threads * stride) * Index{sizeof(T)});
    multiply_panels(kernels_, kernels_.multiply_from_memory, cut, rows, columns, depth_, left, packed(),
                    first_column, bias, Write::replace, Copies<T>{static_cast<T*>(workspace.data()), stride},
                    c, c_stride, threads);
  }

  const ProductKernels<T, Stored>& kernels() const { return kernels_; }
  Index depth() const { return depth_; }
  PackedColumns<Stored> packed() const { return {memory_.data() + kFree<T, Stored>, width_, kernels_.panel}; }

 private:
  // Two blocks of rows instead of one, each for cores of its own, as in row_parts_in_place().
  ProductCut apart(ProductCut cut, Index rows, Index columns) const {
    constexpr Index least_rows = 128, right_bytes = 5 << 19;
    if (cut.rows < rows || rows < least_rows || columns * depth_ * Index{sizeof(Stored)} > right_bytes)
      return cut;
    cut.rows = ceil_div(rows, 2);
    cut.rows_at_once = 2 * cut.rows;
    cut.column_parts = ceil_div(cut.column_parts, 2);
    return cut;
  }

  const ProductKernels<T, Stored>& kernels_;
  Index depth_, width_;
  Tensor<Stored> memory_;
};

class PackedParts final : public PackedRight<float> {
 public:
  template <class Stored>
  PackedParts(const SplitProductKernels& kernels, Index columns, Index depth, MatrixView<Stored> right)
      : depth_(depth), split_(kernels, depth, columns, right) {}

  bool fits(Index rows, Index columns) const override {
    return split_kernels_for(rows, columns, depth_) == split_.kernels();
  }
  bool is_split() const override { return true; }
  bool can_begin_at(Index column) const override { return split_.can_begin_at(column); }
  Index nbytes() const override { return split_.nbytes(); }

  void product(Index rows, Index columns, MatrixView<float> left, Index first_column, const float* bias,
               float* c, Index c_stride) const override {
    if (rows == 0 || columns == 0) return;
    split_.product(rows, columns, left, first_column, bias, c, c_stride);
  }

 private:
  Index depth_;
  PackedSplitRight split_;
};

}  // namespace

// What is between is made for one block of the depth of the second product at a time.
template <class T>
bool chained_product(Index rows, MatrixView<T> left, std::initializer_list<ChainedRight<T>> first,
                     const Between<T>& between, const ChainedRight<T>& second, T* c, Index c_stride) {
  using Packed = PackedPanels<T, T>;
  std::vector<const Packed*> packed;
  for (const ChainedRight<T>& one : first) packed.push_back(dynamic_cast<const Packed*>(&one.right));
  const auto* const last = dynamic_cast<const Packed*>(&second.right);
  if (last == nullptr || std::ranges::count(packed, nullptr) > 0) return false;
  const ProductKernels<T>& kernels = last->kernels();
  const Index depth = packed[0]->depth(), inner = last->depth();
  const Index block = depth_of_blocks<T>(depth), wide = depth_of_blocks<T>(inner);

  const auto products = static_cast<Index>(first.size());
  const Index block_rows = rows_of_chain(rows);
  const double work = product_work<T>(rows, inner, products * depth + second.columns);
  parallel_for(ceil_div(rows, block_rows), work, [&](Index task, int) {
    const Index row = task * block_rows, m = std::min(block_rows, rows - row);
    const Index hidden_size = m * wide;
    T* const strips =
        static_cast<T*>(thread_workspace((m * depth + (products + 1) * hidden_size) * Index{sizeof(T)}));
    T *const hidden_strips = strips + m * depth, *const hidden = hidden_strips + hidden_size;
    T* const target = c + row * c_stride;
    for (Index k = 0; k < depth; k += block)
      kernels.pack_left(left.from(row, k), m, std::min(block, depth - k), strips + k * m);
    for (Index h = 0; h < inner; h += wide) {
      const Index width = std::min(wide, inner - h);
      for (Index i = 0; i < products; ++i) {
        const T* const bias = first.begin()[i].bias;
        T* const result = hidden + i * hidden_size;
        Start<T> start{bias ? bias + h : nullptr, 0};
        for (Index k = 0; k < depth; k += block) {
          const Index deep = std::min(block, depth - k);
          kernels.multiply_from_memory(strips + k * m, m, deep,
                                       packed[static_cast<std::size_t>(i)]->packed().of_block(0, k, deep, h),
                                       width, start.data, start.stride, result, width);
          start = {result, width};
        }
      }
      between(hidden, hidden_size, m * width);
      kernels.pack_left({hidden, width, 1}, m, width, hidden_strips);
      const Start<T> start = h > 0 ? Start<T>{target, c_stride} : Start<T>{second.bias, 0};
      kernels.multiply_from_memory(hidden_strips, m, width, last->packed().of_block(0, h, width, 0),
                                   second.columns, start.data, start.stride, target, c_stride);
    }
  });
  return true;
}

template bool chained_product(Index, MatrixView<float>, std::initializer_list<ChainedRight<float>>,
                              const Between<float>&, const ChainedRight<float>&, float*, Index);
template bool chained_product(Index, MatrixView<double>, std::initializer_list<ChainedRight<double>>,
                              const Between<double>&, const ChainedRight<double>&, double*, Index);

// Six encoder layers of width 384, AVX-512 (Zen 5), two threads: 0.57 ms for 2 rows, 0.93 for 8, 1.38 for
// 16, where reading the weights as they lie takes 0.88, 1.57, 2.08; one row takes the same. Alike on AVX2.
template <class T>
std::shared_ptr<const PackedRight<T>> packed_right(Index rows, Index columns, Index depth,
                                                   MatrixView<T> right) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (const auto* const kernels = split_kernels_for(rows, columns, depth))
      return std::make_shared<PackedParts>(*kernels, columns, depth, right);
  }
  if (blas_is_better()) return nullptr;
  return std::make_shared<PackedPanels<T, T>>(columns, depth, right);
}

// Speed of bfloat16 relative to float32, both packed once (768 x 768, 768 x 3072, 3072 x 768, 384 x 1536 and
// 517 x 1029; Zen 5, two threads). With AVX-512: 1.8 to 2.3 for 1 row, 1.3 to 1.9 for 2, 1.02 for 8, 1.0 to
// 1.03 from 24 rows on; with AVX2: 1.1 to 1.3, 1.02 to 1.2, 0.98, 1.0 to 1.05. Packed anew by each product,
// with AVX-512: 0.7 to 0.9 for 8 to 48 rows, 0.92 to 0.95 for 64, 0.96 to 0.98 for 128, 0.98 to 1.0 for 256,
// 0.99 to 1.01 for 1024: so many need no copy.
std::shared_ptr<const PackedRight<float>> packed_right(Index rows, Index columns, Index depth,
                                                       MatrixView<std::uint16_t> right) {
  constexpr Index many_rows = 512;
  if (const auto* const kernels = split_kernels_for(rows, columns, depth))
    return std::make_shared<PackedParts>(*kernels, columns, depth, right);
  if (rows >= many_rows || blas_is_better()) return nullptr;
  return std::make_shared<PackedPanels<float, std::uint16_t>>(columns, depth, right);
}

template std::shared_ptr<const PackedRight<float>> packed_right(Index, Index, Index, MatrixView<float>);
template std::shared_ptr<const PackedRight<double>> packed_right(Index, Index, Index, MatrixView<double>);

}  // namespace blasformer
