#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/bert_arguments.h"
#include "bindings/layer.h"
#include "bindings/loss.h"
#include "models/bert.h"
#include "models/bert_classifier.h"

namespace blasformer::bindings {

namespace {

class Bert : public Layer {
 public:
  // (last hidden states (total, hidden_size), pooled (sequences, hidden_size) or None,
  // {layer: weights of each sequence})
  virtual py::tuple call(const PackedTokens& tokens, const AskedLayers& asked, bool with_pooled) const = 0;
  // (last hidden states, pooled or None, saved)
  virtual py::tuple forward(const PackedTokens& tokens, bool with_pooled, Seed seed) const = 0;
  // {name: gradient}. d_pooled may be None.
  virtual py::dict gradients(Saved& saved, const py::object& d_hidden, const py::object& d_pooled) = 0;
};

template <class L>
class BertOf : public Holding<Bert, L> {
 public:
  using T = typename L::Scalar;
  using Holding<Bert, L>::Holding;

  py::tuple call(const PackedTokens& tokens, const AskedLayers& asked_layers,
                 bool with_pooled) const override {
    auto asked = asked_of<L>(asked_layers);
    const std::shared_ptr<const L> model = this->layer();
    Tensor<T> hidden, pooled;
    this->run(tokens.ids.size(), [&] {
      hidden = model->forward(tokens, &asked);
      if (with_pooled) pooled = model->pool(hidden, tokens.starts);
    });
    return py::make_tuple(numpy_view(hidden, true), array_or_none(pooled), weight_arrays(asked));
  }

  py::tuple forward(const PackedTokens& tokens, bool with_pooled, Seed seed) const override {
    auto saved = this->new_saved();
    const std::shared_ptr<const L> model = this->layer();
    Tensor<T> hidden, pooled;
    this->run(tokens.ids.size(), [&] {
      hidden = model->forward(tokens, nullptr, seed, &*saved->values);
      if (with_pooled) pooled = model->pool(hidden, tokens.starts, &*saved->values);
    });
    saved->output_shape = hidden.shape();
    return py::make_tuple(numpy_view(hidden, true), array_or_none(pooled),
                          std::unique_ptr<Saved>(std::move(saved)));
  }

  py::dict gradients(Saved& saved, const py::object& d_hidden, const py::object& d_pooled) override {
    const Tensor<T> pooled_gradient =
        d_pooled.is_none() ? Tensor<T>() : input<T>(d_pooled, "d_pooler_output", false);
    const auto backward = [&](const L& model, const typename L::Saved& values, const Tensor<T>& d_y,
                              L& gradients, Write write) {
      require(pooled_gradient.empty() || pooled_gradient.shape() == values.pooled.shape(),
              "d_pooler_output must have the shape of pooler_output, ", shape_text(values.pooled.shape()),
              ", got ", shape_text(pooled_gradient.shape()));
      model.backward(values, d_y, pooled_gradient, gradients, write);
    };
    return this->backward_by(saved, d_hidden, backward)[1];
  }
};

class BertClassifierLayer : public Layer {
 public:
  virtual py::array call(const PackedTokens& tokens) const = 0;
  virtual py::tuple forward(const PackedTokens& tokens, Seed seed) const = 0;
  virtual double loss(const PackedTokens& tokens, const Tensor<std::int64_t>& targets,
                      const LossArguments& arguments) const = 0;
  virtual py::tuple loss_and_gradients(const PackedTokens& tokens, const Tensor<std::int64_t>& targets,
                                       const LossArguments& arguments, Seed seed) const = 0;
};

template <class L>
class BertClassifierOf : public Holding<BertClassifierLayer, L> {
 public:
  using T = typename L::Scalar;
  using Holding<BertClassifierLayer, L>::Holding;

  py::array call(const PackedTokens& tokens) const override {
    const std::shared_ptr<const L> model = this->layer();
    return numpy_view(this->run(tokens.ids.size(), [&] { return model->forward(tokens); }), true);
  }

  py::tuple forward(const PackedTokens& tokens, Seed seed) const override {
    auto saved = this->new_saved();
    const std::shared_ptr<const L> model = this->layer();
    const Tensor<T> logits =
        this->run(tokens.ids.size(), [&] { return model->forward(tokens, seed, &*saved->values); });
    saved->output_shape = logits.shape();
    return py::make_tuple(numpy_view(logits, true), std::unique_ptr<Saved>(std::move(saved)));
  }

  double loss(const PackedTokens& tokens, const Tensor<std::int64_t>& targets,
              const LossArguments& arguments) const override {
    return compute_loss(tokens, targets, arguments, std::nullopt, nullptr);
  }

  py::tuple loss_and_gradients(const PackedTokens& tokens, const Tensor<std::int64_t>& targets,
                               const LossArguments& arguments, Seed seed) const override {
    auto gradients = this->new_gradients();
    const double loss = compute_loss(tokens, targets, arguments, seed, &gradients.values);
    return py::make_tuple(loss, std::move(gradients.arrays));
  }

