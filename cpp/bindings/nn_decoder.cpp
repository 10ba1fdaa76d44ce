#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "bindings/asked_weights.h"
#include "bindings/attention_call.h"
#include "bindings/block_types.h"
#include "bindings/growing_targets.h"
#include "bindings/layer.h"
#include "bindings/layer_output.h"
#include "bindings/plain_layer.h"
#include "layers/decoder.h"
#include "layers/decoder_layer.h"

namespace blasformer::bindings {

namespace {

// What the masks of a decoder look into, and its arguments.
struct DecoderCall {
  DecoderArguments arguments;
  std::vector<py::object> arrays;
};

// masks: see layer_call. memory_masks: (memory_mask, memory_key_lengths, memory_key_segments).
DecoderCall decoder_call(const py::tuple& masks, const py::tuple& memory_masks, Seed seed) {
  AttentionCall own = layer_call(masks, seed), memory;
  memory.keep(memory.arguments.mask, memory_masks[0], bool_view, "memory_mask");
  memory.keep(memory.arguments.key_lengths, memory_masks[1], int64_view, "memory_key_lengths");
  memory.keep(memory.arguments.key_segments, memory_masks[2], int64_view, "memory_key_segments");
  if (memory.arguments.key_segments) {
    if (!own.arguments.query_segments)
      fail("memory_key_segments must be given together with query_segments, got only memory_key_segments");
    memory.arguments.query_segments = own.arguments.query_segments;
  }
  DecoderCall call{{own.arguments, memory.arguments}, std::move(own.arrays)};
  std::move(memory.arrays.begin(), memory.arrays.end(), std::back_inserter(call.arrays));
  return call;
}

// Attends to its own input and to a memory. Weights are asked for by the index of the layer (0 if there is
// but one) and come as a dictionary of pairs.
class DecodingLayer : public Layer {
 public:
  virtual py::tuple call(const py::object& target, const py::object& memory, const DecoderCall& call,
                         const Selections& selections, const py::object& out) const = 0;
  virtual py::tuple forward(const py::object& target, const py::object& memory, DecoderCall call) const = 0;
  // A decoder of copies of this layer and of a last norm, if any; with initial weights of its own if there is
  // a seed.
  virtual std::unique_ptr<DecodingLayer> stack(Index num_layers, const PlainLayer* norm, Seed seed) const = 0;
  // An empty target for each memory, with room for `capacity` positions.
  virtual std::unique_ptr<GrowingTargets> new_cache(const py::object& memory, py::object memory_lengths,
                                                    Index capacity) const = 0;
};

template <class L>
class DecodingLayerOf : public Holding<DecodingLayer, L> {
 public:
  using T = typename L::Scalar;
  using Holding<DecodingLayer, L>::Holding;

  py::tuple call(const py::object& target, const py::object& memory, const DecoderCall& call,
                 const Selections& selections, const py::object& out) const override {
    const std::shared_ptr<const L> layer = this->layer();
    AskedOfDecoder<T> asked = asked_of_decoder<T>(selections);
    const Tensor<T> to = input<T>(target, "target", false), from = input<T>(memory, "memory", false);
    LayerOutput<T> output(out);
    output.keep_apart(to);
    output.keep_apart(from);
    py::object y = output.result(compute(*layer, to, from, call.arguments, nullptr, asked, output.memory()));
    return py::make_tuple(std::move(y), weight_arrays(asked));
  }

  py::tuple forward(const py::object& target, const py::object& memory, DecoderCall call) const override {
    auto saved = this->new_saved();
    const std::shared_ptr<const L> layer = this->layer();
    AskedOfDecoder<T> none;
    const Tensor<T> y = compute(*layer, input<T>(target, "target", true), input<T>(memory, "memory", true),
                                call.arguments, &*saved->values, none, nullptr);
    saved->output_shape = y.shape();
    saved->arrays = std::move(call.arrays);
    return py::make_tuple(numpy_view(y, true), std::unique_ptr<Saved>(std::move(saved)));
  }

  std::unique_ptr<DecodingLayer> stack(Index num_layers, const PlainLayer* norm, Seed seed) const override {
    if constexpr (requires(L layer) { layer.layers; }) {
      fail<TypeMismatch>("decoder_layer must be a single layer");
    } else {
      TransformerDecoder<L> decoder(*this->layer(), num_layers, last_norm<typename L::LastNorm>(norm));
      if (seed) return initialised<DecodingLayerOf>(std::move(decoder), *seed);
      return std::make_unique<DecodingLayerOf<TransformerDecoder<L>>>(std::move(decoder));
    }
  }

