#pragma once

// Layers in turn, of which perhaps only the upper ones are trained: nothing is kept for the others, and
// backward ends above them.

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "core/tensor.h"
#include "layers/attention.h"
#include "layers/multihead_attention.h"
#include "layers/parameters.h"
#include "layers/residual.h"
#include "layers/write.h"

namespace blasformer {

// Of values for gradients: the lowest layer of which something is trained, or their number if there is none.
template <class Layer>
Index lowest_trained(const std::vector<Layer>& gradients) {
  const auto trained = [](const Layer& layer) { return wants_gradients(layer); };
  return std::find_if(gradients.begin(), gradients.end(), trained) - gradients.begin();
}

// What the last layer makes of x. seed: of the first layer. `saved`, if given, is filled from layer
// first_saved on; asked: the attention weights to return, by the index of their layer.
template <class Layer, class T = typename Layer::Scalar>
Tensor<T> forward_layers(const std::vector<Layer>& layers, Tensor<T> x, AttentionArguments arguments,
                         std::optional<std::uint64_t> seed, std::vector<typename Layer::Saved>* saved,
                         Index first_saved, std::map<Index, AskedWeights<T>>* asked) {
  if (saved) saved->resize(layers.size());
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const auto index = static_cast<Index>(i);
    arguments.seed = dropout_seed(seed, i * Layer::kDropoutPlaces);
    AskedWeights<T>* const asked_here = asked && asked->contains(index) ? &asked->at(index) : nullptr;
    x = layers[i].forward(x, arguments, saved && index >= first_saved ? &(*saved)[i] : nullptr, asked_here);
  }
  return x;
}

// The gradient of the input of layer `lowest`, where that of the output is d_x.
template <class Layer, class T = typename Layer::Scalar>
Tensor<T> backward_layers(const std::vector<Layer>& layers, const std::vector<typename Layer::Saved>& saved,
                          Tensor<T> d_x, std::vector<Layer>& gradients, Index lowest, Write write) {
  for (std::size_t i = layers.size(); static_cast<Index>(i) > lowest;) {
    --i;
    d_x = layers[i].backward(saved[i], d_x, gradients[i], write);
  }
  return d_x;
}

}  // namespace blasformer