 private:
  double compute_loss(const PackedTokens& tokens, const Tensor<std::int64_t>& targets,
                      const LossArguments& arguments, Seed seed, L* gradients) const {
    const std::shared_ptr<const L> model = this->layer();
    const auto options = arguments.options<T>();
    const Index sequences = static_cast<Index>(tokens.starts.size()) - 1;
    require(targets.size() == sequences, "labels must be as many as the ", sequences, " sequences, got ",
            targets.size());
    const double divisor =
        arguments.divisor_or(target_weight(targets.data(), targets.size(), model->classes(), options));
    const double sum = this->run(tokens.ids.size(), [&] {
      typename L::Saved saved;
      Tensor<T> logits = model->forward(tokens, seed, gradients != nullptr ? &saved : nullptr);
      T* const d_logits = gradients != nullptr ? logits.data() : nullptr;  // in their place
      const double total = cross_entropy(logits.data(), sequences, model->classes(), targets.data(), options,
                                         divisor, d_logits);
      if (gradients != nullptr) model->backward(saved, logits, *gradients, Write::replace);
      return total;
    });
    return mean_loss(sum, divisor);
  }
};

std::unique_ptr<Bert> bert_model(const std::string& dtype, const py::dict& sizes, Seed seed) {
  return for_dtype<Bert>(dtype,
                         [&]<class T>(T) { return made<BertOf>(BertModel<T>(bert_sizes(sizes)), seed); });
}

std::unique_ptr<BertClassifierLayer> bert_classifier(const std::string& dtype, const py::dict& sizes,
                                                     Index classes, bool mean, double dropout, Seed seed) {
  const SequencePooling pooling = mean ? SequencePooling::mean : SequencePooling::pooler;
  return for_dtype<BertClassifierLayer>(dtype, [&]<class T>(T) {
    return made<BertClassifierOf>(BertClassifier<T>(bert_sizes(sizes), classes, pooling, dropout), seed);
  });
}

}  // namespace

void bind_models(py::module_& module) {
  using Object = const py::object&;
  using Starts = const std::vector<Index>&;
  py::class_<Bert, Layer>(module, "BertModel")
      .def(
          "call",
          [](const Bert& model, Object ids, Object positions, Object types, Starts starts,
             const AskedLayers& asked, bool with_pooled) {
            return model.call(packed_tokens(ids, positions, types, starts), asked, with_pooled);
          },
          py::arg("ids"), py::arg("positions"), py::arg("types"), py::arg("starts"), py::arg("asked"),
          py::arg("with_pooled"))
      .def(
          "forward",
          [](const Bert& model, Object ids, Object positions, Object types, Starts starts, bool with_pooled,
             Seed seed) {
            return model.forward(packed_tokens(ids, positions, types, starts), with_pooled, seed);
          },
          py::arg("ids"), py::arg("positions"), py::arg("types"), py::arg("starts"), py::arg("with_pooled"),
          py::arg("seed"))
      .def("gradients", &Bert::gradients, py::arg("saved"), py::arg("d_hidden"), py::arg("d_pooled"));
  using Classifier = BertClassifierLayer;
  py::class_<Classifier, Layer>(module, "BertClassifier")
      .def(
          "call",
          [](const Classifier& model, Object ids, Object positions, Object types, Starts starts) {
            return model.call(packed_tokens(ids, positions, types, starts));
          },
          py::arg("ids"), py::arg("positions"), py::arg("types"), py::arg("starts"))
      .def(
          "forward",
          [](const Classifier& model, Object ids, Object positions, Object types, Starts starts, Seed seed) {
            return model.forward(packed_tokens(ids, positions, types, starts), seed);
          },
          py::arg("ids"), py::arg("positions"), py::arg("types"), py::arg("starts"), py::arg("seed"))
      .def(
          "loss",
          [](const Classifier& model, Object ids, Object positions, Object types, Starts starts,
             Object labels, Object divisor, double label_smoothing, std::int64_t ignore_index) {
            return model.loss(packed_tokens(ids, positions, types, starts), indices(labels, "labels"),
                              {label_smoothing, ignore_index, divisor});
          },
          py::arg("ids"), py::arg("positions"), py::arg("types"), py::arg("starts"), py::arg("labels"),
          py::arg("divisor"), py::arg("label_smoothing"), py::arg("ignore_index"))
      .def(
          "loss_and_gradients",
          [](const Classifier& model, Object ids, Object positions, Object types, Starts starts,
             Object labels, Object divisor, double label_smoothing, std::int64_t ignore_index, Seed seed) {
            return model.loss_and_gradients(packed_tokens(ids, positions, types, starts),
                                            indices(labels, "labels"),
                                            {label_smoothing, ignore_index, divisor}, seed);
          },
          py::arg("ids"), py::arg("positions"), py::arg("types"), py::arg("starts"), py::arg("labels"),
          py::arg("divisor"), py::arg("label_smoothing"), py::arg("ignore_index"), py::arg("seed"));
  module.def("bert_model", bert_model, py::arg("dtype"), py::arg("sizes"), py::arg("seed"));
  module.def("bert_classifier", bert_classifier, py::arg("dtype"), py::arg("sizes"), py::arg("classes"),
             py::arg("mean"), py::arg("dropout"), py::arg("seed"));
}

}  // namespace blasformer::bindings
