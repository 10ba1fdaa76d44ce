#include "models/language_model.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "bindings/asked_weights.h"
#include "bindings/layer.h"
#include "bindings/loss.h"
#include "bindings/token_sequences.h"

namespace blasformer::bindings {

namespace {

class LanguageModelLayer : public Layer {
 public:
  // (logits, {block: attention weights})
  virtual py::tuple call(const SequenceInput& input, const Selections& selections) const = 0;
  virtual py::tuple forward(const SequenceInput& input, Seed seed) const = 0;
  virtual double target_count(const Tensor<std::int64_t>& targets, std::int64_t ignore_index) const = 0;
  virtual double loss(const SequenceInput& input, const Tensor<std::int64_t>& targets,
                      const LossArguments& arguments) const = 0;
  // (loss, {name: gradient}); accumulate: None, or dense arrays that gradients are added to.
  virtual py::tuple loss_and_gradients(const SequenceInput& input, const Tensor<std::int64_t>& targets,
                                       const LossArguments& arguments, Seed seed,
                                       const py::object& accumulate) const = 0;
};

template <class L>
class LanguageModelOf : public Holding<LanguageModelLayer, L> {
 public:
  using T = typename L::Scalar;
  using Holding<LanguageModelLayer, L>::Holding;

  py::tuple call(const SequenceInput& input, const Selections& selections) const override {
    const std::shared_ptr<const L> model = this->layer();
    Asked<T> asked = asked_of<T>(selections);
    const Tensor<T> logits = this->run(input.sequences.ids.size(), [&] {
      return model->forward(input.sequences, std::nullopt, nullptr, &asked);
    });
    for (auto& [index, of_block] : asked) of_block.weights = input.like_ids(of_block.weights);
    return py::make_tuple(numpy_view(input.like_ids(logits), true), weight_arrays(asked));
  }

  py::tuple forward(const SequenceInput& input, Seed seed) const override {
    auto saved = this->new_saved();
    const std::shared_ptr<const L> model = this->layer();
    const Tensor<T> logits = input.like_ids(this->run(
        input.sequences.ids.size(), [&] { return model->forward(input.sequences, seed, &*saved->values); }));
    saved->output_shape = logits.shape();
    return py::make_tuple(numpy_view(logits, true), std::unique_ptr<Saved>(std::move(saved)));
  }

  double target_count(const Tensor<std::int64_t>& targets, std::int64_t ignore_index) const override {
    return target_weight<T>(targets.data(), targets.size(), this->layer()->vocab_size(), {ignore_index});
  }

  double loss(const SequenceInput& input, const Tensor<std::int64_t>& targets,
              const LossArguments& arguments) const override {
    return compute_loss(input, targets, arguments, std::nullopt, nullptr, Write::replace);
  }

  py::tuple loss_and_gradients(const SequenceInput& input, const Tensor<std::int64_t>& targets,
                               const LossArguments& arguments, Seed seed,
                               const py::object& accumulate) const override {
    auto gradients =
        accumulate.is_none() ? this->new_gradients() : this->gradients_in(accumulate.cast<py::dict>());
    const double loss = compute_loss(input, targets, arguments, seed, &gradients.values, gradients.write);
    return py::make_tuple(loss, std::move(gradients.arrays));
  }

