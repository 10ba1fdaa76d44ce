#include <pybind11/pybind11.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "bindings/arrays.h"
#include "bindings/attention_call.h"
#include "bindings/gil.h"
#include "bindings/output.h"
#include "kernels/elements.h"
#include "kernels/math_kernels.h"
#include "kernels/row_kernels.h"
#include "layers/activations.h"
#include "layers/dense.h"
#include "layers/embedding.h"
#include "layers/layer_norm.h"
#include "layers/linear.h"
#include "layers/positions.h"
#include "layers/rms_norm.h"
#include "layers/rotary.h"
#include "layers/softmax.h"

namespace blasformer::bindings {

namespace {

// Work on fewer elements than this is over before another thread could use the interpreter lock.
constexpr Index kLeastElementsToRelease = 20'000;

// Calls function(T()) with the type that arrays of this dtype are computed in, without the interpreter lock.
template <class Function>
void compute(DType dtype, Index elements, Function function) {
  std::optional<ReleaseGil> released;
  if (elements >= kLeastElementsToRelease) released.emplace();
  if (dtype == DType::float64) {
    function(double());
  } else {
    function(float());
  }
}

Shape shape_of(const ArrayView& view) { return Shape(view.shape, view.shape + view.rank); }

Index product(const ArrayView& view, int first_axis, int last_axis) {
  Index result = 1;
  for (int axis = first_axis; axis < last_axis; ++axis) result *= view.shape[axis];
  return result;
}

Index integer(const py::object& argument, const char* name) {
  const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(argument.ptr()));
  if (!index) {
    PyErr_Clear();
    fail<TypeMismatch>(name, " must be an integer, got ", type_name(argument));
  }
  const Index value = PyLong_AsSsize_t(index.ptr());
  if (value == -1 && PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    fail(name, " must fit into 64 bits, got ", std::string(py::str(index)));
  }
  return value;
}

// An argument that belongs to x: of its dtype.
ArrayView view_like(py::object& argument, const char* name, const ArrayView& x) {
  const ArrayView view = float_view(argument, name);
  if (view.dtype != x.dtype) {
    fail<TypeMismatch>(name, " must have the dtype of x, ", dtype_text(x.dtype), ", got ",
                       dtype_text(view.dtype));
  }
  return view;
}

// ---- Softmax

int axis_of(const py::object& argument, const ArrayView& x) {
  const Index axis = integer(argument, "axis");
  require(axis >= -x.rank && axis < x.rank, "axis must be an axis of x ", shape_text(x), ", got ", axis);
  return static_cast<int>(axis < 0 ? axis + x.rank : axis);
}

enum class Normalisation { softmax, log_softmax };

template <Normalisation kind>
py::array normalise(py::object x_argument, const py::object& axis_argument, const py::object& out) {
  const ArrayView x = float_view(x_argument, "x");
  const int axis = axis_of(axis_argument, x);
  Output output(out, x_argument, x);
  const MutableArrayView target = output.view();
  compute(x.dtype, element_count(x), [&](auto zero) {
    using T = decltype(zero);
    if constexpr (kind == Normalisation::softmax) {
      softmax<T>(x, axis, target);
    } else {
      log_softmax<T>(x, axis, target);
    }
  });
  return output.result();
}

// ---- Activations

// The arrays with their axes in the order in which those of y lie in memory: any order serves single
// elements.
void sort_axes(ArrayView& x, MutableArrayView& y) {
  for (int i = 1; i < y.rank; ++i) {
    for (int j = i; j > 0 && std::abs(y.stride[j - 1]) < std::abs(y.stride[j]); --j) {
      for (Index* extents : {x.shape, x.stride, y.shape, y.stride}) std::swap(extents[j - 1], extents[j]);
    }
  }
}

py::array activate_array(Activation activation, py::object& x_argument, const py::object& out) {
  ArrayView x = float_view(x_argument, "x");
  Output output(out, x_argument, x);
  MutableArrayView target = output.view();
  sort_axes(x, target);
  const Index size = element_count(x);
  compute(x.dtype, size, [&](auto zero) {
    using T = decltype(zero);
    activate(activation, Elements<T>(x), size, MutableElements<T>(target));
  });
  return output.result();
}

py::array gelu(py::object x, const std::string& approximate, const py::object& out) {
  if (approximate == "none") return activate_array(Activation::gelu, x, out);
  if (approximate == "tanh") return activate_array(Activation::gelu_tanh, x, out);
  if (approximate == "sigmoid") return activate_array(Activation::gelu_sigmoid, x, out);
  fail("approximate must be \"none\", \"tanh\" or \"sigmoid\", got \"", approximate, "\"");
}

// ---- Norms

// normalized_shape as an int or a sequence of ints; returns how many of the last axes of x it names.
int normalized_axes(const py::object& argument, const ArrayView& x) {
  Shape shape;
  if (PySequence_Check(argument.ptr()) != 0) {
    for (const py::handle& extent : argument) {
      shape.push_back(integer(py::reinterpret_borrow<py::object>(extent), "normalized_shape"));
    }
  } else {
    shape.push_back(integer(argument, "normalized_shape"));
  }
  require(!shape.empty(), "normalized_shape must name at least one axis, got ()");
  const int axes = static_cast<int>(shape.size());
  const bool fits = axes <= x.rank && std::equal(shape.begin(), shape.end(), x.shape + x.rank - axes);
  require(fits, "normalized_shape must be the last axes of x ", shape_text(x), ", got ", shape_text(shape));
  return axes;
}

double epsilon_of(const py::object& argument) {
  const double eps = number(argument, "eps");
  require(std::isfinite(eps) && eps >= 0, "eps must be finite and at least 0, got ", eps);
  return eps;
}

// What PyTorch takes where no eps is given: the distance from 1 to the next number of the dtype.
double machine_epsilon(DType dtype) {
  switch (dtype) {
    case DType::float64: return std::numeric_limits<double>::epsilon();
    case DType::float16: return 0x1p-10;
    case DType::bfloat16: return 0x1p-7;
    default: return std::numeric_limits<float>::epsilon();
  }
}

// The weight or bias of a norm, of the shape of the axes that are normalised.
std::optional<ArrayView> norm_parameter(py::object& argument, const char* name, const ArrayView& x,
                                        int axes) {
  if (argument.is_none()) return std::nullopt;
  const ArrayView view = view_like(argument, name, x);
  const Index* shape = x.shape + x.rank - axes;
  const bool fits = view.rank == axes && std::equal(shape, shape + axes, view.shape);
  require(fits, name, " must have the shape ", shape_text(shape, axes), " that is normalised, got ",
          shape_text(view));
  return view;
}

template <class T>
std::optional<Dense<T>> dense(const std::optional<ArrayView>& view) {
  return view ? std::optional<Dense<T>>(*view) : std::nullopt;
}

template <class T>
const T* data_of(const std::optional<Dense<T>>& array) {
  return array ? array->data() : nullptr;
}

py::array layer_norm_array(py::object x_argument, const py::object& normalized_shape,
                           py::object weight_argument, py::object bias_argument,
                           const py::object& eps_argument, const py::object& out) {
  const ArrayView x = float_view(x_argument, "x");
  const int axes = normalized_axes(normalized_shape, x);
  const std::optional<ArrayView> weight = norm_parameter(weight_argument, "weight", x, axes);
  const std::optional<ArrayView> bias = norm_parameter(bias_argument, "bias", x, axes);
  const double eps = epsilon_of(eps_argument);
  Output output(out, shape_of(x), x.dtype, "x");
  output.keep_apart_unless_same(x);
  if (weight) output.keep_apart(*weight);
  if (bias) output.keep_apart(*bias);
  const MutableArrayView target = output.view();
  const Index rows = product(x, 0, x.rank - axes), features = product(x, x.rank - axes, x.rank);
  compute(x.dtype, rows * features, [&](auto zero) {
    using T = decltype(zero);
    const std::optional<Dense<T>> dense_weight = dense<T>(weight), dense_bias = dense<T>(bias);
    layer_norm(Elements<T>(x), rows, features, data_of(dense_weight), data_of(dense_bias), eps,
               MutableElements<T>(target));
  });
  return output.result();
}

py::array rms_norm_array(py::object x_argument, const py::object& normalized_shape,
                         py::object weight_argument, const py::object& eps_argument, const py::object& out) {
  const ArrayView x = float_view(x_argument, "x");
  const int axes = normalized_axes(normalized_shape, x);
  const std::optional<ArrayView> weight = norm_parameter(weight_argument, "weight", x, axes);
  const double eps = eps_argument.is_none() ? machine_epsilon(x.dtype) : epsilon_of(eps_argument);
  Output output(out, shape_of(x), x.dtype, "x");
  output.keep_apart_unless_same(x);
  if (weight) output.keep_apart(*weight);
  const MutableArrayView target = output.view();
  const Index rows = product(x, 0, x.rank - axes), features = product(x, x.rank - axes, x.rank);
  compute(x.dtype, rows * features, [&](auto zero) {
    using T = decltype(zero);
    const std::optional<Dense<T>> dense_weight = dense<T>(weight);
    rms_norm(Elements<T>(x), rows, features, data_of(dense_weight), eps, MutableElements<T>(target));
  });
  return output.result();
}

// ---- Linear

// The weight where it lies, if its rows or its columns are dense and of type T; otherwise a dense copy.
template <class T>
class DenseWeight {
 public:
  explicit DenseWeight(const ArrayView& weight) {
    const Index outputs = weight.shape[0], features = weight.shape[1];
    const auto in_place = [&](int dense_axis, Index extent) {
      const Index stride = weight.stride[1 - dense_axis];
      const bool dense = weight.stride[dense_axis] == 1 || extent == 1;
      return weight.dtype == dtype_of<T>() && dense &&
             (stride >= extent || weight.shape[1 - dense_axis] == 1);
    };
    if (in_place(1, features)) {
      view_ = {static_cast<const T*>(weight.data), std::max(weight.stride[0], features), false};
    } else if (in_place(0, outputs)) {
      view_ = {static_cast<const T*>(weight.data), std::max(weight.stride[1], outputs), true};
    } else {
      copy_.emplace(weight);
      view_ = {copy_->data(), features, false};
    }
  }
  WeightView<T> view() const { return view_; }

