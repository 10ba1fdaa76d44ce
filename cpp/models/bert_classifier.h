#pragma once

// BERT for sequence classification: a linear layer on what BERT says of a sequence, with its parameters named
// as published checkpoints name them (Devlin et al. 2018, section 4.1; or the mean of the last hidden states,
// as sentence encoders take it, Reimers and Gurevych 2019).

#include <cstdint>
#include <optional>
#include <vector>

#include "core/tensor.h"
#include "layers/cross_entropy.h"
#include "layers/linear.h"
#include "models/bert.h"

namespace blasformer {

enum class SequencePooling { pooler, mean };

template <class T>
struct BertClassifier {
  using Scalar = T;
  BertModel<T> bert;
  Linear<T> classifier;  // (classes, hidden_size)
  SequencePooling pooling;
  double dropout_p;  // of what the classifier is given

  struct Saved {
    typename BertModel<T>::Saved bert;
    typename Linear<T>::Saved classifier;
    std::optional<std::uint64_t> seed;

    template <class Visit>
    void each_tensor(Visit&& visit) const {
      bert.each_tensor(visit);
      classifier.each_tensor(visit);
    }
  };

  BertClassifier(const BertSizes& sizes, Index classes, SequencePooling pooling, double dropout_p);

  Index classes() const { return classifier.out_features(); }
  void initialise(Initialiser& random);  // as BertModel
  // Logits, (sequences, classes). Without a seed nothing is dropped.
  Tensor<T> forward(const PackedTokens& tokens, std::optional<std::uint64_t> seed = std::nullopt,
                    Saved* saved = nullptr) const;
  void backward(const Saved& saved, const Tensor<T>& d_logits, BertClassifier& gradients, Write write) const;

  template <class Self, class Visit>
  static void each_parameter(Self& self, Visit&& visit) {
    each_parameter_of("bert", self.bert, visit);
    each_parameter_of("classifier", self.classifier, visit);
  }
  template <class Self, class Visit>
  static void each_storage(Self& self, Visit&& visit) {
    BertModel<T>::each_storage(self.bert, visit);
    blasformer::each_storage(self.classifier, visit);
  }
  template <class Self, class Visit>
  static void each_linear(Self& self, Visit&& visit) {
    each_linear_of("bert", self.bert, visit);
    each_linear_of("classifier", self.classifier, visit);
  }
};

}  // namespace blasformer
