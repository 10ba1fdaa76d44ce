// Matrix products of layers. The register tile is that of attention (block_product.h): as many rows as leave
// the multiply-add units no gaps, times two vectors. Here both operands are packed, for they are read many
// times: a strip of rows lies as [depth][rows], so that one pointer serves all its broadcasting loads, and a
// panel of two vectors of columns as [depth][columns]. A block of strips stays in the L2 cache while the
// panels go by, each panel in L1 while the strips go by (Goto and van de Geijn 2008, "Anatomy of
// high-performance matrix multiplication"). Fewer than four rows take several panels at once: packed weights
// are then read as fast as memory is. More rows ask for the next panel while they multiply by one
// (asking_strips). Where the right side is small, so that packing it would take a part of the time, its whole
// panels are read as they lie, at another distance from line to line.
//
// Columns in bfloat16 are packed as such, and widened in the registers of the tile, whenever they are read: a
// panel takes half the memory, of the caches too, and the two more instructions are done while the
// multiply-add units are busy. The two vectors of a panel alternate number by number: of 32 bits the lower
// half, shifted up, is a number of the first, and the upper half, where it is, one of the second.

#include "kernels/product_kernels.h"

#include <cstring>

#include "kernels/isa/block_product.h"
#include "kernels/isa/table.h"
#include "kernels/isa/transpose.h"

