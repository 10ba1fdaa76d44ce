#include <pybind11/pybind11.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "bindings/arrays.h"
#include "bindings/attention_call.h"
#include "bindings/functional_call.h"
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

// ---- Softmax

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

py::array activate_array(Activation activation, py::object& x_argument, const py::object& out) {
  ArrayView x = float_view(x_argument, "x");
  Output output(out, x_argument, x);
  MutableArrayView target = output.view();
  sort_axes(target, x);
  const Index size = element_count(x);
  compute(x.dtype, size, [&](auto zero) {
    using T = decltype(zero);
    activate(activation, Elements<T>(x), size, MutableElements<T>(target));
  });
  return output.result();
}

py::array gelu(py::object x, const std::string& approximate, const py::object& out) {
  return activate_array(gelu_activation(approximate), x, out);
}

// ---- Norms

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
    DenseResult<T> y(target);
    linear(dense_x.data(), rows, features, dense_weight.view(), data_of(dense_bias), outputs, y.data());
    y.finish();
  });
  return output.result();
}

// ---- Embedding and positions

py::array embedding_array(py::object ids_argument, py::object weight_argument, const py::object& out) {
  const ArrayView ids = id_view(ids_argument, "ids");
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

// forward turns x, backward d_output by the opposite angles.
enum class Direction { forward, backward };

template <Direction direction>
py::array rotary_array(py::object x_argument, py::object positions_argument, const py::object& base_argument,
                       const py::object& interleaved, const py::object& dims_argument,
                       const py::object& out) {
  const char* const name = direction == Direction::forward ? "x" : "d_output";
  const ArrayView x = float_view(x_argument, name);
  require(x.rank >= 2, name, " must have the shape (..., length, head_dim), got ", shape_text(x));
  const Index length = x.shape[x.rank - 2], head_dim = x.shape[x.rank - 1];
  const ArrayView positions = int64_view(positions_argument, "positions");
  const bool per_batch = positions.rank == 2 && x.rank >= 3;
  const bool fits = per_batch ? positions.shape[0] == x.shape[0] && positions.shape[1] == length
                              : positions.rank == 1 && positions.shape[0] == length;
  require(fits, "positions must have the shape (length,) or (batch, length) of ", name, " ", shape_text(x),
          ", got ", shape_text(positions));
  const double base = number(base_argument, "base");
  require(std::isfinite(base) && base > 0, "base must be finite and greater than 0, got ", base);
  if (!py::isinstance<py::bool_>(interleaved)) {
    fail<TypeMismatch>("interleaved must be True (pairs 2 i, 2 i + 1) or False (pairs i, i + dims / 2), got ",
                       type_name(interleaved));
  }
  const Index dims = dims_argument.is_none() ? head_dim : integer(dims_argument, "dims");
  require(dims >= 0 && dims % 2 == 0 && dims <= head_dim,
          "dims, which default to head_dim, must be even and between 0 and ", head_dim, ", got ", dims);
  Output output(out, shape_of(x), x.dtype, name);
  output.keep_apart_unless_same(x);
  const MutableArrayView target = output.view();
  const Index batch = per_batch ? x.shape[0] : 1, heads = product(x, per_batch ? 1 : 0, x.rank - 2);
  const RotaryPairs pairs = interleaved.cast<bool>() ? RotaryPairs::interleaved : RotaryPairs::halves;
  compute(x.dtype, element_count(x), [&](auto zero) {
    using T = decltype(zero);
    const auto rotate = [&](auto function) {
      function(Elements<T>(x), batch, heads, length, head_dim,
               static_cast<const std::int64_t*>(positions.data), per_batch, base, pairs, dims,
               MutableElements<T>(target));
    };
    if constexpr (direction == Direction::forward) {
      rotate([](const auto&... arguments) { rotary_embedding(arguments...); });
    } else {
      rotate([](const auto&... arguments) { rotary_backward(arguments...); });
    }
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
  module.def("rotary_embedding", rotary_array<Direction::forward>, py::arg("x"), py::arg("positions"),
             py::arg("base"), py::arg("interleaved"), py::arg("dims"), py::arg("out"));
  module.def("rotary_embedding_backward", rotary_array<Direction::backward>, py::arg("d_output"),
             py::arg("positions"), py::arg("base"), py::arg("interleaved"), py::arg("dims"), py::arg("out"));
  module.def("sinusoidal_positions", sinusoidal_array, py::arg("length"), py::arg("d_model"),
             py::arg("layout"), py::arg("first"), py::arg("dtype"));
  module.def("_elementary", elementary<float>, py::arg("name"), py::arg("x").noconvert());
  module.def("_elementary", elementary<double>, py::arg("name"), py::arg("x").noconvert());
  module.def("_cosine_sine", cosine_sine, py::arg("position"), py::arg("frequency"));
}

}  // namespace blasformer::bindings
