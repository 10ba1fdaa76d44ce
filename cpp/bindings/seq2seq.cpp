#include "models/seq2seq.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "bindings/asked_weights.h"
#include "bindings/layer.h"
#include "bindings/loss.h"
#include "bindings/token_sequences.h"

namespace blasformer::bindings {

namespace {

// The ids of a source, or its vectors, whose ids are all 0.
struct SourceInput : SequenceInput {
  py::object vectors;  // None for ids

  template <class T>
  SourceSequences<T> read() const {
    SourceSequences<T> source{sequences, {}};
    if (vectors.is_none()) return source;
    const Tensor<T> given = input<T>(vectors, "source_ids", true);
    const Index batch = sequences.ids.extent(0), length = sequences.ids.extent(1),
                features = given.shape().back();
    source.vectors = Tensor<T>(given.memory(), {batch, length, features});
    for (Index b = 0; b < sequences.lengths.size(); ++b) {
      T* const row = source.vectors.data() + b * length * features;
      std::fill(row + sequences.lengths.data()[b] * features, row + length * features, T(0));
    }
    return source;
  }
};

// A source, and the target as the decoder reads it: behind its first token, which is no part of the target.
struct SequencePair {
  SourceInput source;
  SequenceInput target;
  Tensor<std::int64_t> targets;  // what each token that the decoder reads is to predict
};

struct EndTokens {
  std::int64_t first, last;
};

// Targets that are added to.
class TargetCache {
 public:
  virtual ~TargetCache() = default;
  // Adds a token to each target; the logits of the next, (targets, target_vocab_size).
  virtual py::array add(py::object ids) = 0;
  // Goes on with these sources, and these targets of theirs: as many for each, in the order of the sources.
  virtual void choose(const std::vector<Index>& sources, const std::vector<Index>& targets) = 0;
};

class Seq2SeqLayer : public Layer {
 public:
  virtual EndTokens end_tokens() const = 0;
  virtual Index source_features() const = 0;  // 0 for sources of ids
  virtual Index source_vocab_size() const = 0;
  virtual Index target_vocab_size() const = 0;
  // (logits, {decoder layer: weights of its attention to the source})
  virtual py::tuple call(const SequencePair& pair, const Selections& selections) const = 0;
  virtual py::tuple forward(const SequencePair& pair, Seed seed) const = 0;
  virtual double target_count(const SequencePair& pair, std::int64_t ignore_index) const = 0;
  virtual double loss(const SequencePair& pair, const LossArguments& arguments) const = 0;
  // (loss, {name: gradient}); accumulate: None, or dense arrays that gradients are added to.
  virtual py::tuple loss_and_gradients(const SequencePair& pair, const LossArguments& arguments, Seed seed,
                                       const py::object& accumulate) const = 0;
  // One empty target for each source, with room for `capacity` tokens.
  virtual std::unique_ptr<TargetCache> encode(const SourceInput& source, Index capacity) const = 0;
};

SourceInput source_input(const Seq2SeqLayer& model, const py::object& source, const py::object& lengths) {
  const Index features = model.source_features();
  if (features == 0) {
    SequenceInput ids = token_sequences(source, lengths, py::none(), "source_ids", "source_lengths");
    require_known_ids(ids.sequences.ids, model.source_vocab_size(), "source_ids");
    return {std::move(ids), py::none()};
  }
  if (!py::isinstance<py::array>(source))
    fail<TypeMismatch>("source_ids must be a NumPy array of vectors, got ", type_name(source));
  const auto array = py::reinterpret_borrow<py::array>(source);
  const Shape shape(array.shape(), array.shape() + array.ndim());
  require((shape.size() == 2 || shape.size() == 3) && shape.back() == features,
          "source_ids must have the shape (batch, length, ", features, ") or (length, ", features, "), got ",
          shape_text(shape));
  py::array_t<std::int64_t> zeros(std::vector<py::ssize_t>(shape.begin(), shape.end() - 1));
  std::fill_n(zeros.mutable_data(), zeros.size(), 0);
  return {token_sequences(zeros, lengths, py::none(), "source_ids", "source_lengths"), source};
}

SequencePair sequence_pair(const Seq2SeqLayer& model, const py::object& source_ids,
                           const py::object& target_ids, const py::object& source_lengths,
                           const py::object& target_lengths, std::int64_t ignore_index) {
  SequencePair pair{source_input(model, source_ids, source_lengths),
                    token_sequences(target_ids, target_lengths, py::none(), "target_ids", "target_lengths"),
                    {}};
  TokenSequences& target = pair.target.sequences;
  require_known_ids(target.ids, model.target_vocab_size(), "target_ids");
  const Index batch = target.ids.extent(0), length = target.ids.extent(1);
  require(pair.source.batched == pair.target.batched && pair.source.sequences.ids.extent(0) == batch,
          "target_ids must have the batch of source_ids, ",
          shape_text(pair.source.like_ids(pair.source.sequences.ids).shape()), ", got ",
          shape_text(pair.target.like_ids(target.ids).shape()));
  Tensor<std::int64_t> read({batch, length + 1});
  pair.targets = Tensor<std::int64_t>::full({batch, length + 1}, ignore_index);
  for (Index b = 0; b < batch; ++b) {
    const std::int64_t* const ids = target.ids.data() + b * length;
    std::int64_t* const own = read.data() + b * (length + 1);
    std::int64_t* const next = pair.targets.data() + b * (length + 1);
    const Index count = target.lengths.empty() ? length : target.lengths.data()[b];
    own[0] = model.end_tokens().first;
    std::copy_n(ids, length, own + 1);
    std::copy_n(ids, count, next);
    next[count] = model.end_tokens().last;
    if (!target.lengths.empty()) ++target.lengths.data()[b];
  }
  target.ids = read;
  return pair;
}

template <class L>
class Seq2SeqOf : public Holding<Seq2SeqLayer, L> {
 public:
  using T = typename L::Scalar;
  Seq2SeqOf(L model, EndTokens ends) : Holding<Seq2SeqLayer, L>(std::move(model)), ends_(ends) {}

