#include "models/classifier.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include "bindings/asked_weights.h"
#include "bindings/layer.h"
#include "bindings/loss.h"
#include "bindings/token_sequences.h"

namespace blasformer::bindings {

namespace {

class ClassifierLayer : public Layer {
 public:
  // (logits, {layer: attention weights})
  virtual py::tuple call(py::object x, py::object lengths, py::object mask,
                         const Selections& selections) const = 0;
  virtual py::tuple forward(py::object x, py::object lengths, py::object mask, Seed seed) const = 0;
  virtual double target_weight_sum(py::object targets, const py::object& class_weight,
                                   std::int64_t ignore_index) const = 0;
  virtual double loss(py::object x, py::object targets, py::object lengths, py::object mask,
                      const LossArguments& arguments, const py::object& class_weight) const = 0;
  // (loss, {name: gradient}); accumulate: None, or dense arrays that gradients are added to.
  virtual py::tuple loss_and_gradients(py::object x, py::object targets, py::object lengths, py::object mask,
                                       const LossArguments& arguments, const py::object& class_weight,
                                       Seed seed, const py::object& accumulate) const = 0;
};

// (batch, length) of bool.
Tensor<bool> bool_input(py::object argument, const char* name) {
  const ArrayView view = bool_view(argument, name);
  Tensor<bool> result(Shape(view.shape, view.shape + view.rank));
  const py::array_t<bool, py::array::c_style | py::array::forcecast> dense(argument);
  std::copy_n(dense.data(), result.size(), result.data());
  return result;
}

template <class L>
class ClassifierOf : public Holding<ClassifierLayer, L> {
 public:
  using T = typename L::Scalar;
  using Holding<ClassifierLayer, L>::Holding;

  py::tuple call(py::object x, py::object lengths, py::object mask,
                 const Selections& selections) const override {
    const std::shared_ptr<const L> model = this->layer();
    const Given given = read(x, lengths, mask, false);
    Asked<T> asked = asked_of<T>(selections);
    const Tensor<T> logits = this->run(given.input.size(), [&] {
      return model->forward(given.input, given.present, std::nullopt, nullptr, &asked);
    });
    for (auto& [index, of_layer] : asked) of_layer.weights = given.like_input(of_layer.weights);
    return py::make_tuple(numpy_view(given.like_input(logits), true), weight_arrays(asked));
  }

  py::tuple forward(py::object x, py::object lengths, py::object mask, Seed seed) const override {
    auto saved = this->new_saved();
    const std::shared_ptr<const L> model = this->layer();
    const Given given = read(x, lengths, mask, true);
    const Tensor<T> logits = given.like_input(this->run(given.input.size(), [&] {
      return model->forward(given.input, given.present, seed, &*saved->values);
    }));
    saved->output_shape = logits.shape();
    return py::make_tuple(numpy_view(logits, true), std::unique_ptr<Saved>(std::move(saved)));
  }

  double target_weight_sum(py::object targets, const py::object& class_weight,
                           std::int64_t ignore_index) const override {
    const Tensor<std::int64_t> ids = id_input(targets, "targets", false);
    const Tensor<T> weight = weight_of_classes(class_weight);
    return target_weight<T>(ids.data(), ids.size(), this->layer()->num_classes(),
                            {ignore_index, 0, weight.data()});
  }

  double loss(py::object x, py::object targets, py::object lengths, py::object mask,
              const LossArguments& arguments, const py::object& class_weight) const override {
    const Given given = read(x, lengths, mask, false);
    return compute_loss(given, targets, arguments, class_weight, std::nullopt, nullptr, Write::replace);
  }

  py::tuple loss_and_gradients(py::object x, py::object targets, py::object lengths, py::object mask,
                               const LossArguments& arguments, const py::object& class_weight, Seed seed,
                               const py::object& accumulate) const override {
    const Given given = read(x, lengths, mask, false);
    auto gradients =
        accumulate.is_none() ? this->new_gradients() : this->gradients_in(accumulate.cast<py::dict>());
    const double loss =
        compute_loss(given, targets, arguments, class_weight, seed, &gradients.values, gradients.write);
    return py::make_tuple(loss, std::move(gradients.arrays));
  }

 private:
  struct Given {
    typename L::Input input;  // with an axis for the batch
    PresentPositions present;
    bool batched;
    py::object array;  // that input may look into

