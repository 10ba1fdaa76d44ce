#pragma once

// A block of keys or values, where the caller keeps it, and what happens when some of it must not be seen.

#include "kernels/isa/query_tile.h"
#include "kernels/isa/stored_rows.h"
#include "kernels/isa/visible_queries.h"
#include "kernels/split_product.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

// Asks for a row of keys or values that will be read a little later. Few queries leave so little to compute
// that the speed of memory is all there is, and the hardware's own prefetching stops at the end of every
// page.
template <class Stored>
constexpr Index kRowsAhead = sizeof(Stored) == 2 ? 24 : 12;
template <class T>
inline void prefetch_row(const T* row, Index columns) {
  constexpr Index line = 64 / static_cast<Index>(sizeof(T));
  for (Index c = 0; c < columns; c += line) __builtin_prefetch(row + c);
}

// In which order few queries take the numbers of a row, and so add up their products (stored_rows.h): by what
// they are, not by how they lie, or the bits of a score would change with that.
enum class RowOrder { plain, float16, bfloat16 };

template <class T>
RowOrder row_order(const AttentionProblem& p, const AttentionOperand& x, Index columns) {
  const bool whole = columns % (2 * Simd<T>::lanes) == 0;
  if (sizeof(T) != sizeof(float) || !p.few_queries() || p.ordered_scores || !whole) return RowOrder::plain;
#if !defined(BLASFORMER_ISA_baseline)
  if (x.dtype == DType::float16) return RowOrder::float16;
#endif
  return x.dtype == DType::bfloat16 ? RowOrder::bfloat16 : RowOrder::plain;
}

// Keys or values [first, first + count) of a head, in place if they can be read so, else copied, in the type
// computed in, into `buffer`; and, where a product wants them so, packed.
template <class T>
struct KeyBlock {
  const T* data;
  Index row_stride, column_stride;
  const unsigned char* strips = nullptr;  // the rows as left operand of split products, or null
  Index strip_lines = 1, strip_bytes = 0;
  RowOrder order = RowOrder::plain;
  const std::uint16_t* halves = nullptr;  // the rows as they are stored, where they are read so, or null
  Index halves_stride = 0;

  // If there are strips, the row is the first of one.
  KeyBlock from(Index row) const {
    KeyBlock rest = *this;
    rest.data += row * row_stride;
    if (strips != nullptr) rest.strips += row / strip_lines * strip_bytes;
    if (halves != nullptr) rest.halves += row * halves_stride;
    return rest;
  }
};

// The rows from `first` on in place, if they can be read so: by few queries, or by a product of pairs.
template <class T>
KeyBlock<T> halves_block(const AttentionProblem& p, const AttentionOperand& x, Index batch, Index key_head,
                         Index first, Index columns) {
  KeyBlock<T> block = {};
  block.order = row_order<T>(p, x, columns);
  if ((block.order == RowOrder::plain && p.pairs == nullptr) || x.column_stride != 1) return block;
  block.halves = static_cast<const std::uint16_t*>(x.data) + x.offset(batch, key_head) + first * x.row_stride;
  block.halves_stride = x.row_stride;
  return block;
}

// Calls body(type of rows, the first one, from one to the next).
template <class T, class Body>
void with_stored_rows(const KeyBlock<T>& block, Body body) {
  if constexpr (sizeof(T) == sizeof(float)) {
#if !defined(BLASFORMER_ISA_baseline)
    if (block.halves != nullptr && block.order == RowOrder::float16)
      return body(Float16Row(), block.halves, block.halves_stride);
#endif
    if (block.halves != nullptr) return body(Bfloat16Row(), block.halves, block.halves_stride);
    if (block.order == RowOrder::bfloat16) return body(WidenedBfloat16Row(), block.data, block.row_stride);
  }
  body(PlainRow<T>(), block.data, block.row_stride);
}

// Rows that lie whole pages apart, as those of 16 heads of 64 side by side, share a few sets of the caches,
// which do not keep a block of them: every tile of queries would read it from further away. With wide tiles
// a copy takes about what it saves. Old over new time with AVX2 (Zen 4, two threads, float32), forward,
// forward + backward: 16 heads of 64, 512 tokens 1.06, 1.08, 1024 tokens 1.08, 1.04, 2048 tokens 1.17, 1.04;
// 32 heads of 128, 1024 tokens 1.04, 0.99; 197 tokens 0.98, 1.13; with two tiles (128 tokens) 0.92; with
// AVX-512 0.89 to 1.07.
template <class T>
bool tiles_need_copy([[maybe_unused]] const AttentionOperand& x, [[maybe_unused]] Index tiles) {
#if defined(BLASFORMER_ISA_avx512)
  return false;
#else
  constexpr Index page_bytes = 4096, enough_tiles = 4;
  return tiles >= enough_tiles && x.column_stride == 1 && x.row_stride != 0 &&
         x.row_stride * Index{sizeof(T)} % page_bytes == 0;
#endif
}

template <class T>
bool needs_copy(const AttentionProblem& p, const AttentionOperand& x, Index tiles) {
  return x.dtype != dtype_of<T>() || ((p.few_queries() || p.split != nullptr) && x.column_stride != 1) ||
         tiles_need_copy<T>(x, tiles);
}

// Elements of T that the copy of a block takes, which so many tiles of queries read.
template <class T>
Index copy_size(const AttentionProblem& p, const AttentionOperand& x, Index columns, Index tiles) {
  if (!needs_copy<T>(p, x, tiles)) return 0;
  return kMostKeys * columns * (p.pairs != nullptr && x.column_stride != 1 ? 2 : 1);
}