 private:
  double compute_loss(const SequenceInput& input, const Tensor<std::int64_t>& targets,
                      const LossArguments& arguments, Seed seed, L* gradients, Write write) const {
    const std::shared_ptr<const L> model = this->layer();
    const auto options = arguments.options<T>();
    const double divisor =
        arguments.divisor_or(target_weight(targets.data(), targets.size(), model->vocab_size(), options));
    const double sum = this->run(input.sequences.ids.size(), [&] {
      return model->loss(input.sequences, targets, options, divisor, seed, gradients, write);
    });
    return mean_loss(sum, divisor);
  }
};

std::unique_ptr<LanguageModelLayer> language_model(const std::string& dtype, Index vocab_size,
                                                   Index max_length, Index d_model, Index nhead,
                                                   Index num_layers, Index dim_feedforward, double dropout,
                                                   const std::string& activation, double layer_norm_eps,
                                                   bool tied, bool recompute, Seed seed) {
  const LanguageModelSizes sizes{vocab_size,
                                 max_length,
                                 d_model,
                                 nhead,
                                 num_layers,
                                 dim_feedforward,
                                 activation_from_name(activation),
                                 dropout,
                                 layer_norm_eps,
                                 tied,
                                 recompute};
  return for_dtype<LanguageModelLayer>(dtype, [&]<class T>(T) {
    LanguageModel<T> model(sizes);
    if (seed) return initialised<LanguageModelOf>(std::move(model), *seed);
    return std::make_unique<LanguageModelOf<LanguageModel<T>>>(std::move(model));
  });
}

}  // namespace

void bind_language_model(py::module_& module) {
  using Model = LanguageModelLayer;
  using Object = const py::object&;
  py::class_<Model, Layer>(module, "LanguageModel")
      .def(
          "call",
          [](const Model& model, Object ids, Object lengths, Object segments, const Selections& selections) {
            return model.call(token_sequences(ids, lengths, segments), selections);
          },
          py::arg("ids"), py::arg("lengths"), py::arg("segments"), py::arg("selections"))
      .def(
          "forward",
          [](const Model& model, Object ids, Object lengths, Object segments, Seed seed) {
            return model.forward(token_sequences(ids, lengths, segments), seed);
          },
          py::arg("ids"), py::arg("lengths"), py::arg("segments"), py::arg("seed"))
      .def(
          "target_count",
          [](const Model& model, Object ids, Object targets, Object lengths, Object segments,
             std::int64_t ignore_index) {
            SequenceInput input = token_sequences(ids, lengths, segments);
            return model.target_count(target_ids(targets, ignore_index, input), ignore_index);
          },
          py::arg("ids"), py::arg("targets"), py::arg("lengths"), py::arg("segments"),
          py::arg("ignore_index"))
      .def(
          "loss",
          [](const Model& model, Object ids, Object targets, Object lengths, Object segments, Object divisor,
             double label_smoothing, std::int64_t ignore_index) {
            SequenceInput input = token_sequences(ids, lengths, segments);
            const auto wanted = target_ids(targets, ignore_index, input);
            return model.loss(input, wanted, {label_smoothing, ignore_index, divisor});
          },
          py::arg("ids"), py::arg("targets"), py::arg("lengths"), py::arg("segments"), py::arg("divisor"),
          py::arg("label_smoothing"), py::arg("ignore_index"))
      .def(
          "loss_and_gradients",
          [](const Model& model, Object ids, Object targets, Object lengths, Object segments, Object divisor,
             double label_smoothing, std::int64_t ignore_index, Seed seed, Object accumulate) {
            SequenceInput input = token_sequences(ids, lengths, segments);
            const auto wanted = target_ids(targets, ignore_index, input);
            return model.loss_and_gradients(input, wanted, {label_smoothing, ignore_index, divisor}, seed,
                                            accumulate);
          },
          py::arg("ids"), py::arg("targets"), py::arg("lengths"), py::arg("segments"), py::arg("divisor"),
          py::arg("label_smoothing"), py::arg("ignore_index"), py::arg("seed"), py::arg("accumulate"));
  module.def("language_model", language_model, py::arg("dtype"), py::arg("vocab_size"), py::arg("max_length"),
             py::arg("d_model"), py::arg("nhead"), py::arg("num_layers"), py::arg("dim_feedforward"),
             py::arg("dropout"), py::arg("activation"), py::arg("layer_norm_eps"), py::arg("tied"),
             py::arg("recompute"), py::arg("seed"));
}

}  // namespace blasformer::bindings