    template <class U>
    Tensor<U> like_input(const Tensor<U>& result) const {
      if (batched) return result;
      return Tensor<U>(result.memory(), Shape(result.shape().begin() + 1, result.shape().end()));
    }
  };

  Given read(py::object x, py::object lengths, py::object mask, bool copied) const {
    constexpr Index axes = L::kReadsIds ? 2 : 3;  // with that of the batch
    copied = copied || !lengths.is_none() || !mask.is_none();
    Given given{};
    if constexpr (L::kReadsIds) {
      given.input = id_input(x, "x", true);
    } else {
      given.input = input<T>(x, "x", copied);
      const Index features = this->layer()->embedding.in_features();
      require(given.input.rank() >= 2 && given.input.rank() <= 3 && given.input.shape().back() == features,
              "x must have the shape (batch, length, ", features, ") or (length, ", features, "), got ",
              shape_text(given.input.shape()));
    }
    require(given.input.rank() == axes || given.input.rank() == axes - 1,
            "x must have the shape (batch, length) or (length,), got ", shape_text(given.input.shape()));
    given.batched = given.input.rank() == axes;
    given.array = x;
    Shape shape = given.input.shape();
    if (!given.batched) shape.insert(shape.begin(), 1);
    given.input = typename L::Input(given.input.memory(), shape);
    const Index batch = shape[0], length = shape[1];
    read_lengths(lengths, batch, length, given);
    if (!mask.is_none()) {
      const Tensor<bool> there = bool_input(mask, "mask");
      const Shape expected = given.batched ? Shape{batch, length} : Shape{length};
      require(there.shape() == expected, "mask must have the shape ", shape_text(expected), ", got ",
              shape_text(there.shape()));
      given.present.mask = Tensor<bool>(there.memory(), {batch, length});
    }
    if (copied) clear_absent(given);
    if constexpr (L::kReadsIds)
      require_known_ids(given.input, this->layer()->embedding.num_embeddings(), "x");
    return given;
  }

  static void read_lengths(py::object lengths, Index batch, Index length, Given& given) {
    if (lengths.is_none()) return;
    const Tensor<std::int64_t> of_each = integer_input(lengths, "lengths");
    const Shape expected = given.batched ? Shape{batch} : Shape{};
    require(of_each.shape() == expected, "lengths must have the shape ", shape_text(expected), ", got ",
            shape_text(of_each.shape()));
    for (Index b = 0; b < batch; ++b) {
      const std::int64_t n = of_each.data()[b];
      require(n >= 0 && n <= length, "lengths must lie between 0 and the ", length, " positions of x, got ",
              n);
    }
    given.present.lengths = Tensor<std::int64_t>(of_each.memory(), {batch});
  }

  // What is not there may hold anything.
  static void clear_absent(Given& given) {
    const Index batch = given.input.extent(0), length = given.input.extent(1);
    if (given.input.size() == 0) return;
    const Index features = given.input.size() / (batch * length);
    for (Index b = 0; b < batch; ++b) {
      for (Index i = 0; i < length; ++i) {
        if (given.present.contains(b, i, length)) continue;
        auto* const row = given.input.data() + (b * length + i) * features;
        std::fill_n(row, features, std::remove_cvref_t<decltype(*row)>(0));
      }
    }
  }

  Tensor<T> weight_of_classes(const py::object& class_weight) const {
    if (class_weight.is_none()) return {};
    const Tensor<T> weight = input<T>(class_weight, "class_weight", true);
    const Index classes = this->layer()->num_classes();
    require(weight.shape() == Shape{classes}, "class_weight must have the shape (", classes, ",), got ",
            shape_text(weight.shape()));
    for (Index c = 0; c < classes; ++c) {
      require(weight.data()[c] >= 0 && std::isfinite(weight.data()[c]),
              "class_weight must be finite and not negative, got ", weight.data()[c]);
    }
    return weight;
  }