 private:
  std::optional<Dense<T>> copy_;
  WeightView<T> view_{};
};

py::array linear_array(py::object x_argument, py::object weight_argument, py::object bias_argument,
                       const py::object& out) {
  const ArrayView x = float_view(x_argument, "x");
  const ArrayView weight = view_like(weight_argument, "weight", x);
  require(x.rank >= 1, "x must have the shape (..., in_features), got ()");
  const Index features = x.shape[x.rank - 1];
  require(weight.rank == 2 && weight.shape[1] == features, "weight must have the shape (out_features, ",
          features, ") to fit x ", shape_text(x), ", got ", shape_text(weight));
  const Index outputs = weight.shape[0];
  std::optional<ArrayView> bias;
  if (!bias_argument.is_none()) {
    bias = view_like(bias_argument, "bias", x);
    require(bias->rank == 1 && bias->shape[0] == outputs, "bias must have the shape ",
            shape_text(&outputs, 1), " to fit weight ", shape_text(weight), ", got ", shape_text(*bias));
  }
  Shape shape = shape_of(x);
  shape.back() = outputs;
  Output output(out, shape, x.dtype, "x");
  for (const ArrayView& input : {x, weight, bias ? *bias : x}) output.keep_apart(input);
  const MutableArrayView target = output.view();
  const Index rows = product(x, 0, x.rank - 1);
  compute(x.dtype, rows * (features + outputs), [&](auto zero) {
    using T = decltype(zero);
    const Dense<T> dense_x(x);
    const DenseWeight<T> dense_weight(weight);
    const std::optional<Dense<T>> dense_bias = dense<T>(bias);
    const MutableElements<T> y(target);
    Tensor<T> buffer;
    if (!y.is_dense()) buffer = Tensor<T>({rows * outputs});
    linear(dense_x.data(), rows, features, dense_weight.view(), data_of(dense_bias), outputs,
           y.place(0, buffer.data()));
    if (y.is_dense()) return;
    const Elements<T> result(buffer.data());
    for_each_row_block(result, rows * outputs, 1, y, 0.5,
                       [](const T* from, Index, Index count, T* to) { std::copy_n(from, count, to); });
  });
  return output.result();
}

// ---- Embedding and positions

py::array embedding_array(py::object ids_argument, py::object weight_argument, const py::object& out) {
  const ArrayView ids = int64_view(ids_argument, "ids");
  const ArrayView weight = float_view(weight_argument, "weight");
  require(weight.rank == 2, "weight must have the shape (num_embeddings, embedding_dim), got ",
          shape_text(weight));
  require(ids.rank < kMaxRank, "ids must have at most ", kMaxRank - 1, " dimensions, got ", ids.rank);
  Shape shape = shape_of(ids);
  shape.push_back(weight.shape[1]);
  const Index count = element_count(ids);
  const auto* first_id = static_cast<const std::int64_t*>(ids.data);
  Output output(out, shape, weight.dtype, "weight");
  output.keep_apart(weight);
  output.keep_dense();
  void* target = output.view().data;
  compute(weight.dtype, count * weight.shape[1], [&](auto) { embedding(first_id, count, weight, target); });
  return output.result();
}

py::array rotary_array(py::object x_argument, py::object positions_argument, const py::object& base_argument,
                       const py::object& interleaved, const py::object& dims_argument,
                       const py::object& out) {
  const ArrayView x = float_view(x_argument, "x");
  require(x.rank >= 2, "x must have the shape (..., length, head_dim), got ", shape_text(x));
  const Index length = x.shape[x.rank - 2], head_dim = x.shape[x.rank - 1];
  const ArrayView positions = int64_view(positions_argument, "positions");
  const bool per_batch = positions.rank == 2 && x.rank >= 3;
  const bool fits = per_batch ? positions.shape[0] == x.shape[0] && positions.shape[1] == length
                              : positions.rank == 1 && positions.shape[0] == length;
  require(fits, "positions must have the shape (length,) or (batch, length) of x ", shape_text(x), ", got ",
          shape_text(positions));
  const double base = number(base_argument, "base");
  require(std::isfinite(base) && base > 0, "base must be finite and greater than 0, got ", base);
  if (!py::isinstance<py::bool_>(interleaved)) {
    fail<TypeMismatch>("interleaved must be True (pairs 2 i, 2 i + 1) or False (pairs i, i + dims / 2), got ",
                       type_name(interleaved));
  }
  const Index dims = dims_argument.is_none() ? head_dim : integer(dims_argument, "dims");
  require(dims >= 0 && dims % 2 == 0 && dims <= head_dim,
          "dims, which default to head_dim, must be even and between 0 and ", head_dim, ", got ", dims);
  Output output(out, shape_of(x), x.dtype, "x");
  output.keep_apart_unless_same(x);
  const MutableArrayView target = output.view();
  const Index batch = per_batch ? x.shape[0] : 1, heads = product(x, per_batch ? 1 : 0, x.rank - 2);
  const RotaryPairs pairs = interleaved.cast<bool>() ? RotaryPairs::interleaved : RotaryPairs::halves;
  compute(x.dtype, element_count(x), [&](auto zero) {
    using T = decltype(zero);
    rotary_embedding(Elements<T>(x), batch, heads, length, head_dim,
                     static_cast<const std::int64_t*>(positions.data), per_batch, base, pairs, dims,
                     MutableElements<T>(target));
  });
  return output.result();
}

py::array sinusoidal_array(const py::object& length_argument, const py::object& d_model_argument,
                           const std::string& layout, const py::object& first_argument,
                           const py::object& dtype) {
  const Index length = integer(length_argument, "length"), d_model = integer(d_model_argument, "d_model");
  const Index first = integer(first_argument, "first");
  require(length >= 0, "length must be at least 0, got ", length);
  require(d_model > 0 && d_model % 2 == 0, "d_model must be even and greater than 0, got ", d_model);
  require(layout == "interleaved" || layout == "concatenated",
          "layout must be \"interleaved\" or \"concatenated\", got \"", layout, "\"");
  py::array array(py::dtype::from_args(dtype), {length, d_model});
  const std::optional<DType> type = dtype_of_array(array);
  if (!type || *type == DType::boolean) {
    fail<TypeMismatch>("dtype must be float32, float64, float16 or bfloat16, got ",
                       std::string(py::str(array.dtype())));
  }
  const MutableArrayView target = mutable_view(array);
  const SinusoidLayout kind =
      layout == "interleaved" ? SinusoidLayout::interleaved : SinusoidLayout::concatenated;
  compute(*type, length * d_model, [&](auto zero) {
    sinusoidal_positions(length, d_model, kind, first, MutableElements<decltype(zero)>(target));
  });
  return array;
}

// ---- For tests: the elementary functions inside of kernels, of the active instruction set

template <class T>
typename MathKernels<T>::Function math_function(const std::string& name) {
  const MathKernels<T>& kernels = math_kernels<T>();
  if (name == "exp") return kernels.exp;
  if (name == "exp_nonpositive") return kernels.exp_nonpositive;
  if (name == "exp2_nonpositive") return kernels.exp2_nonpositive;
  if (name == "tanh") return kernels.tanh;
  if (name == "sigmoid") return kernels.sigmoid;
  if (name == "gelu") return kernels.gelu;
  fail("name must be a function of MathKernels, got ", name);
}

template <class T>
py::array_t<T> elementary(const std::string& name, const py::array_t<T, py::array::c_style>& x) {
  py::array_t<T> y(x.size());
  math_function<T>(name)(x.data(), x.size(), y.mutable_data());
  return y;
}

py::tuple cosine_sine(double position, const py::array_t<double, py::array::c_style>& frequency) {
  py::array_t<double> cosine(frequency.size()), sine(frequency.size());
  row_kernels<double>().cosine_sine(position, frequency.data(), frequency.size(), cosine.mutable_data(),
                                    sine.mutable_data());
  return py::make_tuple(cosine, sine);
}

}  // namespace

