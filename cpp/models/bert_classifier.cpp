#include "models/bert_classifier.h"

#include <algorithm>

#include "core/require.h"
#include "layers/dropout.h"
#include "layers/residual.h"

namespace blasformer {

namespace {

// The mean over the rows of each sequence; zeros for a sequence without any.
template <class T>
Tensor<T> mean_rows(const Tensor<T>& hidden, const std::vector<Index>& starts) {
  const Index width = hidden.extent(1);
  Tensor<T> means = Tensor<T>::full({static_cast<Index>(starts.size()) - 1, width}, T(0));
  for (std::size_t i = 0; i + 1 < starts.size(); ++i) {
    T* const mean = means.data() + static_cast<Index>(i) * width;
    for (Index row = starts[i]; row < starts[i + 1]; ++row) {
      for (Index c = 0; c < width; ++c) mean[c] += hidden.data()[row * width + c];
    }
    const T count = static_cast<T>(std::max<Index>(1, starts[i + 1] - starts[i]));
    for (Index c = 0; c < width; ++c) mean[c] /= count;
  }
  return means;
}

template <class T>
Tensor<T> mean_rows_gradient(const Tensor<T>& d_means, const std::vector<Index>& starts) {
  const Index width = d_means.extent(1);
  Tensor<T> d_hidden({starts.back(), width});
  for (std::size_t i = 0; i + 1 < starts.size(); ++i) {
    const T* const d_mean = d_means.data() + static_cast<Index>(i) * width;
    const T count = static_cast<T>(starts[i + 1] - starts[i]);
    for (Index row = starts[i]; row < starts[i + 1]; ++row) {
      for (Index c = 0; c < width; ++c) d_hidden.data()[row * width + c] = d_mean[c] / count;
    }
  }
  return d_hidden;
}

}  // namespace

template <class T>
BertClassifier<T>::BertClassifier(const BertSizes& sizes, Index classes, SequencePooling pooling_,
                                  double dropout_p_)
    : bert(sizes), classifier(sizes.hidden_size, classes), pooling(pooling_), dropout_p(dropout_p_) {
  require_probability("classifier_dropout", dropout_p);
  require(pooling == SequencePooling::mean || bert.pooler,
          "pooling must be mean for a model without a pooler, got pooler");
}

template <class T>
void BertClassifier<T>::initialise(Initialiser& random) {
  bert.initialise(random);
  random.normal(classifier.weight);
  std::for_each_n(classifier.weight.data(), classifier.weight.size(), [](T& element) { element *= T(0.02); });
  std::fill_n(classifier.bias.data(), classifier.bias.size(), T(0));
}

template <class T>
Tensor<T> BertClassifier<T>::forward(const PackedTokens& tokens, std::optional<std::uint64_t> seed,
                                     Saved* saved) const {
  const Tensor<T> hidden = bert.forward(tokens, nullptr, seed, saved != nullptr ? &saved->bert : nullptr);
  Tensor<T> features = pooling == SequencePooling::mean
                           ? mean_rows(hidden, tokens.starts)
                           : bert.pool(hidden, tokens.starts, saved != nullptr ? &saved->bert : nullptr);
  if (saved != nullptr) saved->seed = seed;
  const std::optional<std::uint64_t> own = dropout_seed(seed, bert.dropout_places());
  if (own && dropout_p > 0) {
    if (saved != nullptr) features = features.copy();
    dropout(features.data(), features.size(), dropout_p, *own, features.data());
  }
  return classifier.forward(features, saved != nullptr ? &saved->classifier : nullptr, adapter_seed(seed, 0));
}

template <class T>
void BertClassifier<T>::backward(const Saved& saved, const Tensor<T>& d_logits, BertClassifier& gradients,
                                 Write write) const {
  const Tensor<T> d_kept = classifier.backward(saved.classifier, d_logits, gradients.classifier, write);
  const Tensor<T> d_features =
      residual_gradient(d_kept, dropout_p, dropout_seed(saved.seed, bert.dropout_places()));
  const std::vector<Index>& starts = saved.bert.tokens.starts;
  if (pooling == SequencePooling::mean)
    return bert.backward(saved.bert, mean_rows_gradient(d_features, starts), {}, gradients.bert, write);
  const auto none = Tensor<T>::full({starts.back(), bert.hidden_size()}, T(0));
  bert.backward(saved.bert, none, d_features, gradients.bert, write);
}

template struct BertClassifier<float>;
template struct BertClassifier<double>;

}  // namespace blasformer
