#include "models/bert.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "core/require.h"
#include "layers/residual.h"

namespace blasformer {

template <class T>
BertModel<T>::BertModel(const BertSizes& sizes)
    : word_embeddings(sizes.vocab_size, sizes.hidden_size),
      position_embeddings(sizes.max_position_embeddings, sizes.hidden_size),
      token_type_embeddings(sizes.type_vocab_size, sizes.hidden_size),
      embedding_norm({sizes.hidden_size}, sizes.layer_norm_eps) {
  EncoderLayerSizes layer;
  layer.d_model = sizes.hidden_size;
  layer.num_heads = layer.num_kv_heads = sizes.num_attention_heads;
  layer.dim_feedforward = sizes.intermediate_size;
  layer.activation = sizes.activation;
  layer.layer_norm_eps = sizes.layer_norm_eps;
  layers.reserve(static_cast<std::size_t>(sizes.num_hidden_layers));
  for (Index i = 0; i < sizes.num_hidden_layers; ++i) layers.emplace_back(layer);
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
Tensor<T> BertModel<T>::embed(const PackedTokens& tokens) const {
  require(tokens.positions.size() == tokens.ids.size() && tokens.types.size() == tokens.ids.size(),
          "positions and types must be as many as the ", tokens.ids.size(), " ids, got ",
          tokens.positions.size(), " and ", tokens.types.size());
  const Tensor<T> words = word_embeddings.forward(tokens.ids);
  const Tensor<T> types = token_type_embeddings.forward(tokens.types);
  Tensor<T> x = position_embeddings.forward(tokens.positions);
  add_residual(words, 0, std::nullopt, x);
  add_residual(types, 0, std::nullopt, x);
  return embedding_norm.forward(x);
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
Tensor<T> BertModel<T>::forward(const PackedTokens& tokens, std::map<Index, Asked>* asked) const {
  Tensor<T> x = embed(tokens);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    if (asked != nullptr) {
      const auto of_layer = asked->find(static_cast<Index>(i));
      if (of_layer != asked->end()) weigh(layers[i].self_attn, x, tokens.starts, of_layer->second);
    }
    x = layers[i].forward_packed(x, tokens.starts);
  }
  return x;
}

template <class T>
Tensor<T> BertModel<T>::pool(const Tensor<T>& hidden, const std::vector<Index>& starts) const {
  require(pooler.has_value(), "the model has no pooler");
  const Index width = hidden_size();
  const std::size_t sequences = starts.size() - 1;
  Tensor<T> first = Tensor<T>::full({static_cast<Index>(sequences), width}, T(0));
  for (std::size_t i = 0; i < sequences; ++i) {
    if (starts[i] < starts[i + 1]) {
      std::copy_n(hidden.data() + starts[i] * width, width, first.data() + static_cast<Index>(i) * width);
    }
  }
  Tensor<T> pooled = pooler->forward(first);
  for (std::size_t i = 0; i < sequences; ++i) {
    T* const row = pooled.data() + static_cast<Index>(i) * width;
    const bool occupied = starts[i] < starts[i + 1];
    std::transform(row, row + width, row, [occupied](T value) { return occupied ? std::tanh(value) : T(0); });
  }
  return pooled;
}

template struct BertModel<float>;
template struct BertModel<double>;

}  // namespace blasformer