namespace blasformer::BLASFORMER_ISA {

namespace {

template <class T>
constexpr Index kPanel = 2 * Simd<T>::lanes;
static_assert(kWidestPanel<float> % kPanel<float> == 0 && kWidestPanel<double> % kPanel<double> == 0);

// Calls visit(first_row, rows) for each strip: evenly cut, so that none has too few rows to hide the latency
// of its sums.
template <class Visit>
inline void each_strip(Index rows, const Visit& visit) {
  const Index strips = ceil_div(rows, kMaxRows);
  Index row = 0;
  for (Index strip = 0; strip < strips; ++strip) {
    const Index height = ceil_div(rows - row, strips - strip);
    visit(row, height);
    row += height;
  }
}

// out[k * rows + r] = x[r * stride + k] for k from `first` on.
template <class T>
inline void transpose_rest(const T* x, Index stride, Index rows, Index first, Index depth, T* out) {
  for (Index k = first; k < depth; ++k) {
    for (Index r = 0; r < rows; ++r) out[k * rows + r] = x[r * stride + k];
  }
}

#if defined(BLASFORMER_ISA_avx512)
template <class T>
inline void transpose_strip(const T* x, Index stride, Index rows, Index depth, T* out) {
  using S = Simd<T>;
  const Index squares = depth / S::lanes * S::lanes;
  for (Index first = 0; first < rows; first += S::lanes) {
    const Index count = smaller(rows - first, S::lanes);
    const T* row[S::lanes];  // rows that are not there repeat the last one
    for (Index r = 0; r < S::lanes; ++r) row[r] = x + (first + smaller(r, count - 1)) * stride;
    for (Index k = 0; k < squares; k += S::lanes) {
      const auto block = square(row, k);
      for (Index i = 0; i < S::lanes; ++i)
        S::store_first(out + (k + i) * rows + first, block.column[i], count);
    }
  }
  transpose_rest(x, stride, rows, squares, depth, out);
}
#else
inline void transpose_strip(const double* x, Index stride, Index rows, Index depth, double* out) {
  transpose_rest(x, stride, rows, 0, depth, out);
}

inline void store_pairs(__m128 x, Index stride, float* out) {
  _mm_storel_pi(reinterpret_cast<__m64*>(out), x);
  _mm_storeh_pi(reinterpret_cast<__m64*>(out + stride), x);
}

inline void transpose_strip(const float* x, Index stride, Index rows, Index depth, float* out) {
  Index r = 0;
  for (; r + 4 <= rows; r += 4) {
    const float* const row = x + r * stride;
    Index k = 0;
    for (; k + 4 <= depth; k += 4) {
      __m128 a = _mm_loadu_ps(row + k), b = _mm_loadu_ps(row + stride + k);
      __m128 c = _mm_loadu_ps(row + 2 * stride + k), d = _mm_loadu_ps(row + 3 * stride + k);
      transpose_square(a, b, c, d);
      _mm_storeu_ps(out + k * rows + r, a);
      _mm_storeu_ps(out + (k + 1) * rows + r, b);
      _mm_storeu_ps(out + (k + 2) * rows + r, c);
      _mm_storeu_ps(out + (k + 3) * rows + r, d);
    }
    for (; k < depth; ++k) {
      for (Index i = 0; i < 4; ++i) out[k * rows + r + i] = row[i * stride + k];
    }
  }
  for (; r + 2 <= rows; r += 2) {
    const float* const row = x + r * stride;
    Index k = 0;
    for (; k + 4 <= depth; k += 4) {
      const __m128 a = _mm_loadu_ps(row + k), b = _mm_loadu_ps(row + stride + k);
      store_pairs(_mm_unpacklo_ps(a, b), rows, out + k * rows + r);
      store_pairs(_mm_unpackhi_ps(a, b), rows, out + (k + 2) * rows + r);
    }
    for (; k < depth; ++k) {
      for (Index i = 0; i < 2; ++i) out[k * rows + r + i] = row[i * stride + k];
    }
  }
  for (; r < rows; ++r) {
    for (Index k = 0; k < depth; ++k) out[k * rows + r] = x[r * stride + k];
  }
}
#endif

// packed[k * rows + r] = x[k * stride + r]
template <class T, int rows>
inline void copy_strip(const T* x, Index stride, Index depth, T* packed) {
  for (Index k = 0; k < depth; ++k) std::memcpy(packed + k * rows, x + k * stride, rows * sizeof(T));
}

template <class T>
using CopyStrip = void (*)(const T* x, Index stride, Index depth, T* packed);

template <class T>
constexpr CopyStrip<T> kCopyStrip[kMaxRows] = {
    copy_strip<T, 1>,  copy_strip<T, 2>,  copy_strip<T, 3>,
    copy_strip<T, 4>,  copy_strip<T, 5>,  copy_strip<T, 6>,
#if defined(BLASFORMER_ISA_avx512)
    copy_strip<T, 7>,  copy_strip<T, 8>,  copy_strip<T, 9>,
    copy_strip<T, 10>, copy_strip<T, 11>, copy_strip<T, 12>,
#endif
};

template <class T>
void pack_left(MatrixView<T> left, Index rows, Index depth, T* packed) {
  if (left.column_stride == 1) {
    each_strip(rows, [&](Index first, Index height) {
      transpose_strip(left.data + first * left.row_stride, left.row_stride, height, depth,
                      packed + first * depth);
    });
    return;
  }
  // A few lines of what is read are shared among all strips while they are in the L1 cache: that of a whole
  // strip would not stay there, least of all where the lines lie a power of two apart.
  constexpr Index lines = 8;
  for (Index k = 0; k < depth; k += lines) {
    each_strip(rows, [&](Index first, Index height) {
      kCopyStrip<T>[height - 1](left.data + k* left.column_stride + first, left.column_stride,
                                smaller(lines, depth - k), packed + first* depth + k* height);
    });
  }
}

template <class T>
void pack_right(MatrixView<T> right, Index depth, Index columns, T* packed) {
  using S = Simd<T>;
  for (Index first = 0; first < columns; first += kPanel<T>, packed += depth * kPanel<T>) {
    const Index count = smaller(kPanel<T>, columns - first);
    if (right.row_stride == 1) {
      const T* row[kPanel<T>];
      for (Index c = 0; c < kPanel<T>; ++c)  // columns that are not there repeat the last one
        row[c] = right.data + (first + smaller(c, count - 1)) * right.column_stride;
      transpose_rows(row, kPanel<T>, depth, packed);
      continue;
    }
    const Index second = larger(count - S::lanes, 0), begun = smaller(count, S::lanes);
    for (Index k = 0; k < depth; ++k) {
      const T* const row = right.data + k * right.row_stride + first;
      T* const target = packed + k * kPanel<T>;
      if (count == kPanel<T>) {
        S::store(target, S::load(row));
        S::store(target + S::lanes, S::load(row + S::lanes));
      } else {
        S::store(target, S::load_first(row, begun));
        S::store(target + S::lanes, second > 0 ? S::load_first(row + S::lanes, second) : S::zero());
      }
    }
  }
}

// 32 bits of each lane of a vector.
typedef std::uint32_t Words __attribute__((vector_size(sizeof(Simd<float>::Vector))));

inline Words load_words(const std::uint16_t* x) {
  Words words;
  std::memcpy(&words, x, sizeof words);
  return words;
}

// Two numbers, which follow one another in their column, are transposed as one; then those of the two vectors
// change places.
void pack_right_bfloat16(MatrixView<std::uint16_t> right, Index depth, Index columns, std::uint16_t* packed) {
  constexpr Index panel = kPanel<float>, lanes = Simd<float>::lanes;
  for (Index first = 0; first < columns; first += panel, packed += depth * panel) {
    const std::uint16_t* column[panel];
    const float* pairs[panel];           // nothing but vectors of them is loaded
    for (Index c = 0; c < panel; ++c) {  // columns that are not there repeat the last one
      column[c] = right.data + smaller(first + c, columns - 1) * right.column_stride;
      pairs[c] = reinterpret_cast<const float*>(column[c]);
    }
    const Index paired = 2 * transpose_squares(pairs, panel, depth / 2, reinterpret_cast<float*>(packed));
    for (Index k = 0; k < paired; k += 2) {
      std::uint16_t* const line = packed + k * panel;
      const Words a = load_words(line), b = load_words(line + panel);
      const Words even = (a & 0xffffu) | b << 16, odd = a >> 16 | (b & 0xffff0000u);
      std::memcpy(line, &even, sizeof even);
      std::memcpy(line + panel, &odd, sizeof odd);
    }
    for (Index k = paired; k < depth; ++k) {
      for (Index c = 0; c < panel; ++c) packed[k * panel + 2 * (c % lanes) + c / lanes] = column[c][k];
    }
  }
}

// The two vectors of a line of a panel,
template <class T>
inline void load_line(const T* line, typename Simd<T>::Vector* x) {
  x[0] = Simd<T>::load(line);
  x[1] = Simd<T>::load(line + Simd<T>::lanes);
}
// and of one in bfloat16.
inline void load_line(const std::uint16_t* line, Simd<float>::Vector* x) {
#if defined(BLASFORMER_ISA_avx2)
  // Read from one number before, these are upper halves, too. A shift would keep units busy that multiply and
  // add: the tile of 4 rows, in which each waits for the last, took 1.09 times as long as for float32.
  const Words first = load_words(line - 1) & 0xffff0000u;
#else
  const Words first = load_words(line) << 16;
#endif
  x[0] = reinterpret_cast<Simd<float>::Vector>(first);
  x[1] = reinterpret_cast<Simd<float>::Vector>(load_words(line) & 0xffff0000u);
}

// The panels that a tile of so few rows takes at once, or its sums would wait for one another.
#if defined(BLASFORMER_ISA_avx512)
constexpr int panels_at_once(int rows) { return rows == 1 ? 4 : 2; }
constexpr int kFewestRows = 3;
#else
constexpr int panels_at_once(int) { return 2; }
constexpr int kFewestRows = 2;
#endif

// What a tile asks for while it multiplies.
struct NothingAhead {
  template <Index>
  void ask() {}
};

// A part of the next panel, as large as a share of each line that the tile reads. The strips which ask do so
// for a panel together, and memory delivers all the time that they take. (What the hardware asks for by
// itself is late, as a line keeps a tile busy for longer than it looks ahead.)
struct NextPanel {
  const char* data;
  Index strips;  // that ask

