#include "models/language_model.h"

#include <algorithm>
#include <cmath>

#include "core/require.h"
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

}  // namespace

template <class T>
LanguageModel<T>::LanguageModel(const LanguageModelSizes& sizes)
    : wte((require(sizes.vocab_size > 0, "vocab_size must be positive, got ", sizes.vocab_size),
           require(sizes.max_length > 0, "max_length must be positive, got ", sizes.max_length),
           require(sizes.d_model > 0, "d_model must be positive, got ", sizes.d_model), sizes.vocab_size),
          sizes.d_model),
      wpe(sizes.max_length, sizes.d_model, 1, sizes.dropout_p),
      ln_f({sizes.d_model}, sizes.layer_norm_eps) {
  require(sizes.num_layers > 0, "num_layers must be positive, got ", sizes.num_layers);
  for (Index i = 0; i < sizes.num_layers; ++i) {
    h.emplace_back(block_sizes(sizes));
    h.back().feed_forward.dropout_p = 0;  // as in GPT-2
  }
  if (!sizes.tied) lm_head.emplace(sizes.d_model, sizes.vocab_size, false);
}

template <class T>
void LanguageModel<T>::initialise(Initialiser& random) {
  const double into_residual = 0.02 / std::sqrt(2.0 * static_cast<double>(h.size()));
  each_parameter(*this, [&](const std::string& name, Tensor<T>& parameter) {
    if (parameter.rank() == 1) {
      std::fill_n(parameter.data(), parameter.size(), name.ends_with(".weight") ? T(1) : T(0));
    } else {
      random.normal(parameter, name.ends_with("c_proj.weight") ? into_residual : 0.02);
    }
  });
}

template <class T>
Tensor<T> LanguageModel<T>::hidden_states(const TokenSequences& sequences, std::optional<std::uint64_t> seed,
                                          Saved* saved, Index first_saved,
                                          std::map<Index, AskedWeights<T>>* asked) const {
  const Index length = sequences.ids.extent(1);
  require(length <= max_length(), "ids must have at most max_length = ", max_length(), " columns, got ",
          length);
  if (saved) saved->sequences = sequences;
  const TokenSequences& kept = saved ? saved->sequences : sequences;
  const Tensor<std::int64_t> positions =
      kept.positions.empty() ? consecutive_positions(length) : kept.positions;
  const Tensor<T> x =
      forward_layers(h, wpe.forward(wte.forward(kept.ids), positions, seed, saved ? &saved->wpe : nullptr),
                     attention_among(kept.lengths, kept.segments, Causal::yes), dropout_seed(seed, 1),
                     saved ? &saved->h : nullptr, first_saved, asked);
  return ln_f.forward(x, saved ? &saved->ln_f : nullptr);
}

template <class T>
Tensor<T> LanguageModel<T>::forward(const TokenSequences& sequences, std::optional<std::uint64_t> seed,
                                    Saved* saved, std::map<Index, AskedWeights<T>>* asked) const {
  const Tensor<T> hidden = hidden_states(sequences, seed, saved, 0, asked);
  Tensor<T> logits({hidden.extent(0), hidden.extent(1), vocab_size()});
  linear(hidden.data(), hidden.size() / d_model(), d_model(), output_weight().data(),
         static_cast<const T*>(nullptr), vocab_size(), logits.data());
  if (saved) saved->hidden = hidden;
  return logits;
}

template <class T>
Index LanguageModel<T>::lowest_trained() const {
  if (!wte.weight.empty() || !wpe.embedding.weight.empty()) return -1;
  const Index lowest = blasformer::lowest_trained(h);
  return lowest < static_cast<Index>(h.size()) || wants_gradients(ln_f) ? lowest : lowest + 1;
}

template <class T>
void LanguageModel<T>::backward_below(const Saved& saved, const Tensor<T>& d_hidden, LanguageModel& gradients,
                                      Write write) const {
  const Index lowest = gradients.lowest_trained(), blocks = static_cast<Index>(h.size());
  if (lowest > blocks) return;
  const Tensor<T> d_x =
      backward_layers(h, saved.h, ln_f.backward(saved.ln_f, d_hidden, gradients.ln_f, write), gradients.h,
                      std::max<Index>(lowest, 0), write);
  if (lowest >= 0) return;
  const Tensor<T> d_tokens = wpe.backward(saved.wpe, d_x, gradients.wpe, write);
  const Write rest = lm_head ? write : Write::add;  // a tied output has written its share already
  wte.backward({saved.sequences.ids}, d_tokens, gradients.wte, rest);
}