  std::unique_ptr<GrowingTargets> new_cache(const py::object& memory, py::object memory_lengths,
                                            Index capacity) const override {
    return growing_targets(this->layer(),
                           std::make_shared<typename Holding<DecodingLayer, L>::Computing>(*this), memory,
                           {std::move(memory_lengths), "memory_key_lengths"}, capacity);
  }

 private:
  Tensor<T> compute(const L& layer, const Tensor<T>& target, const Tensor<T>& memory,
                    const DecoderArguments& arguments, typename L::Saved* saved, AskedOfDecoder<T>& asked,
                    Tensor<T>* out) const {
    return this->run(target.size() + memory.size(), [&] {
      if constexpr (requires { layer.layers; }) {
        return layer.forward(target, memory, arguments, saved, &asked, out);
      } else {
        return layer.forward(target, memory, arguments, saved,
                             asked.empty() ? nullptr : &asked.begin()->second, out);
      }
    });
  }
};

std::unique_ptr<DecodingLayer> decoder_layer(const std::string& dtype, Index d_model, Index nhead,
                                             Index num_kv_heads, Index dim_feedforward, double dropout,
                                             const std::string& activation, double layer_norm_eps,
                                             bool norm_first, bool bias, const std::string& norm, bool gated,
                                             bool recompute, const py::object& rotary, std::uint64_t seed) {
  const TransformerLayerSizes sizes{
      d_model, nhead,          num_kv_heads, dim_feedforward, activation_from_name(activation),
      dropout, layer_norm_eps, bias,         recompute,       rotary_of(rotary, d_model, nhead)};
  return for_dtype<DecodingLayer>(dtype, [&]<class T>(T) {
    return with_block_types<T>(
        norm, gated,
        [&]<class Norm, class Feed>(std::type_identity<Norm>,
                                    std::type_identity<Feed>) -> std::unique_ptr<DecodingLayer> {
          if (norm_first)
            return initialised<DecodingLayerOf>(PreNormDecoderLayer<T, Norm, Feed>(sizes), seed);
          return initialised<DecodingLayerOf>(PostNormDecoderLayer<T, Norm, Feed>(sizes), seed);
        });
  });
}

}  // namespace

void bind_nn_decoder(py::module_& module) {
  py::class_<GrowingTargets>(module, "GrowingTargets")
      .def("add", &GrowingTargets::add, py::arg("target"), py::arg("added"))
      .def("choose", &GrowingTargets::choose, py::arg("rows"))
      .def("lengths", &GrowingTargets::lengths)
      .def("nbytes", &GrowingTargets::nbytes);
  py::class_<DecodingLayer, Layer>(module, "DecodingLayer")
      .def("new_cache", &DecodingLayer::new_cache, py::arg("memory"), py::arg("memory_lengths"),
           py::arg("capacity"), py::keep_alive<0, 1>())
      .def(
          "call",
          [](const DecodingLayer& layer, const py::object& target, const py::object& memory,
             const py::tuple& masks, const py::tuple& memory_masks, const Selections& selections,
             const py::object& out) {
            return layer.call(target, memory, decoder_call(masks, memory_masks, std::nullopt), selections,
                              out);
          },
          py::arg("target"), py::arg("memory"), py::arg("masks"), py::arg("memory_masks"),
          py::arg("selections"), py::arg("out"))
      .def(
          "forward",
          [](const DecodingLayer& layer, const py::object& target, const py::object& memory,
             const py::tuple& masks, const py::tuple& memory_masks,
             Seed seed) { return layer.forward(target, memory, decoder_call(masks, memory_masks, seed)); },
          py::arg("target"), py::arg("memory"), py::arg("masks"), py::arg("memory_masks"), py::arg("seed"))
      .def(
          "stack",
          [](const DecodingLayer& layer, Index num_layers, std::optional<const PlainLayer*> norm, Seed seed) {
            return layer.stack(num_layers, norm.value_or(nullptr), seed);
          },
          py::arg("num_layers"), py::arg("norm"), py::arg("seed"));
  module.def("decoder_layer", decoder_layer, py::arg("dtype"), py::arg("d_model"), py::arg("nhead"),
             py::arg("num_kv_heads"), py::arg("dim_feedforward"), py::arg("dropout"), py::arg("activation"),
             py::arg("layer_norm_eps"), py::arg("norm_first"), py::arg("bias"), py::arg("norm"),
             py::arg("gated"), py::arg("recompute"), py::arg("rotary"), py::arg("seed"));
}

}  // namespace blasformer::bindings
