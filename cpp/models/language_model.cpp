#include "models/language_model.h"

#include <algorithm>
#include <cmath>

#include "core/require.h"
#include "layers/dropout.h"
#include "layers/residual.h"
#include "models/layer_stack.h"

namespace blasformer {

namespace {

TransformerLayerSizes block_sizes(const LanguageModelSizes& sizes) {
  TransformerLayerSizes block;
  block.d_model = sizes.d_model;
  block.num_heads = block.num_kv_heads = sizes.num_heads;
  block.dim_feedforward = sizes.dim_feedforward;
  block.activation = sizes.activation;
  block.dropout_p = sizes.dropout_p;
  block.layer_norm_eps = sizes.layer_norm_eps;
  block.recompute = sizes.recompute;
  return block;
}

bool writes_to_residual(const std::string& name) {
  return name.ends_with("c_proj.weight") || name.ends_with("o_proj.weight") ||
         name.ends_with("down_proj.weight");
}

}  // namespace

template <class T>
auto Gpt2<T>::block(const LanguageModelSizes& sizes) -> Block {
  Block block(block_sizes(sizes));
  block.feed_forward.dropout_p = 0;
  block.self_attn.dropout_p = sizes.attention_dropout_p;
  return block;
}

template <class T>
auto Llama<T>::block(const LanguageModelSizes& sizes) -> Block {
  TransformerLayerSizes own = block_sizes(sizes);
  own.num_kv_heads = sizes.num_kv_heads;
  own.with_bias = false;
  const Index head_dim = sizes.num_heads > 0 ? sizes.d_model / sizes.num_heads : 0;
  own.rotary = RotaryPositions{RotaryPairs::halves, sizes.rotary_base, head_dim};
  Block block(own);
  block.feed_forward.dropout_p = 0;
  block.self_attn.dropout_p = sizes.attention_dropout_p;
  if (sizes.projection_bias)
    block.self_attn.in_proj_bias = Tensor<T>({block.self_attn.in_proj_weight.extent(0)});
  return block;
}

template <class T, template <class> class FamilyOf>
LanguageModel<T, FamilyOf>::LanguageModel(const LanguageModelSizes& sizes)
    : tokens((require(sizes.vocab_size > 0, "vocab_size must be positive, got ", sizes.vocab_size),
              require(sizes.max_length > 0, "max_length must be positive, got ", sizes.max_length),
              require(sizes.d_model > 0, "d_model must be positive, got ", sizes.d_model), sizes.vocab_size),
             sizes.d_model),
      last_norm({sizes.d_model}, sizes.layer_norm_eps),
      longest(sizes.max_length) {
  require(sizes.num_layers > 0, "num_layers must be positive, got ", sizes.num_layers);
  require_probability("dropout", sizes.dropout_p);
  require_probability("attention_dropout", sizes.attention_dropout_p);
  if constexpr (Family::kLearnedPositions) {
    require_probability("embedding_dropout", sizes.embedding_dropout_p);
    places.emplace(sizes.max_length, sizes.d_model, 1, sizes.embedding_dropout_p);
  }
  for (Index i = 0; i < sizes.num_layers; ++i) blocks.push_back(Family::block(sizes));
  if (!sizes.tied) lm_head.emplace(sizes.d_model, sizes.vocab_size, false);
}

template <class T, template <class> class FamilyOf>
void LanguageModel<T, FamilyOf>::initialise(Initialiser& random) {
  const double into_residual = 0.02 / std::sqrt(2.0 * static_cast<double>(blocks.size()));
  each_parameter(*this, [&](const std::string& name, Tensor<T>& parameter) {
    if (parameter.rank() == 1) {
      std::fill_n(parameter.data(), parameter.size(), name.ends_with(".weight") ? T(1) : T(0));
    } else {
      random.normal(parameter, writes_to_residual(name) ? into_residual : 0.02);
    }
  });
}

template <class T, template <class> class FamilyOf>
Tensor<T> LanguageModel<T, FamilyOf>::hidden_states(const TokenSequences& sequences,
                                                    std::optional<std::uint64_t> seed, Saved* saved,
                                                    Index first_saved,
                                                    std::map<Index, AskedWeights<T>>* asked) const {
  const Index length = sequences.ids.extent(1);
  require(length <= longest, "ids must have at most max_length = ", longest, " columns, got ", length);
  if (saved) saved->sequences = sequences;
  const TokenSequences& kept = saved ? saved->sequences : sequences;
  Tensor<T> x = tokens.forward(kept.ids);
  if (places) {
    x = places->forward(x, kept.positions.empty() ? consecutive_positions(length) : kept.positions, seed,
                        saved ? &saved->places : nullptr);
  }
  x = forward_layers(blocks, x, attention_among(kept.lengths, kept.segments, Causal::yes),
                     dropout_seed(seed, 1), saved ? &saved->blocks : nullptr, first_saved, asked);
  return last_norm.forward(x, saved ? &saved->last_norm : nullptr);
}

template <class T, template <class> class FamilyOf>
Tensor<T> LanguageModel<T, FamilyOf>::forward(const TokenSequences& sequences,
                                              std::optional<std::uint64_t> seed, Saved* saved,
                                              std::map<Index, AskedWeights<T>>* asked) const {
  const Tensor<T> hidden = hidden_states(sequences, seed, saved, 0, asked);
  Tensor<T> logits({hidden.extent(0), hidden.extent(1), vocab_size()});
  projection().apply(hidden.data(), hidden.size() / d_model(), logits.data());
  if (saved) saved->hidden = hidden;
  return logits;
}

template <class T, template <class> class FamilyOf>
ClassProjection<T> LanguageModel<T, FamilyOf>::projection() const {
  const std::uint16_t* const held = lm_head ? lm_head->packed.bfloat16().data() : nullptr;
  return {output_weight().data(), held, nullptr, d_model(), vocab_size()};
}

template <class T, template <class> class FamilyOf>
Index LanguageModel<T, FamilyOf>::lowest_trained() const {
  if (!tokens.weight.empty() || (places && wants_gradients(*places))) return -1;
  const Index lowest = blasformer::lowest_trained(blocks);
  return lowest < static_cast<Index>(blocks.size()) || wants_gradients(last_norm) ? lowest : lowest + 1;
}

template <class T, template <class> class FamilyOf>
void LanguageModel<T, FamilyOf>::backward_below(const Saved& saved, const Tensor<T>& d_hidden,
                                                LanguageModel& gradients, Write write) const {
  const Index lowest = gradients.lowest_trained();
  if (lowest > static_cast<Index>(blocks.size())) return;
  Tensor<T> d_x = backward_layers(blocks, saved.blocks,
                                  last_norm.backward(saved.last_norm, d_hidden, gradients.last_norm, write),
                                  gradients.blocks, std::max<Index>(lowest, 0), write);
  if (lowest >= 0) return;
  if (places) d_x = places->backward(saved.places, d_x, *gradients.places, write);
  const Write rest = lm_head ? write : Write::add;  // a tied output has written its share already
  tokens.backward({saved.sequences.ids}, d_x, gradients.tokens, rest);
}

template <class T, template <class> class FamilyOf>
void LanguageModel<T, FamilyOf>::backward(const Saved& saved, const Tensor<T>& d_logits,
                                          LanguageModel& gradients, Write write) const {
  const Index rows = saved.hidden.size() / d_model();
  linear_weight_gradient(saved.hidden.data(), d_logits.data(), vocab_size(), rows, d_model(), vocab_size(),
                         gradients.output_weight().data(), static_cast<T*>(nullptr), write);
  if (gradients.lowest_trained() > static_cast<Index>(blocks.size())) return;
  Tensor<T> d_hidden(saved.hidden.shape());
  linear_input_gradient(d_logits.data(), vocab_size(), rows, vocab_size(), output_weight().data(), d_model(),
                        d_hidden.data(), Write::replace);
  backward_below(saved, d_hidden, gradients, write);
}

template <class T, template <class> class FamilyOf>
double LanguageModel<T, FamilyOf>::loss(const TokenSequences& sequences, const Tensor<std::int64_t>& targets,
                                        const CrossEntropyOptions<T>& options, double divisor,
                                        std::optional<std::uint64_t> seed, LanguageModel* gradients,
                                        Write write) const {
  const auto count = static_cast<Index>(blocks.size());
  const Index lowest = gradients ? gradients->lowest_trained() : count + 1;
  target_weight(targets.data(), targets.size(), vocab_size(), options);
  Saved saved;
  const Tensor<T> hidden =
      hidden_states(sequences, seed, lowest <= count ? &saved : nullptr, lowest, nullptr);
  ProjectedGradients<T> d_output;
  Tensor<T> d_hidden;
  if (gradients) {
    if (lowest <= count) d_hidden = Tensor<T>(hidden.shape());
    d_output = {d_hidden.data(), gradients->output_weight().data(), nullptr, write};
  }
  const double total = projected_cross_entropy(hidden.data(), hidden.size() / d_model(), projection(),
                                               targets.data(), options, divisor, d_output);
  if (lowest <= count) backward_below(saved, d_hidden, *gradients, write);
  return total;
}

template <class T, template <class> class FamilyOf>
auto LanguageModel<T, FamilyOf>::Cache::of_rows(const std::vector<Index>& rows) const -> Cache {
  Cache result{{}, Tensor<std::int64_t>({static_cast<Index>(rows.size())}), capacity};
  for (const KeysAndValues<T>& block : blocks) result.blocks.push_back(block.of_rows(rows));
  std::transform(rows.begin(), rows.end(), result.seen.data(), [this](Index b) { return seen.data()[b]; });
  return result;
}

template <class T, template <class> class FamilyOf>
auto LanguageModel<T, FamilyOf>::new_cache(Index batch, Index capacity) const -> Cache {
  Cache cache{{}, Tensor<std::int64_t>::full({batch}, 0), capacity};
  for (const Block& block : blocks) cache.blocks.emplace_back(block.self_attn, batch, capacity);
  return cache;
}

template <class T, template <class> class FamilyOf>
Tensor<T> LanguageModel<T, FamilyOf>::add_tokens(const Tensor<std::int64_t>& ids,
                                                 const Tensor<std::int64_t>& added, Cache& cache) const {
  const Index batch = ids.extent(0), length = ids.extent(1), features = d_model();
  Tensor<std::int64_t> positions({batch, length});
  for (Index b = 0; b < batch; ++b) {
    const std::int64_t seen = cache.seen.data()[b], count = added.data()[b];
    require(count >= 0 && count <= length && seen + count <= cache.capacity,
            "added must lie between 0 and what there is room for, got ", count);
    for (Index i = 0; i < length; ++i) positions.data()[b * length + i] = i < count ? seen + i : 0;
  }
  Tensor<T> x = tokens.forward(ids);
  if (places) x = places->forward(x, positions);
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const Block& block = blocks[i];
    Tensor<T> attended =
        attend_causally(block.self_attn, block.norm1.forward(x), added, cache.seen, cache.blocks[i]);
    add_residual(x, 0, std::nullopt, attended);
    x = block.feed_forward.forward(block.norm2.forward(attended));
    add_residual(attended, 0, std::nullopt, x);
  }
  Tensor<T> last = Tensor<T>::full({batch, features}, T(0));
  for (Index b = 0; b < batch; ++b) {
    const Index count = added.data()[b];
    if (count > 0)
      std::copy_n(x.data() + (b * length + count - 1) * features, features, last.data() + b * features);
    cache.seen.data()[b] += count;
  }
  const Tensor<T> hidden = last_norm.forward(last);
  Tensor<T> logits({batch, vocab_size()});
  projection().apply(hidden.data(), batch, logits.data());
  return logits;
}

template struct LanguageModel<float, Gpt2>;
template struct LanguageModel<double, Gpt2>;
template struct LanguageModel<float, Llama>;
template struct LanguageModel<double, Llama>;

}  // namespace blasformer
