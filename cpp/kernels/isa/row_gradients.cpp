#include "kernels/gradient_kernels.h"
#include "kernels/isa/activation_functions.h"
#include "kernels/isa/rows.h"
#include "kernels/isa/table.h"
#include "kernels/isa/vector_math.h"

namespace blasformer::BLASFORMER_ISA {

namespace {

// ---- Activations

template <class T, class Activation>
void activation_gradient(const T* x, const T* d_y, Index size, T* d_x, T* y) {
  if (y) {
    for_each_vector<T>(size, [=](Index i, Index n) {
      const auto [value, slope] = Activation::value_and_slope(load_lanes(x + i, n));
      store_lanes(d_x + i, load_lanes(d_y + i, n) * slope, n);
      store_lanes(y + i, value, n);
    });
  } else {
    for_each_vector<T>(size, [=](Index i, Index n) {
      const Vector<T> slope = Activation::value_and_slope(load_lanes(x + i, n)).slope;
      store_lanes(d_x + i, load_lanes(d_y + i, n) * slope, n);
    });
  }
}

// Not a product with the slope: a closed unit passes nothing, not even NaN, as in PyTorch.
template <class T>
void relu_gradient(const T* x, const T* d_y, Index size, T* d_x, T* y) {
  using S = Simd<T>;
  for_each_vector<T>(size, [=](Index i, Index n) {
    const Vector<T> d = load_lanes(d_y + i, n), value = Relu<T>::value(load_lanes(x + i, n));
    store_lanes(d_x + i, S::select(S::equal(value, S::zero()), S::zero(), d), n);
    if (y) store_lanes(y + i, value, n);
  });
}

// ---- Softmax

template <class T>
void softmax_gradient(const T* y, const T* d_y, Index rows, Index length, T* d_x) {
  using S = Simd<T>;
  for (Index row = 0; row < rows; ++row, y += length, d_y += length, d_x += length) {
    const double total =
        sum<T>(length, [=](Index i, Index n) { return load_lanes(y + i, n) * load_lanes(d_y + i, n); });
    const Vector<T> mean = S::broadcast(static_cast<T>(total));  // of d_y, weighted by y
    for_each_vector<T>(length, [=](Index i, Index n) {
      store_lanes(d_x + i, load_lanes(y + i, n) * (load_lanes(d_y + i, n) - mean), n);
    });
  }
}

template <class T>
void log_softmax_gradient(const T* y, const T* d_y, Index rows, Index length, T* d_x) {
  using S = Simd<T>;
  for (Index row = 0; row < rows; ++row, y += length, d_y += length, d_x += length) {
    const double total = sum<T>(length, [=](Index i, Index n) { return load_lanes(d_y + i, n); });
    const Vector<T> minus_total = S::broadcast(static_cast<T>(-total));
    for_each_vector<T>(length, [=](Index i, Index n) {
      const Vector<T> weight = exp_nonpositive<T>(load_lanes(y + i, n));
      store_lanes(d_x + i, S::fma(weight, minus_total, load_lanes(d_y + i, n)), n);
    });
  }
}

struct OfSoftmax {
  template <class V>
  static V term(V y, V d_y) {
    return y * d_y;
  }
  template <class T>
  static Vector<T> gradient(Vector<T> y, Vector<T> d_y, Vector<T> total) {
    return y * (d_y - total);
  }
};

struct OfLogSoftmax {
  template <class V>
  static V term(V, V d_y) {
    return d_y;
  }
  template <class T>
  static Vector<T> gradient(Vector<T> y, Vector<T> d_y, Vector<T> total) {
    return d_y - exp_nonpositive<T>(y) * total;
  }
};

// Some columns of n lanes in all: sums are formed in blocks, so that long ones lose little to rounding.
template <class T, class Kind>
inline void column_gradients(const T* y, const T* d_y, Index length, Index stride, Index n, T* d_x) {
  using S = Simd<T>;
  constexpr Index kBlock = 128;
  Vector<T> total = S::zero();
  for (Index begin = 0; begin < length; begin += kBlock) {
    const Index end = begin + kBlock < length ? begin + kBlock : length;
    Vector<T> part = S::zero();
    for (Index i = begin; i < end; ++i) {
      part = part + Kind::term(load_lanes(y + i * stride, n), load_lanes(d_y + i * stride, n));
    }
    total = total + part;
  }
  for (Index i = 0; i < length; ++i) {
    const Vector<T> of_y = load_lanes(y + i * stride, n), of_d_y = load_lanes(d_y + i * stride, n);
    store_lanes(d_x + i * stride, Kind::template gradient<T>(of_y, of_d_y, total), n);
  }
}

template <class T, class Kind>
void normalise_columns_gradient(const T* y, const T* d_y, Index length, Index stride, Index columns, T* d_x) {
  using S = Simd<T>;
  Index c = 0;
  for (; c + S::lanes <= columns; c += S::lanes) {
    column_gradients<T, Kind>(y + c, d_y + c, length, stride, S::lanes, d_x + c);
  }
  if (c < columns) column_gradients<T, Kind>(y + c, d_y + c, length, stride, columns - c, d_x + c);
}

// ---- Norms

// What a row is normalised by: (x - mean) * factor * reciprocal - correction. The factor, a power of two,
// is 1 but for rows so large that differences could overflow. The correction is the mean of what comes before
// it: the mean of elements that lie close together was rounded when it was saved.
template <class T>
struct Normalisation {
  Vector<T> factor, minus_mean, reciprocal, correction;  // minus_mean: times the factor
};

template <class T>
inline Normalisation<T> normalisation(T mean, T reciprocal) {
  using S = Simd<T>;
  const T factor = reciprocal < T(0x1p-100) ? T(0x1p-30) : T(1);
  return {S::broadcast(factor), S::broadcast(-mean * factor), S::broadcast(reciprocal / factor), S::zero()};
}

template <class T>
inline Vector<T> normalised(const Normalisation<T>& by, Vector<T> x) {
  using S = Simd<T>;
  return S::fma(x, by.factor, by.minus_mean) * by.reciprocal - by.correction;
}

// With x^ = (x - mean) r, the row as it was normalised, and g = d_y weight:
//   d_x = r (g - mean(g) - x^ mean(g x^)),  d_weight = sum d_y x^,  d_bias = sum d_y.
// A norm that is not centred has no mean, and its d_x no mean(g).
template <class T, bool centred>
inline void norm_gradient(const T* x, const T* mean, const T* reciprocal, const T* d_y, Index rows,
                          Index features, const T* weight, const T* residual, T* d_x, T* d_weight,
                          T* d_bias) {
  using S = Simd<T>;
  for (Index row = 0; row < rows; ++row) {
    Normalisation<T> by = normalisation(centred ? mean[row] : T(0), reciprocal[row]);
    const auto gradient = [=](Index i, Index n) {
      const Vector<T> d = load_lanes(d_y + i, n);
      return weight ? d * load_lanes(weight + i, n) : d;
    };
    double of_x = 0, of_g = 0, of_product = 0;  // sums over the row
    for (Index begin = 0; begin < features; begin += kSumBlock) {
      const Index end = begin + kSumBlock < features ? begin + kSumBlock : features;
      Vector<T> sums[2][3];
      for (auto& part : sums) part[0] = part[1] = part[2] = S::zero();
      const auto step = [&](Vector<T>(&part)[3], Index i, Index n) {
        Vector<T> v = normalised(by, load_lanes(x + i, n));
        if (n < S::lanes) v = S::select(S::first(n), v, S::zero());
        const Vector<T> g = gradient(i, n);
        part[0] = part[0] + v;
        part[1] = part[1] + g;
        part[2] = S::fma(g, v, part[2]);
      };
      Index i = begin;
      for (; i + 2 * S::lanes <= end; i += 2 * S::lanes) {
        step(sums[0], i, S::lanes);
        step(sums[1], i + S::lanes, S::lanes);
      }
      for (; i < end; i += S::lanes) step(sums[0], i, end - i < S::lanes ? end - i : S::lanes);
      of_x += static_cast<double>(S::sum(sums[0][0] + sums[1][0]));
      of_g += static_cast<double>(S::sum(sums[0][1] + sums[1][1]));
      of_product += static_cast<double>(S::sum(sums[0][2] + sums[1][2]));
    }
    const double count = static_cast<double>(features);
    Vector<T> mean_g = S::zero();
    if (centred) {
      const double correction = of_x / count;
      of_product -= correction * of_g;
      by.correction = S::broadcast(static_cast<T>(correction));
      mean_g = S::broadcast(static_cast<T>(of_g / count));
    }
    const Vector<T> mean_product = S::broadcast(static_cast<T>(of_product / count));
    const Vector<T> r = S::broadcast(reciprocal[row]);
    for_each_vector<T>(features, [=](Index i, Index n) {
      const Vector<T> v = normalised(by, load_lanes(x + i, n)), d = load_lanes(d_y + i, n);
      const Vector<T> g = gradient(i, n);
      const Vector<T> of_row = ((g - mean_g) - v * mean_product) * r;
      store_lanes(d_x + i, residual ? of_row + load_lanes(residual + i, n) : of_row, n);
      if (d_weight) store_lanes(d_weight + i, S::fma(d, v, load_lanes(d_weight + i, n)), n);
      if (d_bias) store_lanes(d_bias + i, d + load_lanes(d_bias + i, n), n);
    });
    x += features;
    d_y += features;
    d_x += features;
    if (residual) residual += features;
  }
}

template <class T>
void layer_norm_gradient(const T* x, const T* mean, const T* reciprocal_std, const T* d_y, Index rows,
                         Index features, const T* weight, const T* residual, T* d_x, T* d_weight, T* d_bias) {
  norm_gradient<T, true>(x, mean, reciprocal_std, d_y, rows, features, weight, residual, d_x, d_weight,
                         d_bias);
}

template <class T>
void rms_norm_gradient(const T* x, const T* reciprocal_rms, const T* d_y, Index rows, Index features,
                       const T* weight, const T* residual, T* d_x, T* d_weight) {
  norm_gradient<T, false>(x, nullptr, reciprocal_rms, d_y, rows, features, weight, residual, d_x, d_weight,
                          nullptr);
}

template <class T>
constexpr GradientKernels<T> kGradientKernels = {
    .relu = relu_gradient<T>,
    .gelu = activation_gradient<T, Gelu<T>>,
    .gelu_tanh = activation_gradient<T, GeluTanh<T>>,
    .gelu_sigmoid = activation_gradient<T, GeluSigmoid<T>>,
    .silu = activation_gradient<T, Silu<T>>,
    .softmax = softmax_gradient<T>,
    .log_softmax = log_softmax_gradient<T>,
    .softmax_columns = normalise_columns_gradient<T, OfSoftmax>,
    .log_softmax_columns = normalise_columns_gradient<T, OfLogSoftmax>,
    .layer_norm = layer_norm_gradient<T>,
    .rms_norm = rms_norm_gradient<T>,
};

}  // namespace

template <>
const GradientKernels<float>& table() {
  return kGradientKernels<float>;
}
template <>
const GradientKernels<double>& table() {
  return kGradientKernels<double>;
}

}  // namespace blasformer::BLASFORMER_ISA