  // What strip `number` of those asks for.
  template <class Stored>
  static NextPanel share(const Stored* panel, Index size, Index number, Index strips) {
    return {reinterpret_cast<const char*>(panel + size / strips * number), strips};
  }

  template <Index line_bytes>
  void ask() {
    constexpr Index cache_lines = ceil_div(line_bytes, 64);
    const Index step = line_bytes / cache_lines / strips;
#pragma GCC unroll 8
    for (Index i = 0; i < cache_lines; ++i) __builtin_prefetch(data + i * step, 0, 2);  // to the L2 cache
    data += cache_lines * step;
  }
};

template <class T, class Stored, class Ahead, int rows, int panels>
[[gnu::noinline]] void panel_tile(Index depth, const T* left, const Stored* right, Index panel_stride,
                                  Index line_stride, Ahead ahead, const T* start, Index start_stride, T* c,
                                  Index c_stride) {
  using S = Simd<T>;
  typename S::Vector sum[rows][2 * panels];
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
    __builtin_prefetch(c + r * c_stride, 1);
    __builtin_prefetch(c + r * c_stride + kPanel<T> - 1, 1);
#pragma GCC unroll 8
    for (int v = 0; v < 2 * panels; ++v) sum[r][v] = S::zero();
  }
  for (Index k = 0; k < depth; ++k) {
    typename S::Vector x[2 * panels];
#pragma GCC unroll 4
    for (int p = 0; p < panels; ++p) load_line(right + p * panel_stride, x + 2 * p);
    right += line_stride;
    ahead.template ask<panels * kPanel<T> * Index{sizeof(Stored)}>();
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      const typename S::Vector factor = S::broadcast(left[r]);
#pragma GCC unroll 8
      for (int v = 0; v < 2 * panels; ++v) sum[r][v] = S::fma(factor, x[v], sum[r][v]);
    }
    left += rows;
  }
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < 2 * panels; ++v) {
      const Index place = v * S::lanes;
      if (start != nullptr) sum[r][v] = S::load(start + r * start_stride + place) + sum[r][v];
      S::store(c + r * c_stride + place, sum[r][v]);
    }
  }
}

