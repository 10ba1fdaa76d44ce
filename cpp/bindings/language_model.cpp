#include "models/language_model.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/asked_weights.h"
#include "bindings/layer.h"
#include "bindings/loss.h"
#include "bindings/token_sequences.h"
#include "models/sampling.h"

namespace blasformer::bindings {

namespace {

// Sequences that tokens are added to.
class TokenCache {
 public:
  virtual ~TokenCache() = default;
  // Logits of the token after the last, (batch, vocab_size).
  virtual py::array add(py::object ids, py::object added) = 0;
  // Goes on with these sequences, in that order.
  virtual void choose(const std::vector<Index>& rows) = 0;
};

class LanguageModelLayer : public Layer {
 public:
  virtual std::unique_ptr<TokenCache> new_cache(Index batch, Index capacity) const = 0;
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

  std::unique_ptr<TokenCache> new_cache(Index batch, Index capacity) const override;

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
    auto gradients = gradients_for(accumulate);
    const double loss = compute_loss(input, targets, arguments, seed, &gradients.values, gradients.write);
    return py::make_tuple(loss, std::move(gradients.arrays));
  }

 private:
  class Tokens;

  // Gradients that are parts of larger tensors cannot be those of the caller: nothing is to be added to then.
  auto gradients_for(const py::object& accumulate) const {
    if constexpr (L::Family::kProjectionsApart) {
      require(accumulate.is_none(), "accumulate must be None for this model");
      return this->new_gradients();
    } else {
      return accumulate.is_none() ? this->new_gradients() : this->gradients_in(accumulate.cast<py::dict>());
    }
  }

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

template <class L>
class LanguageModelOf<L>::Tokens : public TokenCache {
 public:
  Tokens(const LanguageModelOf& model, Index batch, Index capacity)
      : computing_(model), model_(model.layer()), cache_(model_->new_cache(batch, capacity)) {}

  py::array add(py::object ids, py::object added) override {
    const Tensor<std::int64_t> given = id_input(ids, "ids", true), counts = integer_input(added, "added");
    require(given.rank() == 2 && counts.shape() == cache_.seen.shape() && given.extent(0) == counts.extent(0),
            "ids must be (batch, length) and added (batch,)");
    Tensor<T> logits;
    {
      const ReleaseGil released;
      logits = model_->add_tokens(given, counts, cache_);
    }
    return numpy_view(logits, true);
  }

  void choose(const std::vector<Index>& rows) override {
    const Index batch = cache_.seen.size();
    const bool there = std::ranges::all_of(rows, [&](Index row) { return row >= 0 && row < batch; });
    require(there, "rows must lie in [0, ", batch, ")");
    const ReleaseGil released;
    cache_ = cache_.of_rows(rows);
  }

 private:
  typename Holding<LanguageModelLayer, L>::Computing computing_;
  std::shared_ptr<const L> model_;
  typename L::Cache cache_;
};

template <class L>
std::unique_ptr<TokenCache> LanguageModelOf<L>::new_cache(Index batch, Index capacity) const {
  return std::make_unique<Tokens>(*this, batch, capacity);
}

LanguageModelSizes language_model_sizes(const py::dict& sizes) {
  const auto size = [&](const char* name) { return sizes[name].cast<Index>(); };
  const auto number = [&](const char* name) { return sizes[name].cast<double>(); };
  const auto flag = [&](const char* name) { return sizes[name].cast<bool>(); };
  LanguageModelSizes result{};
  result.vocab_size = size("vocab_size");
  result.max_length = size("max_length");
  result.d_model = size("d_model");
  result.num_heads = size("nhead");
  result.num_layers = size("num_layers");
  result.dim_feedforward = size("dim_feedforward");
  result.activation = activation_from_name(sizes["activation"].cast<std::string>());
  result.layer_norm_eps = number("layer_norm_eps");
  result.embedding_dropout_p = number("embedding_dropout");
  result.attention_dropout_p = number("attention_dropout");
  result.dropout_p = number("dropout");
  result.tied = flag("tied");
  result.recompute = flag("recompute");
  result.num_kv_heads = size("num_kv_heads");
  result.rotary_base = number("rotary_base");
  result.projection_bias = flag("projection_bias");
  return result;
}

template <template <class> class FamilyOf>
std::unique_ptr<LanguageModelLayer> model_of_family(const std::string& dtype, const LanguageModelSizes& sizes,
                                                    Seed seed) {
  return for_dtype<LanguageModelLayer>(dtype, [&]<class T>(T) {
    using L = LanguageModel<T, FamilyOf>;
    L model(sizes);
    if (seed) return initialised<LanguageModelOf>(std::move(model), *seed);
    return std::make_unique<LanguageModelOf<L>>(std::move(model));
  });
}

std::unique_ptr<LanguageModelLayer> language_model(const std::string& dtype, bool llama,
                                                   const py::dict& sizes, Seed seed) {
  if (llama) return model_of_family<Llama>(dtype, language_model_sizes(sizes), seed);
  return model_of_family<Gpt2>(dtype, language_model_sizes(sizes), seed);
}

template <class T>
py::array sample_rows(const py::array& logits, const SamplingOptions& options, const py::object& uniform) {
  const Tensor<T> rows = input<T>(logits, "logits", false);
  const Tensor<double> numbers = input<double>(uniform, "uniform", false);
  require(rows.rank() == 2 && rows.extent(1) > 0 && numbers.size() == rows.extent(0),
          "logits must be (rows, vocabulary) and uniform (rows,)");
  py::array_t<std::int64_t> ids(rows.extent(0));
  sample(rows.data(), rows.extent(0), rows.extent(1), options, numbers.data(), ids.mutable_data());
  return ids;
}

// Tokens chosen from logits (rows, vocabulary) by numbers in [0, 1), (rows,).
py::array sample_tokens(const py::array& logits, double temperature, std::optional<Index> top_k, double top_p,
                        const py::object& uniform) {
  const SamplingOptions options{temperature, top_k, top_p};
  if (dtype_of_array(logits) == DType::float64) return sample_rows<double>(logits, options, uniform);
  return sample_rows<float>(logits, options, uniform);
}

}  // namespace

void bind_language_model(py::module_& module) {
  using Model = LanguageModelLayer;
  using Object = const py::object&;
  py::class_<TokenCache>(module, "TokenCache")
      .def("add", &TokenCache::add, py::arg("ids"), py::arg("added"))
      .def("choose", &TokenCache::choose, py::arg("rows"));
  py::class_<Model, Layer>(module, "LanguageModel")
      .def("new_cache", &Model::new_cache, py::arg("batch"), py::arg("capacity"), py::keep_alive<0, 1>())
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
  module.def("sample_tokens", sample_tokens, py::arg("logits"), py::arg("temperature"), py::arg("top_k"),
             py::arg("top_p"), py::arg("uniform"));
  module.def("language_model", language_model, py::arg("dtype"), py::arg("llama"), py::arg("sizes"),
             py::arg("seed"));
}

}  // namespace blasformer::bindings