void bind_functional(py::module_& module) {
  module.def("softmax", normalise<Normalisation::softmax>, py::arg("x"), py::arg("axis"), py::arg("out"));
  module.def("log_softmax", normalise<Normalisation::log_softmax>, py::arg("x"), py::arg("axis"),
             py::arg("out"));
  module.def("gelu", gelu, py::arg("x"), py::arg("approximate"), py::arg("out"));
  module.def(
      "relu", [](py::object x, const py::object& out) { return activate_array(Activation::relu, x, out); },
      py::arg("x"), py::arg("out"));
  module.def(
      "silu", [](py::object x, const py::object& out) { return activate_array(Activation::silu, x, out); },
      py::arg("x"), py::arg("out"));
  module.def("layer_norm", layer_norm_array, py::arg("x"), py::arg("normalized_shape"), py::arg("weight"),
             py::arg("bias"), py::arg("eps"), py::arg("out"));
  module.def("rms_norm", rms_norm_array, py::arg("x"), py::arg("normalized_shape"), py::arg("weight"),
             py::arg("eps"), py::arg("out"));
  module.def("linear", linear_array, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("out"));
  module.def("embedding", embedding_array, py::arg("ids"), py::arg("weight"), py::arg("out"));
  module.def("rotary_embedding", rotary_array, py::arg("x"), py::arg("positions"), py::arg("base"),
             py::arg("interleaved"), py::arg("dims"), py::arg("out"));
  module.def("sinusoidal_positions", sinusoidal_array, py::arg("length"), py::arg("d_model"),
             py::arg("layout"), py::arg("first"), py::arg("dtype"));
  module.def("_elementary", elementary<float>, py::arg("name"), py::arg("x").noconvert());
  module.def("_elementary", elementary<double>, py::arg("name"), py::arg("x").noconvert());
  module.def("_cosine_sine", cosine_sine, py::arg("position"), py::arg("frequency"));
}

}  // namespace blasformer::bindings
