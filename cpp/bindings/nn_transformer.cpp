#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

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
#include "layers/transformer.h"

namespace blasformer::bindings {

namespace {

// (source_mask, source_lengths, target_mask, target_lengths, causal, memory_mask)
struct TransformerCall {
  TransformerArguments arguments;
  std::vector<py::object> arrays;
};

TransformerCall transformer_call(const py::tuple& masks, Seed seed) {
  AttentionCall source, target, memory;
  source.keep(source.arguments.mask, masks[0], bool_view, "source_mask");
  source.keep(source.arguments.key_lengths, masks[1], int64_view, "source_lengths");
  source.arguments.seed = seed;
  parse_masks({py::none(), masks[4], py::none(), py::none(), py::none(), py::none(), py::none(), py::none()},
              target);
  target.keep(target.arguments.mask, masks[2], bool_view, "target_mask");
  target.keep(target.arguments.key_lengths, masks[3], int64_view, "target_lengths");
  memory.keep(memory.arguments.mask, masks[5], bool_view, "memory_mask");
  memory.arguments.key_lengths = source.arguments.key_lengths;
  TransformerCall call{{source.arguments, {target.arguments, memory.arguments}}, std::move(source.arrays)};
  for (AttentionCall* part : {&target, &memory})
    std::move(part->arrays.begin(), part->arrays.end(), std::back_inserter(call.arrays));
  return call;
}

class TransformerLayer : public Layer {
 public:
  virtual py::tuple call(const py::object& source, const py::object& target, const TransformerCall& call,
                         const Selections& of_encoder, const Selections& of_decoder,
                         const py::object& out) const = 0;
  virtual py::tuple forward(const py::object& source, const py::object& target,
                            TransformerCall call) const = 0;
  virtual py::object encode(const py::object& source, const TransformerCall& call,
                            const py::object& out) const = 0;
  virtual py::object decode(const py::object& target, const py::object& memory, const TransformerCall& call,
                            const py::object& out) const = 0;
  // An empty target for each memory, with room for `capacity` positions.
  virtual std::unique_ptr<GrowingTargets> new_cache(const py::object& memory, py::object source_lengths,
                                                    Index capacity) const = 0;
};

template <class L>
class TransformerOf : public Holding<TransformerLayer, L> {
 public:
  using T = typename L::Scalar;
  using Holding<TransformerLayer, L>::Holding;

  py::tuple call(const py::object& source, const py::object& target, const TransformerCall& call,
                 const Selections& of_encoder, const Selections& of_decoder,
                 const py::object& out) const override {
    const std::shared_ptr<const L> layer = this->layer();
    typename L::Asked asked{asked_of<T>(of_encoder), asked_of_decoder<T>(of_decoder)};
    const Tensor<T> from = input<T>(source, "source", false), to = input<T>(target, "target", false);
    LayerOutput<T> output = output_apart(out, from, to);
    const Tensor<T> y = this->run(from.size() + to.size(), [&] {
      return layer->forward(from, to, call.arguments, nullptr, &asked, output.memory());
    });
    return py::make_tuple(output.result(y), weight_arrays(asked.encoder), weight_arrays(asked.decoder));
  }

  py::tuple forward(const py::object& source, const py::object& target, TransformerCall call) const override {
    auto saved = this->new_saved();
    const std::shared_ptr<const L> layer = this->layer();
    const Tensor<T> from = input<T>(source, "source", true), to = input<T>(target, "target", true);
    const Tensor<T> y = this->run(from.size() + to.size(),
                                  [&] { return layer->forward(from, to, call.arguments, &*saved->values); });
    saved->output_shape = y.shape();
    saved->arrays = std::move(call.arrays);
    return py::make_tuple(numpy_view(y, true), std::unique_ptr<Saved>(std::move(saved)));
  }

  py::object encode(const py::object& source, const TransformerCall& call,
                    const py::object& out) const override {
    const std::shared_ptr<const L> layer = this->layer();
    const Tensor<T> from = input<T>(source, "source", false);
    LayerOutput<T> output(out);
    output.keep_apart(from);
    return output.result(
        this->run(from.size(), [&] { return layer->encode(from, call.arguments.encoder, output.memory()); }));
  }

  py::object decode(const py::object& target, const py::object& memory, const TransformerCall& call,
                    const py::object& out) const override {
    const std::shared_ptr<const L> layer = this->layer();
    const Tensor<T> to = input<T>(target, "target", false), from = input<T>(memory, "memory", false);
    LayerOutput<T> output = output_apart(out, from, to);
    return output.result(this->run(to.size() + from.size(), [&] {
      return layer->decode(to, from, call.arguments.decoder, output.memory());
    }));
  }