  EndTokens end_tokens() const override { return ends_; }
  Index source_features() const override { return this->layer()->source_features(); }
  Index source_vocab_size() const override {
    const std::shared_ptr<const L> model = this->layer();
    return model->source_embedding ? model->source_embedding->num_embeddings() : model->target_vocab_size();
  }
  Index target_vocab_size() const override { return this->layer()->target_vocab_size(); }

  py::tuple call(const SequencePair& pair, const Selections& selections) const override {
    const std::shared_ptr<const L> model = this->layer();
    typename L::Asked asked;
    for (const auto& [index, selection] : selections)
      asked.decoder[index].multihead_attn.selection = *selection_of(selection);
    const auto source = pair.source.read<T>();
    const Tensor<T> logits = this->run(size_of(pair), [&] {
      return model->forward(source, pair.target.sequences, std::nullopt, nullptr, &asked);
    });
    py::dict weights;
    for (const auto& [index, of_layer] : asked.decoder)
      weights[py::int_(index)] = numpy_view(pair.target.like_ids(of_layer.multihead_attn.weights), true);
    return py::make_tuple(numpy_view(pair.target.like_ids(logits), true), weights);
  }

  py::tuple forward(const SequencePair& pair, Seed seed) const override {
    auto saved = this->new_saved();
    const std::shared_ptr<const L> model = this->layer();
    const auto source = pair.source.read<T>();
    const Tensor<T> logits = pair.target.like_ids(this->run(
        size_of(pair), [&] { return model->forward(source, pair.target.sequences, seed, &*saved->values); }));
    saved->output_shape = logits.shape();
    return py::make_tuple(numpy_view(logits, true), std::unique_ptr<Saved>(std::move(saved)));
  }

  double target_count(const SequencePair& pair, std::int64_t ignore_index) const override {
    return target_weight<T>(pair.targets.data(), pair.targets.size(), this->layer()->target_vocab_size(),
                            {ignore_index});
  }

  double loss(const SequencePair& pair, const LossArguments& arguments) const override {
    return compute_loss(pair, arguments, std::nullopt, nullptr, Write::replace);
  }

  py::tuple loss_and_gradients(const SequencePair& pair, const LossArguments& arguments, Seed seed,
                               const py::object& accumulate) const override {
    auto gradients =
        accumulate.is_none() ? this->new_gradients() : this->gradients_in(accumulate.cast<py::dict>());
    const double loss = compute_loss(pair, arguments, seed, &gradients.values, gradients.write);
    return py::make_tuple(loss, std::move(gradients.arrays));
  }

  std::unique_ptr<TargetCache> encode(const SourceInput& source, Index capacity) const override;

 private:
  class Targets;

  static Index size_of(const SequencePair& pair) {
    return pair.source.sequences.ids.size() + pair.target.sequences.ids.size();
  }

