#include "layers/matrix_product.h"

#include <algorithm>

#include "core/blas.h"
#include "core/cpu.h"
#include "core/thread_pool.h"
#include "core/workspace.h"
#include "layers/split_matrix_product.h"

namespace blasformer {

namespace {

// How a product is cut: by shape alone. Only the cut of the depth is seen in the results, and it depends on
// the depth alone; sums of blocks, each begun anew, also keep their accuracy where the depth is large.
struct ProductCut {
  Index depth;            // of a block: a strip of rows and a panel of columns fit into the L1 cache together
  Index rows;             // of a task: its packed rows fit into the L2 cache
  Index columns;          // of a task, whole panels
  Index columns_at_once;  // packed at a time: the memory for it stays within bounds
};

Index even_part(Index extent, Index largest, Index multiple) {
  return round_up(ceil_div(extent, ceil_div(extent, largest)), multiple);
}

ProductCut product_cut(Index rows, Index columns, Index depth, Index panel, Index item_size) {
  constexpr Index enough_tasks = 8, packed_bytes = 32 << 20;
  ProductCut cut{};
  // float64 is expected to be exact to its last digits: its sums are shorter.
  cut.depth = even_part(depth, item_size == 4 ? 512 : 128, 1);
  // An even number of blocks: two cores, or four, finish together.
  constexpr Index largest_rows = 192;
  const Index row_blocks = rows <= largest_rows ? 1 : round_up(ceil_div(rows, largest_rows), 2);
  cut.rows = ceil_div(rows, row_blocks);
  cut.columns_at_once =
      std::max(panel, std::min(round_up(columns, panel), packed_bytes / item_size / depth / panel * panel));
  const Index at_once = std::min(columns, cut.columns_at_once);
  const Index groups = std::min(ceil_div(enough_tasks, row_blocks), ceil_div(at_once, 128));
  cut.columns = even_part(at_once, ceil_div(at_once, groups), panel);
  return cut;
}

// Where there is no AVX2 OpenBLAS has kernels for what there is, such as AVX, and ours would be SSE2's: it is
// up to twice as fast. (Everywhere else ours is as fast or faster: benchmarks/README.md.)
bool blas_is_faster() { return active_isa() == Isa::baseline; }

template <class T>
void blas_product(Index rows, Index columns, Index depth, MatrixView<T> left, MatrixView<T> right,
                  const T* bias, Write write, T* c, Index c_stride, double work) {
  const ProductCut cut = product_cut(rows, columns, std::max<Index>(depth, 1), 16, sizeof(T));
  const Index groups = ceil_div(columns, cut.columns);
  // Of a single row or column both strides may be 1.
  const auto transpose = [](const MatrixView<T>& x, Index width) {
    return x.column_stride == 1 && x.row_stride >= width ? blas::Transpose::no : blas::Transpose::yes;
  };
  const auto stride = [](const MatrixView<T>& x, blas::Transpose transposed) {
    return transposed == blas::Transpose::no ? x.row_stride : x.column_stride;
  };
  const blas::Transpose left_as = transpose(left, depth), right_as = transpose(right, columns);
  parallel_for(ceil_div(rows, cut.rows) * groups, work, [&](Index task, int) {
    const Index row = task / groups * cut.rows, first = task % groups * cut.columns;
    const Index m = std::min(cut.rows, rows - row), n = std::min(cut.columns, columns - first);
    T* const target = c + row * c_stride + first;
    if (write == Write::replace && bias != nullptr) {
      for (Index i = 0; i < m; ++i) std::copy_n(bias + first, n, target + i * c_stride);
    }
    const T beta = write == Write::add || bias != nullptr ? 1 : 0;
    blas::gemm(left_as, right_as, m, n, depth, T(1), left.from(row, 0).data, stride(left, left_as),
               right.from(0, first).data, stride(right, right_as), beta, target, c_stride);
  });
}

}  // namespace

template <class T>
void matrix_product(Index rows, Index columns, Index depth, MatrixView<T> left, MatrixView<T> right,
                    const T* bias, Write write, T* c, Index c_stride) {
  if (rows == 0 || columns == 0) return;
  if constexpr (sizeof(T) == sizeof(float)) {
    if (split_matrix_product(rows, columns, depth, left, right, bias, write, c, c_stride)) return;
  }
  const double per_flop = sizeof(T) == 4 ? 0.01 : 0.02;  // nanoseconds
  const double work = 2 * per_flop * static_cast<double>(rows * depth) * static_cast<double>(columns);
  if (blas_is_faster())
    return blas_product(rows, columns, depth, left, right, bias, write, c, c_stride, work);
  const ProductKernels<T>& kernels = product_kernels<T>();
  const Index panel = kernels.panel, item = static_cast<Index>(sizeof(T));
  const ProductCut cut = product_cut(rows, columns, std::max<Index>(depth, 1), panel, item);
  const Index row_blocks = ceil_div(rows, cut.rows);

  for (Index begin = 0; begin < columns; begin += cut.columns_at_once) {
    const Index width = std::min(cut.columns_at_once, columns - begin);
    const Index padded = round_up(width, panel);
    // Blocks of the depth, each [panel][depth][column].
    T* const packed = static_cast<T*>(shared_workspace(padded * std::max<Index>(depth, 1) * item));
    const Index panels = padded / panel, panels_of_task = std::max<Index>(1, 16384 / (panel * cut.depth));
    const Index parts = ceil_div(panels, panels_of_task), blocks = ceil_div(depth, cut.depth);
    parallel_for(parts * blocks, 0.4 * static_cast<double>(padded * depth), [&](Index task, int) {
      const Index first = task % parts * panels_of_task * panel, k = task / parts * cut.depth;
      const Index count = std::min(panels_of_task * panel, width - first),
                  deep = std::min(cut.depth, depth - k);
      kernels.pack_right(right.from(k, begin + first), deep, count, packed + k * padded + first * deep);
    });

    const Index groups = ceil_div(width, cut.columns);
    parallel_for(row_blocks * groups, work * static_cast<double>(width) / static_cast<double>(columns),
                 [&](Index task, int) {
                   const Index row = task / groups * cut.rows, first = task % groups * cut.columns;
                   const Index m = std::min(cut.rows, rows - row), n = std::min(cut.columns, width - first);
                   T* const target = c + row * c_stride + begin + first;
                   T* const strips = static_cast<T*>(thread_workspace(m * cut.depth * item));
                   const T* start = write == Write::add ? target : bias ? bias + begin + first : nullptr;
                   Index start_stride = write == Write::add ? c_stride : 0;
                   for (Index k = 0; k == 0 || k < depth; k += cut.depth) {
                     const Index deep = std::min(cut.depth, depth - k);
                     kernels.pack_left(left.from(row, k), m, deep, strips);
                     kernels.multiply(strips, m, deep, packed + k * padded + first * deep, deep * panel, n,
                                      start, start_stride, target, c_stride);
                     start = target;
                     start_stride = c_stride;
                   }
                 });
  }
}

template void matrix_product(Index, Index, Index, MatrixView<float>, MatrixView<float>, const float*, Write,
                             float*, Index);
template void matrix_product(Index, Index, Index, MatrixView<double>, MatrixView<double>, const double*,
                             Write, double*, Index);

}  // namespace blasformer