  double compute_loss(const Given& given, py::object targets, const LossArguments& arguments,
                      const py::object& class_weight, Seed seed, L* gradients, Write write) const {
    const std::shared_ptr<const L> model = this->layer();
    const Tensor<std::int64_t> classes = id_input(targets, "targets", true);
    const Shape expected = given.batched ? Shape{given.input.extent(0)} : Shape{};
    require(classes.shape() == expected, "targets must have the shape ", shape_text(expected), ", got ",
            shape_text(classes.shape()));
    const Tensor<T> weight = weight_of_classes(class_weight);
    const auto options = arguments.options<T>(weight.data());
    const double divisor =
        arguments.divisor_or(target_weight(classes.data(), classes.size(), model->num_classes(), options));
    const double sum = this->run(given.input.size(), [&] {
      return model->loss(given.input, given.present, classes, options, divisor, seed, gradients, write);
    });
    return mean_loss(sum, divisor);
  }
};

std::unique_ptr<ClassifierLayer> classifier(const std::string& dtype, bool reads_ids, Index inputs,
                                            Index num_classes, Index max_length, Index d_model, Index nhead,
                                            Index num_layers, Index dim_feedforward, double dropout,
                                            const std::string& activation, double layer_norm_eps,
                                            bool norm_first, const std::string& pooling, bool recompute,
                                            Seed seed) {
  require(pooling == "mean" || pooling == "first", "pooling must be \"mean\" or \"first\", got \"", pooling,
          "\"");
  const ClassifierSizes sizes{inputs,
                              num_classes,
                              max_length,
                              d_model,
                              nhead,
                              num_layers,
                              dim_feedforward,
                              activation_from_name(activation),
                              dropout,
                              layer_norm_eps,
                              pooling == "mean" ? Pooling::mean : Pooling::first,
                              recompute};
  const auto make = [&]<class Model>(std::type_identity<Model>) -> std::unique_ptr<ClassifierLayer> {
    Model model(sizes);
    if (seed) return initialised<ClassifierOf>(std::move(model), *seed);
    return std::make_unique<ClassifierOf<Model>>(std::move(model));
  };
  return for_dtype<ClassifierLayer>(dtype, [&]<class T>(T) {
    const auto of_input = [&]<class Embed>(std::type_identity<Embed>) {
      if (norm_first) return make(std::type_identity<Classifier<Embed, PreNormEncoderLayer<T>>>());
      return make(std::type_identity<Classifier<Embed, PostNormEncoderLayer<T>>>());
    };
    return reads_ids ? of_input(std::type_identity<Embedding<T>>())
                     : of_input(std::type_identity<Linear<T>>());
  });
}

}  // namespace

void bind_classifier(py::module_& module) {
  using Model = ClassifierLayer;
  using Object = const py::object&;
  py::class_<Model, Layer>(module, "Classifier")
      .def("call", &Model::call, py::arg("x"), py::arg("lengths"), py::arg("mask"), py::arg("selections"))
      .def("forward", &Model::forward, py::arg("x"), py::arg("lengths"), py::arg("mask"), py::arg("seed"))
      .def("target_weight", &Model::target_weight_sum, py::arg("targets"), py::arg("class_weight"),
           py::arg("ignore_index"))
      .def(
          "loss",
          [](const Model& model, Object x, Object targets, Object lengths, Object mask, Object divisor,
             double label_smoothing, Object class_weight, std::int64_t ignore_index) {
            return model.loss(x, targets, lengths, mask, {label_smoothing, ignore_index, divisor},
                              class_weight);
          },
          py::arg("x"), py::arg("targets"), py::arg("lengths"), py::arg("mask"), py::arg("divisor"),
          py::arg("label_smoothing"), py::arg("class_weight"), py::arg("ignore_index"))
      .def(
          "loss_and_gradients",
          [](const Model& model, Object x, Object targets, Object lengths, Object mask, Object divisor,
             double label_smoothing, Object class_weight, std::int64_t ignore_index, Seed seed,
             Object accumulate) {
            return model.loss_and_gradients(x, targets, lengths, mask,
                                            {label_smoothing, ignore_index, divisor}, class_weight, seed,
                                            accumulate);
          },
          py::arg("x"), py::arg("targets"), py::arg("lengths"), py::arg("mask"), py::arg("divisor"),
          py::arg("label_smoothing"), py::arg("class_weight"), py::arg("ignore_index"), py::arg("seed"),
          py::arg("accumulate"));
  module.def("classifier", classifier, py::arg("dtype"), py::arg("reads_ids"), py::arg("inputs"),
             py::arg("num_classes"), py::arg("max_length"), py::arg("d_model"), py::arg("nhead"),
             py::arg("num_layers"), py::arg("dim_feedforward"), py::arg("dropout"), py::arg("activation"),
             py::arg("layer_norm_eps"), py::arg("norm_first"), py::arg("pooling"), py::arg("recompute"),
             py::arg("seed"));
}

}  // namespace blasformer::bindings