  double compute_loss(const SequencePair& pair, const LossArguments& arguments, Seed seed, L* gradients,
                      Write write) const {
    const std::shared_ptr<const L> model = this->layer();
    const auto options = arguments.options<T>();
    const double divisor = arguments.divisor_or(
        target_weight(pair.targets.data(), pair.targets.size(), model->target_vocab_size(), options));
    const auto source = pair.source.read<T>();
    const double sum = this->run(size_of(pair), [&] {
      return model->loss(source, pair.target.sequences, pair.targets, options, divisor, seed, gradients,
                         write);
    });
    return mean_loss(sum, divisor);
  }

  EndTokens ends_;
};

template <class L>
class Seq2SeqOf<L>::Targets : public TargetCache {
 public:
  Targets(const Seq2SeqOf& model, const SourceSequences<T>& source, Index capacity)
      : computing_(model), model_(model.layer()), cache_(encoded(*model_, source, capacity)) {}

  py::array add(py::object ids) override {
    const Tensor<std::int64_t> given = id_input(ids, "ids", true);
    require(given.shape() == cache_.seen.shape(), "ids must have the shape ", shape_text(cache_.seen.shape()),
            ", got ", shape_text(given.shape()));
    Tensor<T> logits;
    {
      const ReleaseGil released;
      logits = model_->add_tokens(given, cache_);
    }
    return numpy_view(logits, true);
  }

  void choose(const std::vector<Index>& sources, const std::vector<Index>& targets) override {
    const auto within = [](const std::vector<Index>& rows, Index count) {
      return std::ranges::all_of(rows, [count](Index row) { return row >= 0 && row < count; });
    };
    require(within(sources, cache_.memories()) && within(targets, cache_.seen.size()) &&
                (sources.empty() ? targets.empty() : targets.size() % sources.size() == 0),
            "sources and targets must be rows of what there is");
    const ReleaseGil released;
    cache_ = cache_.of_rows(sources, targets);
  }

 private:
  static DecoderCache<T> encoded(const L& model, const SourceSequences<T>& source, Index capacity) {
    const ReleaseGil released;
    return model.encode(source, capacity);
  }