  std::unique_ptr<GrowingTargets> new_cache(const py::object& memory, py::object source_lengths,
                                            Index capacity) const override {
    return growing_targets(this->layer(),
                           std::make_shared<typename Holding<TransformerLayer, L>::Computing>(*this), memory,
                           {std::move(source_lengths), "source_lengths"}, capacity);
  }

 private:
  static LayerOutput<T> output_apart(const py::object& out, const Tensor<T>& from, const Tensor<T>& to) {
    LayerOutput<T> output(out);
    output.keep_apart(from);
    output.keep_apart(to);
    return output;
  }
};

std::unique_ptr<TransformerLayer> transformer(const std::string& dtype, Index d_model, Index nhead,
                                              Index num_encoder_layers, Index num_decoder_layers,
                                              Index num_kv_heads, Index dim_feedforward, double dropout,
                                              const std::string& activation, double layer_norm_eps,
                                              bool norm_first, bool bias, const std::string& norm, bool gated,
                                              bool recompute, const py::object& rotary, std::uint64_t seed) {
  const TransformerLayerSizes sizes{
      d_model, nhead,          num_kv_heads, dim_feedforward, activation_from_name(activation),
      dropout, layer_norm_eps, bias,         recompute,       rotary_of(rotary, d_model, nhead)};
  return for_dtype<TransformerLayer>(dtype, [&]<class T>(T) {
    return with_block_types<T>(
        norm, gated,
        [&]<class Norm, class Feed>(std::type_identity<Norm>,
                                    std::type_identity<Feed>) -> std::unique_ptr<TransformerLayer> {
          const auto make = [&]<class Encoder, class Decoder>(std::type_identity<Encoder>,
                                                              std::type_identity<Decoder>) {
            return initialised<TransformerOf>(
                Transformer<Encoder, Decoder>(sizes, num_encoder_layers, num_decoder_layers), seed);
          };
          if (norm_first)
            return make(std::type_identity<PreNormEncoderLayer<T, Norm, Feed>>(),
                        std::type_identity<PreNormDecoderLayer<T, Norm, Feed>>());
          return make(std::type_identity<PostNormEncoderLayer<T, Norm, Feed>>(),
                      std::type_identity<PostNormDecoderLayer<T, Norm, Feed>>());
        });
  });
}

}  // namespace

void bind_nn_transformer(py::module_& module) {
  py::class_<TransformerLayer, Layer>(module, "TransformerLayer")
      .def("new_cache", &TransformerLayer::new_cache, py::arg("memory"), py::arg("source_lengths"),
           py::arg("capacity"), py::keep_alive<0, 1>())
      .def(
          "call",
          [](const TransformerLayer& layer, const py::object& source, const py::object& target,
             const py::tuple& masks, const Selections& of_encoder, const Selections& of_decoder,
             const py::object& out) {
            return layer.call(source, target, transformer_call(masks, std::nullopt), of_encoder, of_decoder,
                              out);
          },
          py::arg("source"), py::arg("target"), py::arg("masks"), py::arg("of_encoder"),
          py::arg("of_decoder"), py::arg("out"))
      .def(
          "forward",
          [](const TransformerLayer& layer, const py::object& source, const py::object& target,
             const py::tuple& masks,
             Seed seed) { return layer.forward(source, target, transformer_call(masks, seed)); },
          py::arg("source"), py::arg("target"), py::arg("masks"), py::arg("seed"))
      .def(
          "encode",
          [](const TransformerLayer& layer, const py::object& source, const py::tuple& masks,
             const py::object& out) {
            return layer.encode(source, transformer_call(masks, std::nullopt), out);
          },
          py::arg("source"), py::arg("masks"), py::arg("out"))
      .def(
          "decode",
          [](const TransformerLayer& layer, const py::object& target, const py::object& memory,
             const py::tuple& masks, const py::object& out) {
            return layer.decode(target, memory, transformer_call(masks, std::nullopt), out);
          },
          py::arg("target"), py::arg("memory"), py::arg("masks"), py::arg("out"));
  module.def("transformer", transformer, py::arg("dtype"), py::arg("d_model"), py::arg("nhead"),
             py::arg("num_encoder_layers"), py::arg("num_decoder_layers"), py::arg("num_kv_heads"),
             py::arg("dim_feedforward"), py::arg("dropout"), py::arg("activation"), py::arg("layer_norm_eps"),
             py::arg("norm_first"), py::arg("bias"), py::arg("norm"), py::arg("gated"), py::arg("recompute"),
             py::arg("rotary"), py::arg("seed"));
}

}  // namespace blasformer::bindings
