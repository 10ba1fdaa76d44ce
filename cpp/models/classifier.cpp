#include "models/classifier.h"

#include <algorithm>

#include "core/require.h"
#include "core/thread_pool.h"
#include "layers/residual.h"
#include "models/layer_stack.h"
#include "models/sequences.h"

namespace blasformer {

namespace {

template <class Layer>
TransformerEncoder<Layer> encoder_of(const ClassifierSizes& sizes) {
  TransformerLayerSizes layer;
  layer.d_model = sizes.d_model;
  layer.num_heads = layer.num_kv_heads = sizes.num_heads;
  layer.dim_feedforward = sizes.dim_feedforward;
  layer.activation = sizes.activation;
  layer.dropout_p = sizes.dropout_p;
  layer.layer_norm_eps = sizes.layer_norm_eps;
  layer.recompute = sizes.recompute;
  using T = typename Layer::Scalar;
  std::optional<LayerNorm<T>> last;
  if (std::is_same_v<Layer, PreNormEncoderLayer<T>>) last.emplace(Shape{sizes.d_model}, sizes.layer_norm_eps);
  return TransformerEncoder<Layer>(Layer(layer), sizes.num_layers, last);
}

// The same with a position before the first.
PresentPositions behind_one(const PresentPositions& present) {
  PresentPositions result;
  if (!present.lengths.empty()) {
    result.lengths = present.lengths.copy();
    std::for_each_n(result.lengths.data(), result.lengths.size(), [](std::int64_t& length) { ++length; });
  }
  if (!present.mask.empty()) {
    const Index batch = present.mask.extent(0), length = present.mask.extent(1);
    result.mask = Tensor<bool>::full({batch, length + 1}, true);
    for (Index b = 0; b < batch; ++b)
      std::copy_n(present.mask.data() + b * length, length, result.mask.data() + b * (length + 1) + 1);
  }
  return result;
}

// x (batch, length, features) behind `first` (features,): (batch, length + 1, features).
template <class T>
Tensor<T> behind(const Tensor<T>& first, const Tensor<T>& x) {
  const Index batch = x.extent(0), length = x.extent(1), features = x.extent(2);
  Tensor<T> result({batch, length + 1, features});
  parallel_for(batch, 0.3 * static_cast<double>(result.size()), [&](Index b, int) {
    T* const target = result.data() + b * (length + 1) * features;
    std::copy_n(first.data(), features, target);
    std::copy_n(x.data() + b * length * features, length * features, target + features);
  });
  return result;
}

// The gradient of x; that of `first`, if it is wanted, is written or added to.
template <class T>
Tensor<T> behind_backward(const Tensor<T>& d_result, Tensor<T>& d_first, Write write) {
  const Index batch = d_result.extent(0), length = d_result.extent(1) - 1, features = d_result.extent(2);
  Tensor<T> d_x({batch, length, features});
  parallel_for(batch, 0.3 * static_cast<double>(d_result.size()), [&](Index b, int) {
    std::copy_n(d_result.data() + (b * (length + 1) + 1) * features, length * features,
                d_x.data() + b * length * features);
  });
  if (d_first.empty()) return d_x;
  for (Index i = 0; i < features; ++i) {
    double sum = write == Write::add ? static_cast<double>(d_first.data()[i]) : 0;
    for (Index b = 0; b < batch; ++b)
      sum += static_cast<double>(d_result.data()[b * (length + 1) * features + i]);
    d_first.data()[i] = static_cast<T>(sum);
  }
  return d_x;
}

ArrayView key_mask(const Tensor<bool>& mask) {
  ArrayView view;
  view.data = mask.data();
  view.dtype = DType::boolean;
  view.rank = 4;
  const Index batch = mask.extent(0), length = mask.extent(1);
  const Index shape[4] = {batch, 1, 1, length}, stride[4] = {length, 0, 0, 1};
  std::copy_n(shape, 4, view.shape);
  std::copy_n(stride, 4, view.stride);
  return view;
}

AttentionArguments attention_among(const PresentPositions& present) {
  AttentionArguments arguments = attention_among(present.lengths, {}, Causal::no);
  if (!present.mask.empty()) arguments.mask = key_mask(present.mask);
  return arguments;
}

}  // namespace

template <class Embed, class Layer>
Classifier<Embed, Layer>::Classifier(const ClassifierSizes& sizes)
    : embedding((require(sizes.inputs > 0, kReadsIds ? "vocab_size" : "in_features",
                         " must be positive, got ", sizes.inputs),
                 require(sizes.num_classes > 0, "num_classes must be positive, got ", sizes.num_classes),
                 require(sizes.max_length > 0, "max_length must be positive, got ", sizes.max_length),
                 require(sizes.d_model > 0, "d_model must be positive, got ", sizes.d_model), sizes.inputs),
                sizes.d_model),
      position_embedding(sizes.max_length, sizes.d_model, 1, sizes.dropout_p),
      encoder(encoder_of<Layer>(sizes)),
      head(sizes.d_model, sizes.num_classes),
      pooling(sizes.pooling) {
  if (with_class_token()) class_token = Tensor<T>({sizes.d_model});
}

template <class Embed, class Layer>
void Classifier<Embed, Layer>::initialise(Initialiser& random) {
  if constexpr (kReadsIds) {
    random.normal(embedding.weight, 0.02);
  } else {
    embedding.initialise(random);
  }
  position_embedding.initialise(random);
  if (with_class_token()) random.normal(class_token, 0.02);
  encoder.initialise(random);
  head.initialise(random);
}

template <class Embed, class Layer>
Tensor<typename Layer::Scalar> Classifier<Embed, Layer>::pool(const Tensor<T>& x,
                                                              const PresentPositions& present) const {
  const Index batch = x.extent(0), length = x.extent(1), features = x.extent(2);
  Tensor<T> pooled = Tensor<T>::full({batch, features}, T(0));
  parallel_for(batch, 0.3 * static_cast<double>(x.size()), [&](Index b, int) {
    const T* const rows = x.data() + b * length * features;
    T* const target = pooled.data() + b * features;
    if (with_class_token()) {
      std::copy_n(rows, features, target);
      return;
    }
    Index count = 0;
    for (Index i = 0; i < length; ++i) {
      if (!present.contains(b, i, length)) continue;
      ++count;
      for (Index c = 0; c < features; ++c) target[c] += rows[i * features + c];
    }
    const T share = T(1) / static_cast<T>(std::max<Index>(count, 1));
    for (Index c = 0; c < features; ++c) target[c] *= share;
  });
  return pooled;
}

template <class Embed, class Layer>
Tensor<typename Layer::Scalar> Classifier<Embed, Layer>::pool_backward(const Shape& shape,
                                                                       const PresentPositions& present,
                                                                       const Tensor<T>& d_pooled) const {
  Tensor<T> d_x = Tensor<T>::full(shape, T(0));
  const Index length = shape[1], features = shape[2];
  parallel_for(shape[0], 0.3 * static_cast<double>(d_x.size()), [&](Index b, int) {
    const T* const source = d_pooled.data() + b * features;
    T* const rows = d_x.data() + b * length * features;
    if (with_class_token()) {
      std::copy_n(source, features, rows);
      return;
    }
    Index count = 0;
    for (Index i = 0; i < length; ++i) count += present.contains(b, i, length) ? 1 : 0;
    const T share = T(1) / static_cast<T>(std::max<Index>(count, 1));
    for (Index i = 0; i < length; ++i) {
      if (!present.contains(b, i, length)) continue;
      for (Index c = 0; c < features; ++c) rows[i * features + c] = source[c] * share;
    }
  });
  return d_x;
}

template <class Embed, class Layer>
Tensor<typename Layer::Scalar> Classifier<Embed, Layer>::forward_saving(
    const Input& input, const PresentPositions& present, std::optional<std::uint64_t> seed, Saved* saved,
    Index lowest, std::map<Index, AskedWeights<T>>* asked) const {
  require(input.extent(1) <= max_length(), "x must have at most max_length = ", max_length(),
          " positions, got ", input.extent(1));
  const bool keeps_input = saved && lowest < 0;
  Tensor<T> x = embedding.forward(input, keeps_input ? &saved->embedding : nullptr);
  x = position_embedding.forward(x, consecutive_positions(input.extent(1)), seed,
                                 keeps_input ? &saved->position_embedding : nullptr);
  if (with_class_token()) x = behind(class_token, x);
  PresentPositions own;
  PresentPositions& kept = saved ? saved->present : own;
  kept = with_class_token() ? behind_one(present) : present;
  if (saved) saved->encoded_shape = x.shape();

  x = forward_layers(encoder.layers, x, attention_among(kept), dropout_seed(seed, 1),
                     saved ? &saved->encoder.layers : nullptr, lowest, asked);
  if (encoder.norm) x = encoder.norm->forward(x, saved ? &saved->encoder.norm : nullptr);
  return head.forward(pool(x, kept), saved ? &saved->head : nullptr, seed);
}

template <class Embed, class Layer>
Index Classifier<Embed, Layer>::lowest_trained() const {
  if (wants_gradients(embedding) || wants_gradients(position_embedding) || !class_token.empty())
    return kEmbedding;
  const Index lowest = blasformer::lowest_trained(encoder.layers);
  const bool norm_is_trained = encoder.norm && wants_gradients(*encoder.norm);
  return lowest < static_cast<Index>(encoder.layers.size()) || norm_is_trained ? lowest : lowest + 1;
}

template <class Embed, class Layer>
Tensor<typename Layer::Scalar> Classifier<Embed, Layer>::backward_to(Index lowest, const Saved& saved,
                                                                     const Tensor<T>& d_logits,
                                                                     Classifier& gradients,
                                                                     Write write) const {
  head.parameter_gradients(saved.head.input, saved.head.seed, d_logits, gradients.head, write);
  if (lowest > static_cast<Index>(encoder.layers.size())) return {};
  Tensor<T> d_pooled(saved.head.input.shape());
  head.input_gradient(d_logits, saved.head.seed, d_pooled);
  Tensor<T> d_x = pool_backward(saved.encoded_shape, saved.present, d_pooled);
  if (encoder.norm) d_x = encoder.norm->backward(saved.encoder.norm, d_x, *gradients.encoder.norm, write);
  d_x = backward_layers(encoder.layers, saved.encoder.layers, d_x, gradients.encoder.layers,
                        std::max<Index>(lowest, 0), write);
  if (lowest >= 0) return {};
  if (with_class_token()) d_x = behind_backward(d_x, gradients.class_token, write);
  d_x = position_embedding.backward(saved.position_embedding, d_x, gradients.position_embedding, write);
  if constexpr (kReadsIds) {
    embedding.backward(saved.embedding, d_x, gradients.embedding, write);
    return {};
  } else {
    embedding.parameter_gradients(saved.embedding.input, saved.embedding.seed, d_x, gradients.embedding,
                                  write);
    if (lowest > kInput) return {};
    Tensor<T> d_input(saved.embedding.input.shape());
    embedding.input_gradient(d_x, saved.embedding.seed, d_input);
    return d_input;
  }
}

template <class Embed, class Layer>
double Classifier<Embed, Layer>::loss(const Input& input, const PresentPositions& present,
                                      const Tensor<std::int64_t>& targets,
                                      const CrossEntropyOptions<T>& options, double divisor,
                                      std::optional<std::uint64_t> seed, Classifier* gradients,
                                      Write write) const {
  target_weight(targets.data(), targets.size(), num_classes(), options);
  const Index lowest = gradients ? gradients->lowest_trained() : 0;
  Saved saved;
  Tensor<T> logits = forward_saving(input, present, seed, gradients ? &saved : nullptr, lowest, nullptr);
  const double total = cross_entropy(logits.data(), targets.size(), num_classes(), targets.data(), options,
                                     divisor, gradients ? logits.data() : nullptr);
  if (gradients) backward_to(lowest, saved, logits, *gradients, write);
  return total;
}

template struct Classifier<Embedding<float>, PreNormEncoderLayer<float>>;
template struct Classifier<Embedding<float>, PostNormEncoderLayer<float>>;
template struct Classifier<Embedding<double>, PreNormEncoderLayer<double>>;
template struct Classifier<Embedding<double>, PostNormEncoderLayer<double>>;
template struct Classifier<Linear<float>, PreNormEncoderLayer<float>>;
template struct Classifier<Linear<float>, PostNormEncoderLayer<float>>;
template struct Classifier<Linear<double>, PreNormEncoderLayer<double>>;
template struct Classifier<Linear<double>, PostNormEncoderLayer<double>>;

}  // namespace blasformer