  typename Holding<Seq2SeqLayer, L>::Computing computing_;
  std::shared_ptr<const L> model_;
  DecoderCache<T> cache_;
};

template <class L>
std::unique_ptr<TargetCache> Seq2SeqOf<L>::encode(const SourceInput& source, Index capacity) const {
  return std::make_unique<Targets>(*this, source.read<T>(), capacity);
}

std::unique_ptr<Seq2SeqLayer> seq2seq(const std::string& dtype, std::optional<Index> source_vocab_size,
                                      std::optional<Index> source_features, Index target_vocab_size,
                                      std::int64_t bos_id, std::int64_t eos_id, const std::string& positions,
                                      Index max_length, Index d_model, Index nhead, Index num_encoder_layers,
                                      Index num_decoder_layers, Index dim_feedforward, double dropout,
                                      const std::string& activation, double layer_norm_eps, bool norm_first,
                                      bool shared, bool tied, bool recompute, Seed seed) {
  require(positions == "sinusoidal" || positions == "learned",
          "positions must be \"sinusoidal\" or \"learned\", got \"", positions, "\"");
  require(source_vocab_size.has_value() != source_features.has_value(),
          "source_vocab_size must be given, or source_features in its place, got ",
          source_vocab_size ? "both" : "neither");
  require(!source_features || *source_features > 0, "source_features must be positive, got ",
          source_features.value_or(0));
  require(!source_features || !shared, "shared must be False where sources are vectors, got True");
  const Seq2SeqSizes sizes{source_vocab_size.value_or(0),
                           source_features.value_or(0),
                           target_vocab_size,
                           max_length,
                           d_model,
                           nhead,
                           num_encoder_layers,
                           num_decoder_layers,
                           dim_feedforward,
                           activation_from_name(activation),
                           dropout,
                           layer_norm_eps,
                           shared,
                           tied,
                           recompute};
  const auto make = [&]<class Model>(std::type_identity<Model>) -> std::unique_ptr<Seq2SeqLayer> {
    Model model(sizes);
    for (const auto& [name, id] : {std::pair("bos_id", bos_id), std::pair("eos_id", eos_id)}) {
      require(id >= 0 && id < target_vocab_size, name, " must lie in [0, ", target_vocab_size, "), got ", id);
    }
    if (seed) {
      Initialiser random(*seed);
      model.initialise(random);
    }
    return std::make_unique<Seq2SeqOf<Model>>(std::move(model), EndTokens{bos_id, eos_id});
  };
  return for_dtype<Seq2SeqLayer>(dtype, [&]<class T>(T) {
    const auto with = [&]<class Encoding>(std::type_identity<Encoding>) {
      if (norm_first)
        return make(std::type_identity<Seq2Seq<Encoding, PreNormEncoderLayer<T>, PreNormDecoderLayer<T>>>());
      return make(std::type_identity<Seq2Seq<Encoding, PostNormEncoderLayer<T>, PostNormDecoderLayer<T>>>());
    };
    if (positions == "learned") return with(std::type_identity<LearnedEncoding<T>>());
    return with(std::type_identity<SinusoidalEncoding<T>>());
  });
}

}  // namespace

void bind_seq2seq(py::module_& module) {
  using Model = Seq2SeqLayer;
  using Object = const py::object&;
  constexpr std::int64_t ignored = -100;
  py::class_<TargetCache>(module, "TargetCache")
      .def("add", &TargetCache::add, py::arg("ids"))
      .def("choose", &TargetCache::choose, py::arg("sources"), py::arg("targets"));
  py::class_<Model, Layer>(module, "Seq2Seq")
      .def(
          "encode",
          [](const Model& model, Object source_ids, Object source_lengths, Index capacity) {
            return model.encode(source_input(model, source_ids, source_lengths), capacity);
          },
          py::arg("source_ids"), py::arg("source_lengths"), py::arg("capacity"), py::keep_alive<0, 1>())
      .def(
          "call",
          [](const Model& model, Object source_ids, Object target_ids, Object source_lengths,
             Object target_lengths, const Selections& selections) {
            return model.call(
                sequence_pair(model, source_ids, target_ids, source_lengths, target_lengths, ignored),
                selections);
          },
          py::arg("source_ids"), py::arg("target_ids"), py::arg("source_lengths"), py::arg("target_lengths"),
          py::arg("selections"))
      .def(
          "forward",
          [](const Model& model, Object source_ids, Object target_ids, Object source_lengths,
             Object target_lengths, Seed seed) {
            return model.forward(
                sequence_pair(model, source_ids, target_ids, source_lengths, target_lengths, ignored), seed);
          },
          py::arg("source_ids"), py::arg("target_ids"), py::arg("source_lengths"), py::arg("target_lengths"),
          py::arg("seed"))
      .def(
          "target_count",
          [](const Model& model, Object source_ids, Object target_ids, Object source_lengths,
             Object target_lengths, std::int64_t ignore_index) {
            return model.target_count(
                sequence_pair(model, source_ids, target_ids, source_lengths, target_lengths, ignore_index),
                ignore_index);
          },
          py::arg("source_ids"), py::arg("target_ids"), py::arg("source_lengths"), py::arg("target_lengths"),
          py::arg("ignore_index"))
      .def(
          "loss",
          [](const Model& model, Object source_ids, Object target_ids, Object source_lengths,
             Object target_lengths, Object divisor, double label_smoothing, std::int64_t ignore_index) {
            return model.loss(
                sequence_pair(model, source_ids, target_ids, source_lengths, target_lengths, ignore_index),
                {label_smoothing, ignore_index, divisor});
          },
          py::arg("source_ids"), py::arg("target_ids"), py::arg("source_lengths"), py::arg("target_lengths"),
          py::arg("divisor"), py::arg("label_smoothing"), py::arg("ignore_index"))
      .def(
          "loss_and_gradients",
          [](const Model& model, Object source_ids, Object target_ids, Object source_lengths,
             Object target_lengths, Object divisor, double label_smoothing, std::int64_t ignore_index,
             Seed seed, Object accumulate) {
            return model.loss_and_gradients(
                sequence_pair(model, source_ids, target_ids, source_lengths, target_lengths, ignore_index),
                {label_smoothing, ignore_index, divisor}, seed, accumulate);
          },
          py::arg("source_ids"), py::arg("target_ids"), py::arg("source_lengths"), py::arg("target_lengths"),
          py::arg("divisor"), py::arg("label_smoothing"), py::arg("ignore_index"), py::arg("seed"),
          py::arg("accumulate"));
  module.def("seq2seq", seq2seq, py::arg("dtype"), py::arg("source_vocab_size"), py::arg("source_features"),
             py::arg("target_vocab_size"), py::arg("bos_id"), py::arg("eos_id"), py::arg("positions"),
             py::arg("max_length"), py::arg("d_model"), py::arg("nhead"), py::arg("num_encoder_layers"),
             py::arg("num_decoder_layers"), py::arg("dim_feedforward"), py::arg("dropout"),
             py::arg("activation"), py::arg("layer_norm_eps"), py::arg("norm_first"), py::arg("shared"),
             py::arg("tied"), py::arg("recompute"), py::arg("seed"));
}

}  // namespace blasformer::bindings
