#pragma once

// BERT for question answering: a linear layer gives every token two numbers, how well an answer would begin
// and how well it would end there, with its parameters named as published checkpoints name them (Devlin et
// al. 2018, section 4.2).

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "core/tensor.h"
#include "layers/cross_entropy.h"
#include "layers/linear.h"
#include "models/bert.h"

namespace blasformer {

// The tokens that answers may begin and end with, and those with which they do.
struct AnswerSpans {
  Tensor<std::int64_t> candidates;  // (n,): tokens among those of all sequences
  std::vector<Index> starts;        // of sequence i: candidates [starts[i], starts[i + 1])
  Tensor<std::int64_t> targets;     // (sequences, 2): which of these, or ignore_index
};

template <class T>
struct BertQuestionAnswering {
  using Scalar = T;
  BertModel<T> bert;     // without a pooler
  Linear<T> qa_outputs;  // (2, hidden_size)

  struct Saved {
    typename BertModel<T>::Saved bert;
    typename Linear<T>::Saved qa_outputs;

    template <class Visit>
    void each_tensor(Visit&& visit) const {
      bert.each_tensor(visit);
      qa_outputs.each_tensor(visit);
    }
  };

  explicit BertQuestionAnswering(const BertSizes& sizes);

  void initialise(Initialiser& random);  // as BertModel
  // Logits of beginning and of ending with each token, (total, 2). Without a seed nothing is dropped. asked:
  // as of BertModel.
  Tensor<T> forward(const PackedTokens& tokens,
                    std::map<Index, typename BertModel<T>::Asked>* asked = nullptr,
                    std::optional<std::uint64_t> seed = std::nullopt, Saved* saved = nullptr) const;
  void backward(const Saved& saved, const Tensor<T>& d_logits, BertQuestionAnswering& gradients,
                Write write) const;
  // The sum of the cross-entropies of beginnings and ends, each among the candidates of its sequence, and the
  // gradients of that sum / divisor, unless `gradients` is null.
  double loss(const PackedTokens& tokens, const AnswerSpans& answers, const CrossEntropyOptions<T>& options,
              double divisor, std::optional<std::uint64_t> seed, BertQuestionAnswering* gradients) const;

  template <class Self, class Visit>
  static void each_parameter(Self& self, Visit&& visit) {
    each_parameter_of("bert", self.bert, visit);
    each_parameter_of("qa_outputs", self.qa_outputs, visit);
  }
  template <class Self, class Visit>
  static void each_storage(Self& self, Visit&& visit) {
    BertModel<T>::each_storage(self.bert, visit);
    blasformer::each_storage(self.qa_outputs, visit);
  }
  template <class Self, class Visit>
  static void each_linear(Self& self, Visit&& visit) {
    each_linear_of("bert", self.bert, visit);
    each_linear_of("qa_outputs", self.qa_outputs, visit);
  }
};

}  // namespace blasformer