template <class T, class Stored, class Ahead>
using PanelTile = void (*)(Index depth, const T* left, const Stored* right, Index panel_stride,
                           Index line_stride, Ahead ahead, const T* start, Index start_stride, T* c,
                           Index c_stride);

template <class T, class Stored, class Ahead>
constexpr PanelTile<T, Stored, Ahead> kPanelTiles[] = {
    panel_tile<T, Stored, Ahead, 1, 1>,  panel_tile<T, Stored, Ahead, 2, 1>,
    panel_tile<T, Stored, Ahead, 3, 1>,  panel_tile<T, Stored, Ahead, 4, 1>,
    panel_tile<T, Stored, Ahead, 5, 1>,  panel_tile<T, Stored, Ahead, 6, 1>,
#if defined(BLASFORMER_ISA_avx512)
    panel_tile<T, Stored, Ahead, 7, 1>,  panel_tile<T, Stored, Ahead, 8, 1>,
    panel_tile<T, Stored, Ahead, 9, 1>,  panel_tile<T, Stored, Ahead, 10, 1>,
    panel_tile<T, Stored, Ahead, 11, 1>, panel_tile<T, Stored, Ahead, 12, 1>,
#endif
};

// Of two panels and more.
template <class T, class Stored>
constexpr PanelTile<T, Stored, NothingAhead> kFewRowsTiles[kFewestRows][panels_at_once(1) - 1] = {
#if defined(BLASFORMER_ISA_avx512)
    {panel_tile<T, Stored, NothingAhead, 1, 2>, panel_tile<T, Stored, NothingAhead, 1, 3>,
     panel_tile<T, Stored, NothingAhead, 1, 4>},
    {panel_tile<T, Stored, NothingAhead, 2, 2>},
    {panel_tile<T, Stored, NothingAhead, 3, 2>},
#else
    {panel_tile<T, Stored, NothingAhead, 1, 2>},
    {panel_tile<T, Stored, NothingAhead, 2, 2>},
#endif
};

// Where a panel has fewer columns than it could have.
template <class T, class Stored>
void narrow_tile(Index rows, Index depth, const T* left, Panels<Stored> right, Index columns, const T* start,
                 Index start_stride, T* c, Index c_stride) {
  T tile[kMaxRows * kPanel<T>];
  for (T& element : tile) element = T(-0.0);  // x + -0 is x for all x, 0 and -0, too
  for (Index r = 0; r < rows && start != nullptr; ++r) {
    for (Index i = 0; i < columns; ++i) tile[r * kPanel<T> + i] = start[r * start_stride + i];
  }
  kPanelTiles<T, Stored, NothingAhead>[rows - 1](depth, left, right.data, right.panel_stride,
                                                 right.line_stride, {}, tile, kPanel<T>, tile, kPanel<T>);
  for (Index r = 0; r < rows; ++r) {
    for (Index i = 0; i < columns; ++i) c[r * c_stride + i] = tile[r * kPanel<T> + i];
  }
}

