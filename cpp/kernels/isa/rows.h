#pragma once

// Rows of vectors: whole ones, and a last one of fewer lanes.

#include <limits>

#include "kernels/isa/simd.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

template <class T>
using Vector = typename Simd<T>::Vector;

template <class T>
inline Vector<T> load_first_or(const T* x, Index n, T otherwise) {
  using S = Simd<T>;
  return S::select(S::first(n), S::load_first(x, n), S::broadcast(otherwise));
}

// The largest element; whether a NaN is noticed depends on its place.
template <class T>
T largest(const T* x, Index n) {
  using S = Simd<T>;
  constexpr T lowest = -std::numeric_limits<T>::infinity();
  Vector<T> a = S::broadcast(lowest), b = a, c = a, d = a;
  Index i = 0;
  for (; i + 4 * S::lanes <= n; i += 4 * S::lanes) {
    a = S::max(a, S::load(x + i));
    b = S::max(b, S::load(x + i + S::lanes));
    c = S::max(c, S::load(x + i + 2 * S::lanes));
    d = S::max(d, S::load(x + i + 3 * S::lanes));
  }
  for (; i + S::lanes <= n; i += S::lanes) a = S::max(a, S::load(x + i));
  if (i < n) b = S::max(b, load_first_or(x + i, n - i, lowest));
  return S::largest(S::max(S::max(a, b), S::max(c, d)));
}

// Rounding errors of a sum grow with the number of terms: rows are summed in blocks of this many elements,
// each of which runs in several vectors of partial sums, and the sums of blocks are added in double.
constexpr Index kSumBlock = 4096;

// The sum over i of term(i, n): the vector of the terms i .. i + n - 1, with zeros behind them; n is the
// number of lanes but for the last.
template <class T, class Term>
double sum(Index size, Term term) {
  using S = Simd<T>;
  double total = 0;
  for (Index begin = 0; begin < size; begin += kSumBlock) {
    const Index end = begin + kSumBlock < size ? begin + kSumBlock : size;
    Vector<T> a = S::zero(), b = a, c = a, d = a;
    Index i = begin;
    for (; i + 4 * S::lanes <= end; i += 4 * S::lanes) {
      a = a + term(i, S::lanes);
      b = b + term(i + S::lanes, S::lanes);
      c = c + term(i + 2 * S::lanes, S::lanes);
      d = d + term(i + 3 * S::lanes, S::lanes);
    }
    for (; i + S::lanes <= end; i += S::lanes) a = a + term(i, S::lanes);
    if (i < end) b = b + term(i, end - i);
    total += static_cast<double>(S::sum((a + b) + (c + d)));
  }
  return total;
}

template <class T>
inline Vector<T> load_lanes(const T* x, Index n) {
  return n == Simd<T>::lanes ? Simd<T>::load(x) : Simd<T>::load_first(x, n);
}

template <class T>
inline void store_lanes(T* y, Vector<T> v, Index n) {
  n == Simd<T>::lanes ? Simd<T>::store(y, v) : Simd<T>::store_first(y, v, n);
}

// Calls step(i, n) for vectors that begin at element i, n of whose lanes are filled.
template <class T, class Step>
inline void for_each_vector(Index size, Step step) {
  using S = Simd<T>;
  Index i = 0;
  for (; i + S::lanes <= size; i += S::lanes) step(i, S::lanes);
  if (i < size) step(i, size - i);
}

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
