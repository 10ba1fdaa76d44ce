#include "models/bert.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "core/require.h"
#include "layers/dropout.h"
#include "layers/residual.h"

namespace blasformer {

template <class T>
BertModel<T>::BertModel(const BertSizes& sizes)
    : word_embeddings(sizes.vocab_size, sizes.hidden_size),
      position_embeddings(sizes.max_position_embeddings, sizes.hidden_size),
      token_type_embeddings(sizes.type_vocab_size, sizes.hidden_size),
      embedding_norm({sizes.hidden_size}, sizes.layer_norm_eps),
      dropout_p(sizes.hidden_dropout_p) {
  require_probability("hidden_dropout_prob", sizes.hidden_dropout_p);
  require_probability("attention_probs_dropout_prob", sizes.attention_dropout_p);
  TransformerLayerSizes layer;
  layer.d_model = sizes.hidden_size;
  layer.num_heads = layer.num_kv_heads = sizes.num_attention_heads;
  layer.dim_feedforward = sizes.intermediate_size;
  layer.activation = sizes.activation;
  layer.layer_norm_eps = sizes.layer_norm_eps;
  layers.reserve(static_cast<std::size_t>(sizes.num_hidden_layers));
  for (Index i = 0; i < sizes.num_hidden_layers; ++i) {
    layers.emplace_back(layer);
    layers.back().dropout_p = sizes.hidden_dropout_p;
    layers.back().self_attn.dropout_p = sizes.attention_dropout_p;
  }
  if (sizes.with_pooler) pooler.emplace(sizes.hidden_size, sizes.hidden_size);
}

template <class T>
void BertModel<T>::initialise(Initialiser& random) {
  each_parameter(*this, [&](const std::string& name, Tensor<T>& parameter) {
    if (parameter.rank() == 1) {
      std::fill_n(parameter.data(), parameter.size(), name.ends_with("LayerNorm.weight") ? T(1) : T(0));
    } else {
      random.normal(parameter);
      std::for_each_n(parameter.data(), parameter.size(), [](T& element) { element *= T(0.02); });
    }
  });
}

template <class T>
Tensor<T> BertModel<T>::embed(const PackedTokens& tokens, std::optional<std::uint64_t> seed,
                              Saved* saved) const {
  require(tokens.positions.size() == tokens.ids.size() && tokens.types.size() == tokens.ids.size(),
          "positions and types must be as many as the ", tokens.ids.size(), " ids, got ",
          tokens.positions.size(), " and ", tokens.types.size());
  const Tensor<T> words = word_embeddings.forward(tokens.ids);
  const Tensor<T> types = token_type_embeddings.forward(tokens.types);
  Tensor<T> x = position_embeddings.forward(tokens.positions);
  add_residual(words, 0, std::nullopt, x);
  add_residual(types, 0, std::nullopt, x);
  Tensor<T> y = embedding_norm.forward(x, saved != nullptr ? &saved->embedding_norm : nullptr);
  if (seed && dropout_p > 0) dropout(y.data(), y.size(), dropout_p, *seed, y.data());
  return y;
}

template <class T>
void BertModel<T>::weigh(const MultiheadAttention<T>& attention, const Tensor<T>& x,
                         const std::vector<Index>& starts, Asked& asked) {
  AskedWeights<T> of_sequence;
  of_sequence.selection.heads = asked.heads;
  of_sequence.selection.mean = asked.mean;
  std::vector<Index>& rows = of_sequence.selection.rows;
  for (std::size_t i = 0; i + 1 < starts.size(); ++i) {
    const Index length = starts[i + 1] - starts[i];
    if (length == 0) continue;
    rows.resize(static_cast<std::size_t>(length));
    std::iota(rows.begin(), rows.end(), Index(0));
    attention.forward(shared_rows(x, starts[i], {length, x.extent(1)}), {}, nullptr, &of_sequence);
    asked.weights.push_back(of_sequence.weights);
  }
}

template <class T>
Tensor<T> BertModel<T>::forward(const PackedTokens& tokens, std::map<Index, Asked>* asked,
                                std::optional<std::uint64_t> seed, Saved* saved) const {
  constexpr std::uint64_t places = PostNormEncoderLayer<T>::kDropoutPlaces;
  Tensor<T> x = embed(tokens, dropout_seed(seed, layers.size() * places), saved);
  if (saved != nullptr) {
    saved->tokens = tokens;
    saved->layers.resize(layers.size());
    saved->seed = seed;
  }
  for (std::size_t i = 0; i < layers.size(); ++i) {
    if (asked != nullptr) {
      const auto of_layer = asked->find(static_cast<Index>(i));
      if (of_layer != asked->end()) weigh(layers[i].self_attn, x, tokens.starts, of_layer->second);
    }
    AttentionArguments own;
    own.seed = dropout_seed(seed, i * places);
    x = layers[i].forward_packed(x, tokens.starts, own, saved != nullptr ? &saved->layers[i] : nullptr);
  }
  return x;
}

template <class T>
Tensor<T> BertModel<T>::pool(const Tensor<T>& hidden, const std::vector<Index>& starts, Saved* saved) const {
  require(pooler.has_value(), "the model has no pooler");
  const Index width = hidden_size();
  const std::size_t sequences = starts.size() - 1;
  Tensor<T> first = Tensor<T>::full({static_cast<Index>(sequences), width}, T(0));
  for (std::size_t i = 0; i < sequences; ++i) {
    if (starts[i] < starts[i + 1]) {
      std::copy_n(hidden.data() + starts[i] * width, width, first.data() + static_cast<Index>(i) * width);
    }
  }
  Tensor<T> pooled = pooler->forward(first, saved != nullptr ? &saved->pooler : nullptr,
                                     saved != nullptr ? adapter_seed(saved->seed, 0) : std::nullopt);
  for (std::size_t i = 0; i < sequences; ++i) {
    T* const row = pooled.data() + static_cast<Index>(i) * width;
    const bool occupied = starts[i] < starts[i + 1];
    std::transform(row, row + width, row, [occupied](T value) { return occupied ? std::tanh(value) : T(0); });
  }
  if (saved != nullptr) saved->pooled = pooled;
  return pooled;
}

template <class T>
void BertModel<T>::backward(const Saved& saved, Tensor<T> d_hidden, const Tensor<T>& d_pooled,
                            BertModel& gradients, Write write) const {
  const std::vector<Index>& starts = saved.tokens.starts;
  if (!d_pooled.empty()) {
    const Index width = hidden_size();
    Tensor<T> d_dense(d_pooled.shape());  // a sequence without tokens has pooled 0, which is no tanh
    for (Index i = 0; i < d_pooled.size(); ++i) {
      const auto sequence = static_cast<std::size_t>(i / width);
      const T pooled = saved.pooled.data()[i];
      const bool occupied = starts[sequence] < starts[sequence + 1];
      d_dense.data()[i] = occupied ? d_pooled.data()[i] * (T(1) - pooled * pooled) : T(0);
    }
    const Tensor<T> d_first = pooler->backward(saved.pooler, d_dense, *gradients.pooler, write);
    d_hidden = d_hidden.copy();
    for (std::size_t i = 0; i + 1 < starts.size(); ++i) {
      if (starts[i] == starts[i + 1]) continue;
      const T* const row = d_first.data() + static_cast<Index>(i) * width;
      T* const target = d_hidden.data() + starts[i] * width;
      for (Index c = 0; c < width; ++c) target[c] += row[c];
    }
  } else if (write == Write::replace && gradients.pooler) {
    blasformer::each_storage(*gradients.pooler,
                             [](Tensor<T>& tensor) { std::fill_n(tensor.data(), tensor.size(), T(0)); });
  }

  const bool embeddings_learn =
      wants_gradients(gradients.word_embeddings) || wants_gradients(gradients.position_embeddings) ||
      wants_gradients(gradients.token_type_embeddings) || wants_gradients(gradients.embedding_norm);
  std::size_t lowest = 0;
  while (!embeddings_learn && lowest < layers.size() && !wants_gradients(gradients.layers[lowest])) ++lowest;
  for (std::size_t i = layers.size(); i-- > lowest;)
    d_hidden = layers[i].backward(saved.layers[i], d_hidden, gradients.layers[i], write);
  if (!embeddings_learn) return;
  const std::uint64_t place = layers.size() * PostNormEncoderLayer<T>::kDropoutPlaces;
  d_hidden = embedding_norm.backward(saved.embedding_norm,
                                     residual_gradient(d_hidden, dropout_p, dropout_seed(saved.seed, place)),
                                     gradients.embedding_norm, write);
  word_embeddings.backward({saved.tokens.ids}, d_hidden, gradients.word_embeddings, write);
  position_embeddings.backward({saved.tokens.positions}, d_hidden, gradients.position_embeddings, write);
  token_type_embeddings.backward({saved.tokens.types}, d_hidden, gradients.token_type_embeddings, write);
}

template struct BertModel<float>;
template struct BertModel<double>;

}  // namespace blasformer