template <class T>
KeyBlock<T> key_block(const AttentionProblem& p, const AttentionOperand& x, Index batch, Index key_head,
                      Index first, Index count, Index columns, Index tiles, T* buffer,
                      unsigned char* strips = nullptr) {
  const Index start = x.offset(batch, key_head) + first * x.row_stride;
  KeyBlock<T> block = halves_block<T>(p, x, batch, key_head, first, columns);
  block.data = static_cast<const T*>(x.data) + start;
  block.row_stride = x.row_stride;
  block.column_stride = x.column_stride;
  if (needs_copy<T>(p, x, tiles)) {
    copy_rows(x, start, count, columns, buffer, columns);
    block.data = buffer;
    block.row_stride = columns;
    block.column_stride = 1;
    if (p.pairs != nullptr && x.column_stride != 1) {
      auto* halves = reinterpret_cast<std::uint16_t*>(buffer + kMostKeys * columns);
      copy_halves(x, start, count, columns, halves);
      block.halves = halves;
      block.halves_stride = columns;
    }
  }
  if constexpr (sizeof(T) == sizeof(float)) {
    if (p.split != nullptr && strips != nullptr) {
      p.split->pack_left({block.data, block.row_stride, block.column_stride}, count, columns, strips);
      block.strips = strips;
      block.strip_lines = p.split->lines;
      block.strip_bytes = p.split->packed_bytes(columns);
    }
  }
  return block;
}

// In place, if they can be read so, or as key_block gives them.
template <class T>
KeyBlock<T> stored_block(const AttentionProblem& p, const AttentionOperand& x, Index batch, Index key_head,
                         Index first, Index count, Index columns, Index tiles, T* buffer,
                         unsigned char* strips = nullptr) {
  const KeyBlock<T> block = halves_block<T>(p, x, batch, key_head, first, columns);
  if (block.halves != nullptr) return block;
  return key_block(p, x, batch, key_head, first, count, columns, tiles, buffer, strips);
}

// The sum of x * 0 over a row: NaN in some lane, unless all of the row is finite.
template <class T>
typename Simd<T>::Vector zeros_of_row(const T* row, Index columns, Index column_stride) {
  using S = Simd<T>;
  auto zero = S::zero();
  if (column_stride == 1) {
    Index c = 0;
    for (; c + S::lanes <= columns; c += S::lanes) zero += S::load(row + c) * S::zero();
    if (c < columns) zero += S::load_first(row + c, columns - c) * S::zero();
  } else {
    for (Index c = 0; c < columns; ++c) zero += S::broadcast(row[c * column_stride]) * S::zero();
  }
  return zero;
}

template <class T>
bool is_finite_row(const T* row, Index columns, Index column_stride) {
  return Simd<T>::sum(zeros_of_row(row, columns, column_stride)) == T(0);
}

// Whether all rows of a block are finite: found out once for all tiles that meet it, when one asks.
template <class T>
class FiniteRows {
 public:
  FiniteRows(const KeyBlock<T>& rows, Index count, Index columns)
      : rows_(rows), count_(count), columns_(columns) {}
  bool all() {
    if (!asked_) {
      auto zero = Simd<T>::zero();
      for (Index k = 0; k < count_; ++k)
        zero += zeros_of_row(rows_.data + k * rows_.row_stride, columns_, rows_.column_stride);
      all_ = Simd<T>::sum(zero) == T(0);
      asked_ = true;
    }
    return all_;
  }

 private:
  KeyBlock<T> rows_;
  Index count_, columns_;
  bool asked_ = false, all_ = false;
};

// Keys or values that some queries of a tile may not see must be finite before they are multiplied by a
// weight of 0. A row that is not is zeroed in a copy of the block and remembered; the queries that do see it
// get its share separately (add_unsafe_rows).
struct UnsafeRows {
  Index count = 0;
  Index key[kMostKeys];
};

template <class T>
KeyBlock<T> replace_unsafe_rows(const KeyBlock<T>& rows, Index count, Index columns, T* buffer,
                                UnsafeRows& unsafe,
                                bool (*is_safe)(const T*, Index, Index) = is_finite_row<T>) {
  for (Index k = 0; k < count; ++k) {
    if (!is_safe(rows.data + k * rows.row_stride, columns, rows.column_stride))
      unsafe.key[unsafe.count++] = k;
  }
  if (unsafe.count == 0) return rows;
  for (Index k = 0, next = 0; k < count; ++k) {
    const bool zeroed = next < unsafe.count && unsafe.key[next] == k;
    if (zeroed) ++next;
    for (Index c = 0; c < columns; ++c) {
      buffer[k * columns + c] = zeroed ? T(0) : rows.data[k * rows.row_stride + c * rows.column_stride];
    }
  }
  return {buffer, columns, 1};
}

// out[c][query] += weights[key][query] * row[key][c] for the unsafe keys and the queries that see them.
template <class T>
void add_unsafe_rows(const QueryTile<T>& tile, const KeyBlock<T>& rows, Index columns,
                     const UnsafeRows& unsafe, const VisibleQueries& visible, const T* weights, T* out) {
  using S = Simd<T>;
  for (Index u = 0; u < unsafe.count; ++u) {
    const Index k = unsafe.key[u];
    for (Index c = 0; c < columns; ++c) {
      const auto x = S::broadcast(rows.data[k * rows.row_stride + c * rows.column_stride]);
      for (Index v = 0; v < tile.vectors; ++v) {
        T* target = out + c * tile.width + v * S::lanes;
        const auto old = S::load(target);
        const auto sum = S::fma(S::load(weights + k * tile.width + v * S::lanes), x, old);
        S::store(target, S::select(S::from_bits(visible.bits[k] >> (v * S::lanes)), sum, old));
      }
    }
  }
}

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
