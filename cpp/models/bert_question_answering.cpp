#include "models/bert_question_answering.h"

#include <algorithm>

namespace blasformer {

template <class T>
BertQuestionAnswering<T>::BertQuestionAnswering(const BertSizes& sizes)
    : bert(sizes), qa_outputs(sizes.hidden_size, 2) {}

template <class T>
void BertQuestionAnswering<T>::initialise(Initialiser& random) {
  bert.initialise(random);
  random.normal(qa_outputs.weight, 0.02);
  std::fill_n(qa_outputs.bias.data(), qa_outputs.bias.size(), T(0));
}

template <class T>
Tensor<T> BertQuestionAnswering<T>::forward(const PackedTokens& tokens,
                                            std::map<Index, typename BertModel<T>::Asked>* asked,
                                            std::optional<std::uint64_t> seed, Saved* saved) const {
  const Tensor<T> hidden = bert.forward(tokens, asked, seed, saved != nullptr ? &saved->bert : nullptr);
  return qa_outputs.forward(hidden, saved != nullptr ? &saved->qa_outputs : nullptr, adapter_seed(seed, 0));
}

template <class T>
void BertQuestionAnswering<T>::backward(const Saved& saved, const Tensor<T>& d_logits,
                                        BertQuestionAnswering& gradients, Write write) const {
  const Tensor<T> d_hidden = qa_outputs.backward(saved.qa_outputs, d_logits, gradients.qa_outputs, write);
  bert.backward(saved.bert, d_hidden, gradients.bert, write);
}

template <class T>
double BertQuestionAnswering<T>::loss(const PackedTokens& tokens, const AnswerSpans& answers,
                                      const CrossEntropyOptions<T>& options, double divisor,
                                      std::optional<std::uint64_t> seed,
                                      BertQuestionAnswering* gradients) const {
  Saved saved;
  const Tensor<T> logits = forward(tokens, nullptr, seed, gradients != nullptr ? &saved : nullptr);
  auto d_logits = Tensor<T>::full(gradients != nullptr ? logits.shape() : Shape{0}, T(0));
  double total = 0;
  std::vector<T> among;  // the logits of candidates, and their gradients in their place
  for (std::size_t i = 0; i + 1 < answers.starts.size(); ++i) {
    const std::int64_t* const token = answers.candidates.data() + answers.starts[i];
    const std::int64_t* const target = answers.targets.data() + 2 * i;
    among.resize(static_cast<std::size_t>(answers.starts[i + 1] - answers.starts[i]));
    for (Index end = 0; end < 2; ++end) {
      if (target[end] == options.ignore_index) continue;
      for (std::size_t c = 0; c < among.size(); ++c) among[c] = logits.data()[2 * token[c] + end];
      total += cross_entropy(among.data(), 1, static_cast<Index>(among.size()), target + end, options,
                             divisor, gradients != nullptr ? among.data() : nullptr);
      if (gradients == nullptr) continue;
      for (std::size_t c = 0; c < among.size(); ++c) d_logits.data()[2 * token[c] + end] = among[c];
    }
  }
  if (gradients != nullptr) backward(saved, d_logits, *gradients, Write::replace);
  return total;
}

template struct BertQuestionAnswering<float>;
template struct BertQuestionAnswering<double>;

}  // namespace blasformer
