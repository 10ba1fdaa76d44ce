#pragma once

// Attention weights of chosen layers, as Python asks for them and gets them.

#include <pybind11/pybind11.h>

#include <map>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/attention_call.h"
#include "layers/decoder_layer.h"
#include "layers/multihead_attention.h"

namespace blasformer::bindings {

using Selections = std::vector<std::pair<Index, py::object>>;  // layer index, and what selection_of takes

template <class T>
using Asked = std::map<Index, AskedWeights<T>>;

template <class T>
Asked<T> asked_of(const Selections& selections) {
  Asked<T> asked;
  for (const auto& [index, selection] : selections) asked[index].selection = *selection_of(selection);
  return asked;
}

template <class T>
py::dict weight_arrays(const Asked<T>& asked) {
  py::dict arrays;
  for (const auto& [index, of_layer] : asked) arrays[py::int_(index)] = numpy_view(of_layer.weights, true);
  return arrays;
}

template <class T>
using AskedOfDecoder = std::map<Index, AskedDecoderWeights<T>>;

// The same of both attentions of a decoder layer.
template <class T>
AskedOfDecoder<T> asked_of_decoder(const Selections& selections) {
  AskedOfDecoder<T> asked;
  for (const auto& [index, selection] : selections) {
    asked[index].self_attn.selection = *selection_of(selection);
    asked[index].multihead_attn.selection = asked[index].self_attn.selection;
  }
  return asked;
}

template <class T>
py::dict weight_arrays(const AskedOfDecoder<T>& asked) {
  py::dict arrays;
  for (const auto& [index, of_layer] : asked) {
    arrays[py::int_(index)] = py::make_tuple(numpy_view(of_layer.self_attn.weights, true),
                                             numpy_view(of_layer.multihead_attn.weights, true));
  }
  return arrays;
}

}  // namespace blasformer::bindings
