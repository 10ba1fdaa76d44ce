#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings/bert_arguments.h"
#include "bindings/layer.h"
#include "bindings/loss.h"
#include "models/bert_question_answering.h"

namespace blasformer::bindings {

namespace {

class QuestionAnswering : public Layer {
 public:
  // (logits (total, 2), {layer: weights of each sequence})
  virtual py::tuple call(const PackedTokens& tokens, const AskedLayers& asked) const = 0;
  virtual py::tuple forward(const PackedTokens& tokens, Seed seed) const = 0;
  virtual double loss(const PackedTokens& tokens, const AnswerSpans& answers,
                      const LossArguments& arguments) const = 0;
  virtual py::tuple loss_and_gradients(const PackedTokens& tokens, const AnswerSpans& answers,
                                       const LossArguments& arguments, Seed seed) const = 0;
};

template <class L>
class QuestionAnsweringOf : public Holding<QuestionAnswering, L> {
 public:
  using T = typename L::Scalar;
  using Holding<QuestionAnswering, L>::Holding;

  py::tuple call(const PackedTokens& tokens, const AskedLayers& asked_layers) const override {
    auto asked = asked_of<BertModel<T>>(asked_layers);
    const std::shared_ptr<const L> model = this->layer();
    const Tensor<T> logits = this->run(tokens.ids.size(), [&] { return model->forward(tokens, &asked); });
    return py::make_tuple(numpy_view(logits, true), weight_arrays(asked));
  }

  py::tuple forward(const PackedTokens& tokens, Seed seed) const override {
    auto saved = this->new_saved();
    const std::shared_ptr<const L> model = this->layer();
    const Tensor<T> logits =
        this->run(tokens.ids.size(), [&] { return model->forward(tokens, nullptr, seed, &*saved->values); });
    saved->output_shape = logits.shape();
    return py::make_tuple(numpy_view(logits, true), std::unique_ptr<Saved>(std::move(saved)));
  }

  double loss(const PackedTokens& tokens, const AnswerSpans& answers,
              const LossArguments& arguments) const override {
    return compute_loss(tokens, answers, arguments, std::nullopt, nullptr);
  }

  py::tuple loss_and_gradients(const PackedTokens& tokens, const AnswerSpans& answers,
                               const LossArguments& arguments, Seed seed) const override {
    auto gradients = this->new_gradients();
    const double loss = compute_loss(tokens, answers, arguments, seed, &gradients.values);
    return py::make_tuple(loss, std::move(gradients.arrays));
  }

 private:
  double compute_loss(const PackedTokens& tokens, const AnswerSpans& answers, const LossArguments& arguments,
                      Seed seed, L* gradients) const {
    const std::shared_ptr<const L> model = this->layer();
    const auto options = arguments.options<T>();
    const std::int64_t* const targets = answers.targets.data();
    const auto counting =
        answers.targets.size() - std::count(targets, targets + answers.targets.size(), options.ignore_index);
    const double divisor = arguments.divisor_or(static_cast<double>(counting));
    const double sum = this->run(
        tokens.ids.size(), [&] { return model->loss(tokens, answers, options, divisor, seed, gradients); });
    return mean_loss(sum, divisor);
  }
};

// candidates (n,): tokens, of each sequence as `starts` says; targets (2 sequences,): which of these.
AnswerSpans answer_spans(const py::object& candidates, const std::vector<Index>& starts,
                         const py::object& targets) {
  return {indices(candidates, "candidates"), starts, indices(targets, "targets")};
}

std::unique_ptr<QuestionAnswering> bert_question_answering(const std::string& dtype, const py::dict& sizes,
                                                           Seed seed) {
  return for_dtype<QuestionAnswering>(dtype, [&]<class T>(T) {
    return made<QuestionAnsweringOf>(BertQuestionAnswering<T>(bert_sizes(sizes)), seed);
  });
}

}  // namespace

void bind_question_answering(py::module_& module) {
  using Model = QuestionAnswering;
  using Object = const py::object&;
  using Starts = const std::vector<Index>&;
  py::class_<Model, Layer>(module, "BertQuestionAnswering")
      .def(
          "call",
          [](const Model& model, Object ids, Object positions, Object types, Starts starts,
             const AskedLayers& asked) {
            return model.call(packed_tokens(ids, positions, types, starts), asked);
          },
          py::arg("ids"), py::arg("positions"), py::arg("types"), py::arg("starts"), py::arg("asked"))
      .def(
          "forward",
          [](const Model& model, Object ids, Object positions, Object types, Starts starts, Seed seed) {
            return model.forward(packed_tokens(ids, positions, types, starts), seed);
          },
          py::arg("ids"), py::arg("positions"), py::arg("types"), py::arg("starts"), py::arg("seed"))
      .def(
          "loss",
          [](const Model& model, Object ids, Object positions, Object types, Starts starts, Object candidates,
             Starts candidate_starts, Object targets, Object divisor, double label_smoothing,
             std::int64_t ignore_index) {
            return model.loss(packed_tokens(ids, positions, types, starts),
                              answer_spans(candidates, candidate_starts, targets),
                              {label_smoothing, ignore_index, divisor});
          },
          py::arg("ids"), py::arg("positions"), py::arg("types"), py::arg("starts"), py::arg("candidates"),
          py::arg("candidate_starts"), py::arg("targets"), py::arg("divisor"), py::arg("label_smoothing"),
          py::arg("ignore_index"))
      .def(
          "loss_and_gradients",
          [](const Model& model, Object ids, Object positions, Object types, Starts starts, Object candidates,
             Starts candidate_starts, Object targets, Object divisor, double label_smoothing,
             std::int64_t ignore_index, Seed seed) {
            return model.loss_and_gradients(packed_tokens(ids, positions, types, starts),
                                            answer_spans(candidates, candidate_starts, targets),
                                            {label_smoothing, ignore_index, divisor}, seed);
          },
          py::arg("ids"), py::arg("positions"), py::arg("types"), py::arg("starts"), py::arg("candidates"),
          py::arg("candidate_starts"), py::arg("targets"), py::arg("divisor"), py::arg("label_smoothing"),
          py::arg("ignore_index"), py::arg("seed"));
  module.def("bert_question_answering", bert_question_answering, py::arg("dtype"), py::arg("sizes"),
             py::arg("seed"));
}

}  // namespace blasformer::bindings
