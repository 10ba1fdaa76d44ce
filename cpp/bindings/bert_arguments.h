#pragma once

// What BERT and the models made of it are given.

#include <pybind11/pybind11.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/layer.h"
#include "models/bert.h"

namespace blasformer::bindings {

// Indices, (total,): copied, as the model shares memory with tensors only.
inline Tensor<std::int64_t> indices(py::object argument, const char* name) {
  const Tensor<std::int64_t> tensor = id_input(argument, name, true);
  require(tensor.rank() == 1, name, " must have one dimension, got ", tensor.rank());
  return tensor;
}

inline PackedTokens packed_tokens(const py::object& ids, const py::object& positions, const py::object& types,
                                  const std::vector<Index>& starts) {
  return {indices(ids, "ids"), indices(positions, "positions"), indices(types, "types"), starts};
}

using AskedLayers =
    std::vector<std::tuple<Index, std::vector<Index>, bool>>;  // (layer, heads, whether their mean)

// Attention weights of layers of BertModel, to be returned.
template <class Bert>
std::map<Index, typename Bert::Asked> asked_of(const AskedLayers& asked_layers) {
  std::map<Index, typename Bert::Asked> asked;
  for (const auto& [layer, heads, mean] : asked_layers) {
    asked[layer].heads = heads;
    asked[layer].mean = mean;
  }
  return asked;
}

// {layer: weights of each sequence}
template <class Asked>
py::dict weight_arrays(const std::map<Index, Asked>& asked) {
  py::dict weights;
  for (const auto& [layer, of_layer] : asked) {
    py::list of_sequences;
    for (const auto& of_sequence : of_layer.weights) of_sequences.append(numpy_view(of_sequence, true));
    weights[py::int_(layer)] = of_sequences;
  }
  return weights;
}

inline BertSizes bert_sizes(const py::dict& sizes) {
  const auto size = [&](const char* name) { return sizes[name].cast<Index>(); };
  return {size("vocab_size"),
          size("hidden_size"),
          size("num_hidden_layers"),
          size("num_attention_heads"),
          size("intermediate_size"),
          size("max_position_embeddings"),
          size("type_vocab_size"),
          activation_from_name(sizes["activation"].cast<std::string>()),
          sizes["layer_norm_eps"].cast<double>(),
          sizes["with_pooler"].cast<bool>(),
          sizes["hidden_dropout"].cast<double>(),
          sizes["attention_dropout"].cast<double>()};
}

// Without a seed the weights are not initialised: they are loaded before anyone else has the model.
template <template <class> class Held, class L>
std::unique_ptr<Held<L>> made(L model, Seed seed) {
  if (seed) return initialised<Held>(std::move(model), *seed);
  return std::make_unique<Held<L>>(std::move(model));
}

}  // namespace blasformer::bindings