template <class T>
void LanguageModel<T>::backward(const Saved& saved, const Tensor<T>& d_logits, LanguageModel& gradients,
                                Write write) const {
  const Index rows = saved.hidden.size() / d_model();
  linear_weight_gradient(saved.hidden.data(), d_logits.data(), vocab_size(), rows, d_model(), vocab_size(),
                         gradients.output_weight().data(), static_cast<T*>(nullptr), write);
  if (gradients.lowest_trained() > static_cast<Index>(h.size())) return;
  Tensor<T> d_hidden(saved.hidden.shape());
  linear_input_gradient(d_logits.data(), vocab_size(), rows, vocab_size(), output_weight().data(), d_model(),
                        d_hidden.data(), Write::replace);
  backward_below(saved, d_hidden, gradients, write);
}

template <class T>
double LanguageModel<T>::loss(const TokenSequences& sequences, const Tensor<std::int64_t>& targets,
                              const CrossEntropyOptions<T>& options, double divisor,
                              std::optional<std::uint64_t> seed, LanguageModel* gradients,
                              Write write) const {
  const Index blocks = static_cast<Index>(h.size());
  const Index lowest = gradients ? gradients->lowest_trained() : blocks + 1;
  target_weight(targets.data(), targets.size(), vocab_size(), options);
  Saved saved;
  const Tensor<T> hidden =
      hidden_states(sequences, seed, lowest <= blocks ? &saved : nullptr, lowest, nullptr);
  ProjectedGradients<T> d_output;
  Tensor<T> d_hidden;
  if (gradients) {
    if (lowest <= blocks) d_hidden = Tensor<T>(hidden.shape());
    d_output = {d_hidden.data(), gradients->output_weight().data(), nullptr, write};
  }
  const double total =
      projected_cross_entropy(hidden.data(), hidden.size() / d_model(),
                              ClassProjection<T>{output_weight().data(), nullptr, d_model(), vocab_size()},
                              targets.data(), options, divisor, d_output);
  if (lowest <= blocks) backward_below(saved, d_hidden, *gradients, write);
  return total;
}

template <class T>
auto LanguageModel<T>::Cache::of_rows(const std::vector<Index>& rows) const -> Cache {
  Cache result{{}, Tensor<std::int64_t>({static_cast<Index>(rows.size())}), capacity};
  for (const KeysAndValues<T>& block : h) result.h.push_back(block.of_rows(rows));
  std::transform(rows.begin(), rows.end(), result.seen.data(), [this](Index b) { return seen.data()[b]; });
  return result;
}

template <class T>
auto LanguageModel<T>::new_cache(Index batch, Index capacity) const -> Cache {
  Cache cache{{}, Tensor<std::int64_t>::full({batch}, 0), capacity};
  for (const Block& block : h) cache.h.emplace_back(block.self_attn, batch, capacity);
  return cache;
}

template <class T>
Tensor<T> LanguageModel<T>::add_tokens(const Tensor<std::int64_t>& ids, const Tensor<std::int64_t>& added,
                                       Cache& cache) const {
  const Index batch = ids.extent(0), length = ids.extent(1), features = d_model();
  Tensor<std::int64_t> positions({batch, length});
  for (Index b = 0; b < batch; ++b) {
    const std::int64_t seen = cache.seen.data()[b], count = added.data()[b];
    require(count >= 0 && count <= length && seen + count <= cache.capacity,
            "added must lie between 0 and what there is room for, got ", count);
    for (Index i = 0; i < length; ++i) positions.data()[b * length + i] = i < count ? seen + i : 0;
  }
  Tensor<T> x = wpe.forward(wte.forward(ids), positions);
  for (std::size_t i = 0; i < h.size(); ++i) {
    Tensor<T> attended =
        attend_causally(h[i].self_attn, h[i].norm1.forward(x), added, cache.seen, cache.h[i]);
    add_residual(x, 0, std::nullopt, attended);
    x = h[i].feed_forward.forward(h[i].norm2.forward(attended));
    add_residual(attended, 0, std::nullopt, x);
  }
  Tensor<T> last = Tensor<T>::full({batch, features}, T(0));
  for (Index b = 0; b < batch; ++b) {
    const Index count = added.data()[b];
    if (count > 0)
      std::copy_n(x.data() + (b * length + count - 1) * features, features, last.data() + b * features);
    cache.seen.data()[b] += count;
  }
  const Tensor<T> hidden = ln_f.forward(last);
  Tensor<T> logits({batch, vocab_size()});
  linear(hidden.data(), batch, features, output_weight().data(), static_cast<const T*>(nullptr), vocab_size(),
         logits.data());
  return logits;
}

template struct LanguageModel<float>;
template struct LanguageModel<double>;

}  // namespace blasformer