// How many strips of a product ask for the next panel: a power of two, so that their shares make up all of
// it.
//
// Six encoder layers, times without asking over times with it (Zen 5, two threads). Width 768, AVX-512: 0.75
// for 1 row, 0.91 for 3, 1.0 for 6, 1.11 for 12, 1.31 for 20, 1.15 for 48, 1.06 for 128, 1.03 for 256, 1.01
// to 1.05 for 512; AVX2: 1.5 for 8 and 12, 1.3 for 20, 1.14 for 48, 1.05 for 128, 1.02 for 256. Width 384, of
// which caches keep more, AVX-512: 1.3 for 20, 1.09 for 64; AVX2: 1.4 for 4 to 12. Where caches keep all it
// costs 1 %, and 4 % for 3 and 4 rows on AVX2. So it is left to panels that are read from memory, and to sums
// so long that there are many.
inline Index asking_strips(Index rows, Index depth) {
#if defined(BLASFORMER_ISA_avx512)
  constexpr Index fewest_rows = 9;
#else
  constexpr Index fewest_rows = 3;
#endif
  constexpr Index least_depth = 256, most = 16;
  if (rows < fewest_rows || depth < least_depth) return 0;
  const Index strips = ceil_div(rows, kMaxRows);
  Index asking = 1;
  while (2 * asking <= smaller(strips, most)) asking *= 2;
  return asking;
}

template <class T, class Stored, bool from_memory>
void multiply(const T* left, Index rows, Index depth, Panels<Stored> right, Index columns, const T* start,
              Index start_stride, T* c, Index c_stride) {
  Index first = 0;
  if (rows <= kFewestRows) {
    const Index most = panels_at_once(static_cast<int>(rows));
    while (columns - first >= 2 * kPanel<T>) {
      const Index panels = smaller(most, (columns - first) / kPanel<T>);
      kFewRowsTiles<T, Stored>[rows - 1][panels - 2](
          depth, left, right.data, right.panel_stride, right.line_stride, {},
          start != nullptr ? start + first : nullptr, start_stride, c + first, c_stride);
      first += panels * kPanel<T>;
      right.data += panels * right.panel_stride;
    }
  }
  const Index asking = from_memory ? asking_strips(rows, depth) : 0;
  for (; first < columns; first += kPanel<T>, right.data += right.panel_stride) {
    const Index count = smaller(kPanel<T>, columns - first);
    const T* strip = left;
    Index number = 0;
    each_strip(rows, [&](Index row, Index height) {
      const T* const begin = start != nullptr ? start + row * start_stride + first : nullptr;
      T* const target = c + row * c_stride + first;
      if (count < kPanel<T>) {
        narrow_tile(height, depth, strip, right, count, begin, start_stride, target, c_stride);
      } else if (number < asking) {
        const NextPanel next =
            NextPanel::share(right.data + right.panel_stride, depth * kPanel<T>, number, asking);
        kPanelTiles<T, Stored, NextPanel>[height - 1](depth, strip, right.data, right.panel_stride,
                                                      right.line_stride, next, begin, start_stride, target,
                                                      c_stride);
      } else {
        kPanelTiles<T, Stored, NothingAhead>[height - 1](depth, strip, right.data, right.panel_stride,
                                                         right.line_stride, {}, begin, start_stride, target,
                                                         c_stride);
      }
      strip += height * depth;
      ++number;
    });
  }
}

template <class T>
constexpr ProductKernels<T> kProductKernels = {
    .panel = kPanel<T>,
    .pack_left = pack_left<T>,
    .pack_right = pack_right<T>,
    .multiply = multiply<T, T, false>,
    .multiply_from_memory = multiply<T, T, true>,
};
constexpr ProductKernels<float, std::uint16_t> kBfloat16ProductKernels = {
    .panel = kPanel<float>,
    .pack_left = pack_left<float>,
    .pack_right = pack_right_bfloat16,
    .multiply = multiply<float, std::uint16_t, false>,
    .multiply_from_memory = multiply<float, std::uint16_t, true>,
};

}  // namespace

template <>
const ProductKernels<float>& table() {
  return kProductKernels<float>;
}
template <>
const ProductKernels<double>& table() {
  return kProductKernels<double>;
}
template <>
const ProductKernels<float, std::uint16_t>& table() {
  return kBfloat16ProductKernels;
}

}  // namespace blasformer::BLASFORMER_ISA
