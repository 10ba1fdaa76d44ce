// The gradients of the functions in functional.cpp, and the loss.

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/attention_call.h"
#include "bindings/functional_call.h"
#include "bindings/output.h"
#include "layers/activations.h"
#include "layers/cross_entropy.h"
#include "layers/embedding.h"
#include "layers/layer_norm.h"
#include "layers/linear.h"
#include "layers/rms_norm.h"
#include "layers/softmax.h"

namespace blasformer::bindings {

namespace {

// ---- Softmax

enum class Normalisation { softmax, log_softmax };

template <Normalisation kind>
py::array normalise_backward(py::object y_argument, py::object d_y_argument, const py::object& axis_argument,
                             const py::object& out) {
  const ArrayView y = float_view(y_argument, "output");
  const ArrayView d_y = gradient_view(d_y_argument, shape_of(y), y, "output");
  const int axis = axis_of(axis_argument, y, "output");
  Output output(out, y_argument, y);
  output.keep_apart(y);
  output.keep_apart_unless_same(d_y);
  const MutableArrayView target = output.view();
  compute(y.dtype, element_count(y), [&](auto zero) {
    using T = decltype(zero);
    if constexpr (kind == Normalisation::softmax) {
      softmax_backward<T>(y, d_y, axis, target);
    } else {
      log_softmax_backward<T>(y, d_y, axis, target);
    }
  });
  return output.result();
}

// ---- Activations

py::array activate_backward_array(Activation activation, py::object& x_argument, py::object& d_y_argument,
                                  const py::object& out) {
  ArrayView x = float_view(x_argument, "x");
  ArrayView d_y = gradient_view(d_y_argument, shape_of(x), x);
  Output output(out, x_argument, x);
  output.keep_apart(x);
  output.keep_apart_unless_same(d_y);
  MutableArrayView target = output.view();
  sort_axes(target, x, d_y);
  const Index size = element_count(x);
  compute(x.dtype, size, [&](auto zero) {
    using T = decltype(zero);
    activate_backward(activation, Elements<T>(x), Elements<T>(d_y), size, MutableElements<T>(target));
  });
  return output.result();
}

template <Activation activation>
py::array activation_backward(py::object x, py::object d_y, const py::object& out) {
  return activate_backward_array(activation, x, d_y, out);
}

py::array gelu_backward(py::object x, py::object d_y, const std::string& approximate, const py::object& out) {
  return activate_backward_array(gelu_activation(approximate), x, d_y, out);
}

// ---- Norms

// A new array like `view`: the gradient of an argument.
py::array gradient_like(const ArrayView& view) { return new_array(view.dtype, view.shape, view.rank); }

// Mean and reciprocal standard deviation are computed again, and d_x is where the output goes meanwhile.
py::tuple layer_norm_backward_arrays(py::object x_argument, py::object d_y_argument,
                                     const py::object& normalized_shape, py::object weight_argument,
                                     const py::object& eps_argument) {
  const ArrayView x = float_view(x_argument, "x");
  const ArrayView d_y = gradient_view(d_y_argument, shape_of(x), x);
  const int axes = normalized_axes(normalized_shape, x);
  const std::optional<ArrayView> weight = norm_parameter(weight_argument, "weight", x, axes);
  const double eps = epsilon_of(eps_argument);
  py::array d_x = gradient_like(x), d_bias = new_array(x.dtype, x.shape + x.rank - axes, axes);
  std::optional<py::array> d_weight;
  if (weight) d_weight = gradient_like(*weight);
  const MutableArrayView d_x_view = mutable_view(d_x), d_bias_view = mutable_view(d_bias);
  const std::optional<MutableArrayView> d_weight_view =
      d_weight ? std::optional(mutable_view(*d_weight)) : std::nullopt;
  const Index rows = product(x, 0, x.rank - axes), features = product(x, x.rank - axes, x.rank);
  compute(x.dtype, rows * features, [&](auto zero) {
    using T = decltype(zero);
    const std::optional<Dense<T>> dense_weight = dense<T>(weight);
    const MutableElements<T> target(d_x_view);
    Tensor<T> mean({rows}), reciprocal_std({rows});
    layer_norm<T>(Elements<T>(x), rows, features, nullptr, nullptr, eps, target, mean.data(),
                  reciprocal_std.data());
    std::optional<DenseResult<T>> of_weight;
    if (d_weight_view) of_weight.emplace(*d_weight_view);
    DenseResult<T> of_bias(d_bias_view);
    layer_norm_backward(Elements<T>(x), mean.data(), reciprocal_std.data(), Elements<T>(d_y), rows, features,
                        data_of(dense_weight), target, of_weight ? of_weight->data() : nullptr,
                        of_bias.data(), Write::replace);
    if (of_weight) of_weight->finish();
    of_bias.finish();
  });
  return py::make_tuple(d_x, d_weight ? py::object(*d_weight) : py::none(), d_bias);
}

py::tuple rms_norm_backward_arrays(py::object x_argument, py::object d_y_argument,
                                   const py::object& normalized_shape, py::object weight_argument,
                                   const py::object& eps_argument) {
  const ArrayView x = float_view(x_argument, "x");
  const ArrayView d_y = gradient_view(d_y_argument, shape_of(x), x);
  const int axes = normalized_axes(normalized_shape, x);
  const std::optional<ArrayView> weight = norm_parameter(weight_argument, "weight", x, axes);
  const double eps = eps_argument.is_none() ? machine_epsilon(x.dtype) : epsilon_of(eps_argument);
  py::array d_x = gradient_like(x);
  std::optional<py::array> d_weight;
  if (weight) d_weight = gradient_like(*weight);
  const MutableArrayView d_x_view = mutable_view(d_x);
  const std::optional<MutableArrayView> d_weight_view =
      d_weight ? std::optional(mutable_view(*d_weight)) : std::nullopt;
  const Index rows = product(x, 0, x.rank - axes), features = product(x, x.rank - axes, x.rank);
  compute(x.dtype, rows * features, [&](auto zero) {
    using T = decltype(zero);
    const std::optional<Dense<T>> dense_weight = dense<T>(weight);
    const MutableElements<T> target(d_x_view);
    Tensor<T> reciprocal_rms({rows});
    rms_norm<T>(Elements<T>(x), rows, features, nullptr, eps, target, reciprocal_rms.data());
    std::optional<DenseResult<T>> of_weight;
    if (d_weight_view) of_weight.emplace(*d_weight_view);
    rms_norm_backward(Elements<T>(x), reciprocal_rms.data(), Elements<T>(d_y), rows, features,
                      data_of(dense_weight), target, of_weight ? of_weight->data() : nullptr, Write::replace);
    if (of_weight) of_weight->finish();
  });
  return py::make_tuple(d_x, d_weight ? py::object(*d_weight) : py::none());
}

// ---- Linear

py::tuple linear_backward_arrays(py::object x_argument, py::object d_y_argument, py::object weight_argument) {
  const ArrayView x = float_view(x_argument, "x");
  const ArrayView weight = view_like(weight_argument, "weight", x);
  require(x.rank >= 1, "x must have the shape (..., in_features), got ()");
  const Index features = x.shape[x.rank - 1];
  require(weight.rank == 2 && weight.shape[1] == features, "weight must have the shape (out_features, ",
          features, ") to fit x ", shape_text(x), ", got ", shape_text(weight));
  const Index outputs = weight.shape[0];
  Shape shape = shape_of(x);
  shape.back() = outputs;
  const ArrayView d_y = gradient_view(d_y_argument, shape, x);
  py::array d_x = gradient_like(x), d_weight = gradient_like(weight);
  py::array d_bias = new_array(x.dtype, &outputs, 1);
  const MutableArrayView targets[] = {mutable_view(d_x), mutable_view(d_weight), mutable_view(d_bias)};
  const Index rows = product(x, 0, x.rank - 1);
  compute(x.dtype, rows * (features + outputs), [&](auto zero) {
    using T = decltype(zero);
    const Dense<T> dense_x(x), dense_d_y(d_y), dense_weight(weight);
    DenseResult<T> of_x(targets[0]), of_weight(targets[1]), of_bias(targets[2]);
    linear_input_gradient(dense_d_y.data(), outputs, rows, outputs, dense_weight.data(), features,
                          of_x.data(), Write::replace);
    linear_weight_gradient(dense_x.data(), dense_d_y.data(), outputs, rows, features, outputs,
                           of_weight.data(), of_bias.data(), Write::replace);
    for (DenseResult<T>* result : {&of_x, &of_weight, &of_bias}) result->finish();
  });
  return py::make_tuple(d_x, d_weight, d_bias);
}

// ---- Embedding

py::array embedding_backward_array(py::object ids_argument, py::object d_y_argument,
                                   const py::object& num_embeddings_argument,
                                   const py::object& padding_idx_argument, const py::object& out) {
  const ArrayView ids = id_view(ids_argument, "ids");
  const ArrayView d_y = float_view(d_y_argument, "d_output");
  const bool fits = d_y.rank == ids.rank + 1 && std::equal(ids.shape, ids.shape + ids.rank, d_y.shape);
  require(fits, "d_output must have the shape (*ids.shape, embedding_dim) to fit ids ", shape_text(ids),
          ", got ", shape_text(d_y));
  const Index num_embeddings = integer(num_embeddings_argument, "num_embeddings");
  require(num_embeddings >= 0, "num_embeddings must be at least 0, got ", num_embeddings);
  std::optional<Index> padding_idx;
  if (!padding_idx_argument.is_none()) {
    padding_idx = integer(padding_idx_argument, "padding_idx");
    require(*padding_idx >= 0 && *padding_idx < num_embeddings, "padding_idx must lie in [0, ",
            num_embeddings, "), got ", *padding_idx);
  }
  const Index dim = d_y.shape[d_y.rank - 1], count = element_count(ids);
  const auto* first_id = static_cast<const std::int64_t*>(ids.data);
  require_ids_in_range(first_id, count, num_embeddings);
  Output output(out, {num_embeddings, dim}, d_y.dtype, "d_output");
  output.keep_apart(d_y);
  const MutableArrayView target = output.view();
  compute(d_y.dtype, (count + num_embeddings) * dim, [&](auto zero) {
    using T = decltype(zero);
    const Dense<T> dense_d_y(d_y);
    DenseResult<T> d_weight(target);
    embedding_backward(first_id, count, dense_d_y.data(), num_embeddings, dim, padding_idx, d_weight.data(),
                       Write::replace);
    d_weight.finish();
  });
  return output.result();
}

// ---- Cross-entropy

enum class Reduction { mean, sum, none };

Reduction reduction_from_name(const std::string& name) {
  if (name == "mean") return Reduction::mean;
  if (name == "sum") return Reduction::sum;
  if (name == "none") return Reduction::none;
  fail("reduction must be \"mean\", \"sum\" or \"none\", got \"", name, "\"");
}

// (classes,) and of the logits' dtype, finite and not negative.
std::optional<ArrayView> class_weights(py::object& argument, const ArrayView& logits, Index classes) {
  if (argument.is_none()) return std::nullopt;
  const ArrayView weight = view_like(argument, "weight", logits, "logits");
  require(weight.rank == 1 && weight.shape[0] == classes, "weight must have the shape (", classes,
          ",), one for each class of logits ", shape_text(logits), ", got ", shape_text(weight));
  const auto check = [&](auto zero) {
    using T = decltype(zero);
    const Dense<T> values(weight);
    for (Index c = 0; c < classes; ++c) {
      const double value = static_cast<double>(values.data()[c]);
      require(std::isfinite(value) && value >= 0, "weight must be finite and at least 0, got ", value,
              " for class ", c);
    }
  };
  weight.dtype == DType::float64 ? check(double()) : check(float());
  return weight;
}

py::tuple cross_entropy_arrays(py::object logits_argument, py::object targets_argument,
                               const py::object& ignore_index, const py::object& label_smoothing,
                               py::object weight_argument, const std::string& reduction_name,
                               const py::object& out) {
  const ArrayView logits = float_view(logits_argument, "logits");
  require(logits.rank >= 1 && logits.shape[logits.rank - 1] > 0,
          "logits must have the shape (..., classes) with at least one class, got ", shape_text(logits));
  const Index classes = logits.shape[logits.rank - 1], rows = product(logits, 0, logits.rank - 1);
  const ArrayView targets = id_view(targets_argument, "targets");
  const bool fits = targets.rank == logits.rank - 1 &&
                    std::equal(targets.shape, targets.shape + targets.rank, logits.shape);
  require(fits, "targets must have the shape of logits without its last axis, ",
          shape_text(logits.shape, logits.rank - 1), ", got ", shape_text(targets));
  const auto* first_target = static_cast<const std::int64_t*>(targets.data);
  const Index ignored = integer(ignore_index, "ignore_index");
  const double smoothing = number(label_smoothing, "label_smoothing");
  require(smoothing >= 0 && smoothing <= 1, "label_smoothing must lie between 0 and 1, got ", smoothing);
  const std::optional<ArrayView> weight = class_weights(weight_argument, logits, classes);
  const Reduction reduction = reduction_from_name(reduction_name);
  target_weight<float>(first_target, rows, classes, {.ignore_index = ignored});  // that targets are in range

  Output output(out, shape_of(logits), logits.dtype, "logits");
  output.keep_apart_unless_same(logits);
  if (weight) output.keep_apart(*weight);
  const MutableArrayView d_logits = output.view();
  std::optional<py::array> losses;
  std::optional<MutableArrayView> losses_view;
  if (reduction == Reduction::none) {
    losses = new_array(logits.dtype, targets.shape, targets.rank);
    losses_view = mutable_view(*losses);
  }
  double loss = 0;
  compute(logits.dtype, element_count(logits), [&](auto zero) {
    using T = decltype(zero);
    const std::optional<Dense<T>> dense_weight = dense<T>(weight);
    const CrossEntropyOptions<T> options{ignored, smoothing, data_of(dense_weight)};
    const bool is_mean = reduction == Reduction::mean;
    const double divisor = is_mean ? target_weight(first_target, rows, classes, options) : 1;
    std::vector<double> of_rows(static_cast<std::size_t>(rows));
    const double sum = cross_entropy(Elements<T>(logits), rows, classes, first_target, options, divisor,
                                     MutableElements<T>(d_logits), of_rows.data());
    loss = divisor == 0 ? 0 : sum / divisor;
    if (!losses_view) return;
    DenseResult<T> result(*losses_view);
    std::transform(of_rows.begin(), of_rows.end(), result.data(),
                   [](double value) { return static_cast<T>(value); });
    result.finish();
  });
  return py::make_tuple(losses ? py::object(*losses) : py::float_(loss), output.result());
}

}  // namespace

void bind_gradients(py::module_& module) {
  module.def("softmax_backward", normalise_backward<Normalisation::softmax>, py::arg("output"),
             py::arg("d_output"), py::arg("axis"), py::arg("out"));
  module.def("log_softmax_backward", normalise_backward<Normalisation::log_softmax>, py::arg("output"),
             py::arg("d_output"), py::arg("axis"), py::arg("out"));
  module.def("gelu_backward", gelu_backward, py::arg("x"), py::arg("d_output"), py::arg("approximate"),
             py::arg("out"));
  module.def("relu_backward", activation_backward<Activation::relu>, py::arg("x"), py::arg("d_output"),
             py::arg("out"));
  module.def("silu_backward", activation_backward<Activation::silu>, py::arg("x"), py::arg("d_output"),
             py::arg("out"));
  module.def("layer_norm_backward", layer_norm_backward_arrays, py::arg("x"), py::arg("d_output"),
             py::arg("normalized_shape"), py::arg("weight"), py::arg("eps"));
  module.def("rms_norm_backward", rms_norm_backward_arrays, py::arg("x"), py::arg("d_output"),
             py::arg("normalized_shape"), py::arg("weight"), py::arg("eps"));
  module.def("linear_backward", linear_backward_arrays, py::arg("x"), py::arg("d_output"), py::arg("weight"));
  module.def("embedding_backward", embedding_backward_array, py::arg("ids"), py::arg("d_output"),
             py::arg("num_embeddings"), py::arg("padding_idx"), py::arg("out"));
  module.def("cross_entropy", cross_entropy_arrays, py::arg("logits"), py::arg("targets"),
             py::arg("ignore_index"), py::arg("label_smoothing"), py::arg("weight"), py::arg("reduction"),
             py::arg("out"));
}

}  // namespace blasformer::bindings
