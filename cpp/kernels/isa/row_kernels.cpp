#include "kernels/row_kernels.h"

#include <math.h>  // plain functions, where <cmath> would bring inline ones that the linker may share

#include "kernels/isa/activation_functions.h"
#include "kernels/isa/few_rows.h"
#include "kernels/isa/map.h"
#include "kernels/isa/ordered_product.h"
#include "kernels/isa/rows.h"
#include "kernels/isa/table.h"
#include "kernels/isa/vector_math.h"

namespace blasformer::BLASFORMER_ISA {

namespace {

// e^(x - m), and zeros behind the first n lanes.
template <class T>
inline Vector<T> exp_of_difference(const T* x, Index n, Vector<T> m) {
  using S = Simd<T>;
  const Vector<T> e = exp_nonpositive<T>(load_lanes(x, n) - m);
  return n == S::lanes ? e : S::select(S::first(n), e, S::zero());
}

template <class T>
void softmax(const T* x, Index rows, Index length, T* y) {
  using S = Simd<T>;
  for (Index row = 0; row < rows; ++row, x += length, y += length) {
    const Vector<T> m = S::broadcast(largest(x, length));
    const double total = sum<T>(length, [x, y, m](Index i, Index n) {
      const Vector<T> e = exp_of_difference(x + i, n, m);
      store_lanes(y + i, e, n);
      return e;
    });
    const Vector<T> reciprocal = S::broadcast(static_cast<T>(1 / total));
    map(y, length, y, [reciprocal](auto e) { return e * reciprocal; });
  }
}

template <class T>
void log_softmax(const T* x, Index rows, Index length, T* y) {
  using S = Simd<T>;
  for (Index row = 0; row < rows; ++row, x += length, y += length) {
    const Vector<T> m = S::broadcast(largest(x, length));
    const double total = sum<T>(length, [x, m](Index i, Index n) { return exp_of_difference(x + i, n, m); });
    const Vector<T> log_total = S::broadcast(static_cast<T>(::log(total)));
    map(x, length, y, [m, log_total](auto v) { return (v - m) - log_total; });
  }
}

// What columns are normalised by: the largest element of each, and the sum of e^(x - m).
template <class T, Index vectors>
struct ColumnSums {
  Vector<T> largest[vectors], total[vectors];
};

// lanes(v): how many columns there are in vector v.
template <class T, Index vectors, class Lanes>
inline void largest_of_columns(const T* x, Index length, Index x_stride, Lanes lanes,
                               ColumnSums<T, vectors>& sums) {
  using S = Simd<T>;
  for (auto& m : sums.largest) m = S::broadcast(-std::numeric_limits<T>::infinity());
  for (Index i = 0; i < length; ++i) {
    for (Index v = 0; v < vectors; ++v) {
      sums.largest[v] = S::max(sums.largest[v], load_lanes(x + i * x_stride + v * S::lanes, lanes(v)));
    }
  }
}

// Calls visit(i, v, e^(x - m)) for each vector and adds them up, in blocks as rows are.
template <class T, Index vectors, class Lanes, class Visit>
inline void sum_columns(const T* x, Index length, Index x_stride, Lanes lanes, ColumnSums<T, vectors>& sums,
                        Visit visit) {
  using S = Simd<T>;
  constexpr Index kBlock = 128;
  for (auto& total : sums.total) total = S::zero();
  for (Index begin = 0; begin < length; begin += kBlock) {
    const Index end = begin + kBlock < length ? begin + kBlock : length;
    Vector<T> part[vectors];
    for (auto& p : part) p = S::zero();
    for (Index i = begin; i < end; ++i) {
      for (Index v = 0; v < vectors; ++v) {
        const Vector<T> e =
            exp_nonpositive<T>(load_lanes(x + i * x_stride + v * S::lanes, lanes(v)) - sums.largest[v]);
        visit(i, v, e);
        part[v] = part[v] + e;
      }
    }
    for (Index v = 0; v < vectors; ++v) sums.total[v] = sums.total[v] + part[v];
  }
}

struct SoftmaxOfColumns {
  template <class T, Index vectors, class Lanes>
  static void run(const T* x, Index length, Index x_stride, Lanes lanes, T* y, Index y_stride) {
    using S = Simd<T>;
    ColumnSums<T, vectors> sums;
    largest_of_columns(x, length, x_stride, lanes, sums);
    sum_columns(x, length, x_stride, lanes, sums, [=](Index i, Index v, Vector<T> e) {
      store_lanes(y + i * y_stride + v * S::lanes, e, lanes(v));
    });
    Vector<T> reciprocal[vectors];
    for (Index v = 0; v < vectors; ++v) reciprocal[v] = S::broadcast(T(1)) / sums.total[v];
    for (Index i = 0; i < length; ++i) {
      for (Index v = 0; v < vectors; ++v) {
        T* place = y + i * y_stride + v * S::lanes;
        store_lanes(place, load_lanes(place, lanes(v)) * reciprocal[v], lanes(v));
      }
    }
  }
};

struct LogSoftmaxOfColumns {
  template <class T, Index vectors, class Lanes>
  static void run(const T* x, Index length, Index x_stride, Lanes lanes, T* y, Index y_stride) {
    using S = Simd<T>;
    ColumnSums<T, vectors> sums;
    largest_of_columns(x, length, x_stride, lanes, sums);
    sum_columns(x, length, x_stride, lanes, sums, [](Index, Index, Vector<T>) {});
    Vector<T> log_total[vectors];
    for (Index v = 0; v < vectors; ++v) {
      T totals[S::lanes];
      S::store(totals, sums.total[v]);
      for (T& total : totals) total = static_cast<T>(::log(static_cast<double>(total)));
      log_total[v] = S::load(totals);
    }
    for (Index i = 0; i < length; ++i) {
      for (Index v = 0; v < vectors; ++v) {
        const Vector<T> row = load_lanes(x + i * x_stride + v * S::lanes, lanes(v));
        store_lanes(y + i * y_stride + v * S::lanes, (row - sums.largest[v]) - log_total[v], lanes(v));
      }
    }
  }
};

// Strips of columns as wide as the registers allow, then narrower ones.
template <class T, class Kind>
void normalise_columns(const T* x, Index length, Index x_stride, Index columns, T* y, Index y_stride) {
  using S = Simd<T>;
  constexpr Index vectors = 4;
  const auto all = [](Index) { return S::lanes; };
  Index c = 0;
  for (; c + vectors * S::lanes <= columns; c += vectors * S::lanes) {
    Kind::template run<T, vectors>(x + c, length, x_stride, all, y + c, y_stride);
  }
  for (; c < columns; c += S::lanes) {
    const Index n = columns - c < S::lanes ? columns - c : S::lanes;
    Kind::template run<T, 1>(x + c, length, x_stride, [n](Index) { return n; }, y + c, y_stride);
  }
}

// Mean squares outside of this range are computed from a row multiplied by a power of two, which brings every
// row that is not degenerate into it: squares neither overflow nor lose bits to denormals.
template <class T>
struct MeanSquareRange;
template <>
struct MeanSquareRange<float> {
  static constexpr double smallest = 0x1p-100, largest = 0x1p127, enlarge = 0x1p75, reduce = 0x1p-80;
};
template <>
struct MeanSquareRange<double> {
  static constexpr double smallest = 0x1p-900, largest = 0x1p1023, enlarge = 0x1p400, reduce = 0x1p-600;
};

// The factor by which a row must be multiplied, given its mean square + eps: 1 but for extreme rows.
template <class T>
inline double range_factor(double mean_square) {
  using R = MeanSquareRange<T>;
  if (mean_square >= R::smallest && mean_square <= R::largest) return 1;
  return mean_square < R::smallest ? R::enlarge : R::reduce;
}

template <class T>
inline void multiply(const T* x, Index n, double factor, T* y) {
  const Vector<T> f = Simd<T>::broadcast(static_cast<T>(factor));
  map(x, n, y, [f](auto v) { return v * f; });
}

// y = term(x) * weight + bias, elementwise; weight and bias may be null.
template <class T, class Term>
inline void scale_and_shift(const T* x, Index n, const T* weight, const T* bias, T* y, Term term) {
  using S = Simd<T>;
  const auto each = [n](auto step) {
    Index i = 0;
    for (; i + S::lanes <= n; i += S::lanes) step(i, S::lanes);
    if (i < n) step(i, n - i);
  };
  if (weight && bias) {
    each([=](Index i, Index k) {
      const Vector<T> v = term(load_lanes(x + i, k));
      store_lanes(y + i, S::fma(v, load_lanes(weight + i, k), load_lanes(bias + i, k)), k);
    });
  } else if (weight) {
    each([=](Index i, Index k) {
      store_lanes(y + i, term(load_lanes(x + i, k)) * load_lanes(weight + i, k), k);
    });
  } else if (bias) {
    each([=](Index i, Index k) {
      store_lanes(y + i, term(load_lanes(x + i, k)) + load_lanes(bias + i, k), k);
    });
  } else {
    each([=](Index i, Index k) { store_lanes(y + i, term(load_lanes(x + i, k)), k); });
  }
}

// The mean is first computed roughly, then corrected by the mean of the differences from it: what rounding
// took from the sum of a row of large elements comes back. The variance is that of the differences (Chan,
// Golub and LeVeque 1983).
template <class T>
struct Moments {
  T rough_mean;
  T correction;
  double variance;
};

template <class T>
Moments<T> moments(const T* x, Index n) {
  using S = Simd<T>;
  const double count = static_cast<double>(n);
  const T rough_mean =
      static_cast<T>(sum<T>(n, [x](Index i, Index k) { return load_lanes(x + i, k); }) / count);
  const Vector<T> mean = S::broadcast(rough_mean);
  const auto centred = [x, mean](Index i, Index k) {
    const Vector<T> difference = load_lanes(x + i, k) - mean;
    return k == S::lanes ? difference : S::select(S::first(k), difference, S::zero());
  };
  const double correction = sum<T>(n, centred) / count;
  const double mean_square = sum<T>(n,
                                    [centred](Index i, Index k) {
                                      const Vector<T> difference = centred(i, k);
                                      return difference * difference;
                                    }) /
                             count;
  const double variance = mean_square - correction * correction;
  return {rough_mean, static_cast<T>(correction), variance < 0 ? 0 : variance};
}

template <class T>
void layer_norm(const T* x, Index rows, Index features, const T* weight, const T* bias, double eps, T* y,
                T* mean, T* reciprocal_std) {
  using S = Simd<T>;
  for (Index row = 0; row < rows; ++row, x += features, y += features) {
    const T* source = x;
    Moments<T> m = moments(source, features);
    const double factor = range_factor<T>(m.variance + eps);
    if (factor != 1) {
      multiply(x, features, factor, y);
      source = y;
      m = moments(source, features);
    }
    const double reciprocal = 1 / ::sqrt(m.variance + eps * factor * factor);
    const Vector<T> rough_mean = S::broadcast(m.rough_mean), correction = S::broadcast(m.correction);
    const Vector<T> r = S::broadcast(static_cast<T>(reciprocal));
    scale_and_shift(source, features, weight, bias, y,
                    [rough_mean, correction, r](auto v) { return ((v - rough_mean) - correction) * r; });
    if (mean)
      mean[row] =
          static_cast<T>((static_cast<double>(m.rough_mean) + static_cast<double>(m.correction)) / factor);
    if (reciprocal_std) reciprocal_std[row] = static_cast<T>(reciprocal * factor);
  }
}

template <class T>
double mean_square(const T* x, Index n) {
  return sum<T>(n,
                [x](Index i, Index k) {
                  const Vector<T> v = load_lanes(x + i, k);
                  return v * v;
                }) /
         static_cast<double>(n);
}

template <class T>
void rms_norm(const T* x, Index rows, Index features, const T* weight, double eps, T* y, T* reciprocal_rms) {
  for (Index row = 0; row < rows; ++row, x += features, y += features) {
    const T* source = x;
    double square = mean_square(source, features);
    const double factor = range_factor<T>(square + eps);
    if (factor != 1) {
      multiply(x, features, factor, y);
      source = y;
      square = mean_square(source, features);
    }
    const double reciprocal = 1 / ::sqrt(square + eps * factor * factor);
    const Vector<T> r = Simd<T>::broadcast(static_cast<T>(reciprocal));
    scale_and_shift<T>(source, features, weight, nullptr, y, [r](auto v) { return v * r; });
    if (reciprocal_rms) reciprocal_rms[row] = static_cast<T>(reciprocal * factor);
  }
}

// A block of rows of x times some columns of weight^T, kOutputBlock vectors of outputs at a time.
template <class T, Index rows>
inline void multiples_of_columns(const T* x, Index features, const T* weight, Index weight_stride,
                                 const T* bias, Index outputs, T* y, Index y_stride) {
  using S = Simd<T>;
  const auto block = [&](Index o, auto vectors, Index last) {  // last: lanes of the last vector
    constexpr Index count = vectors;
    const auto lanes = [last](Index v) { return v + 1 < count ? S::lanes : last; };
    Vector<T> sums[rows][count];
    for (Index v = 0; v < count; ++v) {
      const Vector<T> first = bias ? load_lanes(bias + o + v * S::lanes, lanes(v)) : S::zero();
      for (Index r = 0; r < rows; ++r) sums[r][v] = first;
    }
    for (Index i = 0; i < features; ++i) {
      for (Index v = 0; v < count; ++v) {
        const Vector<T> w = load_lanes(weight + i * weight_stride + o + v * S::lanes, lanes(v));
        for (Index r = 0; r < rows; ++r)
          sums[r][v] = S::fma(S::broadcast(x[r * features + i]), w, sums[r][v]);
      }
    }
    for (Index r = 0; r < rows; ++r) {
      for (Index v = 0; v < count; ++v)
        store_lanes(y + r * y_stride + o + v * S::lanes, sums[r][v], lanes(v));
    }
  };
  struct One {
    constexpr operator Index() const { return 1; }
  };
  struct Many {
    constexpr operator Index() const { return kOutputBlock; }
  };
  Index o = 0;
  for (; o + kOutputBlock * S::lanes <= outputs; o += kOutputBlock * S::lanes) block(o, Many(), S::lanes);
  for (; o < outputs; o += S::lanes) block(o, One(), outputs - o < S::lanes ? outputs - o : S::lanes);
}

template <class T>
void few_rows_linear_transposed(const T* x, Index rows, Index features, const T* weight, Index weight_stride,
                                const T* bias, Index outputs, T* y, Index y_stride) {
  Index r = 0;
  for (; r + 4 <= rows; r += 4) {
    multiples_of_columns<T, 4>(x + r * features, features, weight, weight_stride, bias, outputs,
                               y + r * y_stride, y_stride);
  }
  x += r * features;
  y += r * y_stride;
  switch (rows - r) {
    case 3: return multiples_of_columns<T, 3>(x, features, weight, weight_stride, bias, outputs, y, y_stride);
    case 2: return multiples_of_columns<T, 2>(x, features, weight, weight_stride, bias, outputs, y, y_stride);
    case 1: return multiples_of_columns<T, 1>(x, features, weight, weight_stride, bias, outputs, y, y_stride);
    default: return;
  }
}

template <class T, int rows>
void ordered_rows(const T* x, Index x_stride, Index features, Index block, const T* weight,
                  Index weight_stride, const T* bias, Index outputs, T* y, Index y_stride) {
  constexpr Index lanes = kOrderedLanes<T>;
  T sums[rows * lanes];
  for (Index o = 0; o < outputs; o += lanes) {
    const Index count = smaller(lanes, outputs - o);
    for (Index i = 0; i == 0 || i < features; i += block) {
      ordered_product<T, rows>(smaller(block, features - i), x + i, x_stride, 1, count,
                               weight + o * weight_stride + i, weight_stride, sums);
      for (Index r = 0; r < rows; ++r) {
        T* const target = y + r * y_stride + o;
        const T* const start = i > 0 ? target : bias ? bias + o : nullptr;
        for (Index c = 0; c < count; ++c)
          target[c] = start ? start[c] + sums[r * lanes + c] : sums[r * lanes + c];
      }
    }
  }
}

template <class T>
void ordered_linear(const T* x, Index x_stride, Index rows, Index features, Index block, const T* weight,
                    Index weight_stride, const T* bias, Index outputs, T* y, Index y_stride) {
  constexpr decltype(&ordered_rows<T, 1>) kernels[] = {ordered_rows<T, 1>, ordered_rows<T, 2>,
                                                       ordered_rows<T, 3>, ordered_rows<T, 4>};
  kernels[rows - 1](x, x_stride, features, block, weight, weight_stride, bias, outputs, y, y_stride);
}

template <class T, class Activation>
void activate(const T* x, Index size, T* y) {
  map(x, size, y, [](auto v) { return Activation::value(v); });
}

template <class T>
void cosine_sine(double position, const double* frequency, Index size, T* cosine, T* sine) {
  using S = Simd<double>;
  for (Index i = 0; i < size; i += S::lanes) {
    const Index n = size - i < S::lanes ? size - i : S::lanes;
    const Vector<double> angle = S::broadcast(position) * load_lanes(frequency + i, n);
    double angles[S::lanes], c[S::lanes], s[S::lanes];
    S::store(angles, angle);
    if (S::largest(S::abs(angle)) <= kLargestReducibleAngle) {
      const SineCosine both = sine_cosine(angle);
      S::store(c, both.cosine);
      S::store(s, both.sine);
    } else {
      for (Index j = 0; j < n; ++j) {
        c[j] = ::cos(angles[j]);
        s[j] = ::sin(angles[j]);
      }
    }
    for (Index j = 0; j < n; ++j) {
      cosine[i + j] = static_cast<T>(c[j]);
      sine[i + j] = static_cast<T>(s[j]);
    }
  }
}

template <class T>
void rotate_interleaved(const T* x, const T* cosine, const T* sine, Index pairs, T* y) {
  for (Index i = 0; i < pairs; ++i) {
    const T first = x[2 * i], second = x[2 * i + 1];
    y[2 * i] = first * cosine[i] - second * sine[i];
    y[2 * i + 1] = second * cosine[i] + first * sine[i];
  }
}

template <class T>
void rotate_halves(const T* x, const T* cosine, const T* sine, Index pairs, T* y) {
  using S = Simd<T>;
  for (Index i = 0; i < pairs; i += S::lanes) {
    const Index n = pairs - i < S::lanes ? pairs - i : S::lanes;
    const Vector<T> first = load_lanes(x + i, n), second = load_lanes(x + pairs + i, n);
    const Vector<T> c = load_lanes(cosine + i, n), s = load_lanes(sine + i, n);
    store_lanes(y + i, first * c - second * s, n);
    store_lanes(y + pairs + i, second * c + first * s, n);
  }
}

template <class T>
constexpr RowKernels<T> kRowKernels = {
    .softmax = softmax<T>,
    .log_softmax = log_softmax<T>,
    .softmax_columns = normalise_columns<T, SoftmaxOfColumns>,
    .log_softmax_columns = normalise_columns<T, LogSoftmaxOfColumns>,
    .relu = activate<T, Relu<T>>,
    .gelu = activate<T, Gelu<T>>,
    .gelu_tanh = activate<T, GeluTanh<T>>,
    .gelu_sigmoid = activate<T, GeluSigmoid<T>>,
    .silu = activate<T, Silu<T>>,
    .layer_norm = layer_norm<T>,
    .rms_norm = rms_norm<T>,
#if defined(BLASFORMER_ISA_avx512)
    .few_rows = 32,
#elif defined(BLASFORMER_ISA_avx2)
    .few_rows = 8,
#else
    .few_rows = 16,
#endif
    .few_rows_linear = few_rows_linear<T, T>,
    .few_rows_linear_transposed = few_rows_linear_transposed<T>,
    .ordered_linear = ordered_linear<T>,
    .cosine_sine = cosine_sine<T>,
    .rotate_interleaved = rotate_interleaved<T>,
    .rotate_halves = rotate_halves<T>,
};

}  // namespace

template <>
const RowKernels<float>& table() {
  return kRowKernels<float>;
}
template <>
const RowKernels<double>& table() {
  return kRowKernels<double>;
}

}  // namespace blasformer::BLASFORMER_ISA
