#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/asked_weights.h"
#include "bindings/attention_call.h"
#include "bindings/block_types.h"
#include "bindings/layer.h"
#include "bindings/layer_output.h"
#include "bindings/plain_layer.h"
#include "core/kept_memory.h"
#include "layers/dropout.h"
#include "layers/embedding.h"
#include "layers/encoder.h"
#include "layers/encoder_layer.h"
#include "layers/feed_forward.h"
#include "layers/gated_feed_forward.h"
#include "layers/layer_norm.h"
#include "layers/linear.h"
#include "layers/multihead_attention.h"
#include "layers/parameters.h"
#include "layers/rms_norm.h"

namespace blasformer::bindings {

namespace {

// Attends to its own input. Weights are asked for by the index of the layer (0 if there is but one) and come
// as a dictionary.
class SelfAttendingLayer : public Layer {
 public:
  virtual py::tuple call(const py::object& x, AttentionCall call, const Selections& selections,
                         const py::object& out) const = 0;
  virtual py::tuple forward(const py::object& x, AttentionCall call) const = 0;
  // An encoder of copies of this layer and of a last norm, if any; with initial weights of its own if there
  // is a seed.
  virtual std::unique_ptr<SelfAttendingLayer> stack(Index num_layers, const PlainLayer* norm,
                                                    Seed seed) const = 0;
};

class MultiheadAttentionLayer : public Layer {
 public:
  virtual py::tuple call(const py::object& query, const py::object& key, const py::object& value,
                         AttentionCall call, const py::object& selection, const py::object& out) const = 0;
  virtual py::tuple forward(const py::object& query, const py::object& key, const py::object& value,
                            AttentionCall call) const = 0;
};

template <class L>
class SelfAttendingLayerOf : public Holding<SelfAttendingLayer, L> {
 public:
  using T = typename L::Scalar;
  using Holding<SelfAttendingLayer, L>::Holding;

  py::tuple call(const py::object& x, AttentionCall call, const Selections& selections,
                 const py::object& out) const override {
    const std::shared_ptr<const L> layer = this->layer();
    Asked<T> asked = asked_of<T>(selections);
    const Tensor<T> given = input<T>(x, "x", false);
    LayerOutput<T> output(out);
    output.keep_apart(given);
    py::object y = output.result(compute(*layer, given, call.arguments, nullptr, asked, output.memory()));
    return py::make_tuple(std::move(y), weight_arrays(asked));
  }

  py::tuple forward(const py::object& x, AttentionCall call) const override {
    auto saved = this->new_saved();
    const std::shared_ptr<const L> layer = this->layer();
    Asked<T> none;
    const Tensor<T> y =
        compute(*layer, input<T>(x, "x", true), call.arguments, &*saved->values, none, nullptr);
    saved->output_shape = y.shape();
    saved->arrays = std::move(call.arrays);
    return py::make_tuple(numpy_view(y, true), std::unique_ptr<Saved>(std::move(saved)));
  }

  std::unique_ptr<SelfAttendingLayer> stack(Index num_layers, const PlainLayer* norm,
                                            Seed seed) const override {
    if constexpr (requires(L layer) { layer.layers; }) {
      fail<TypeMismatch>("encoder_layer must be a single layer");
    } else {
      TransformerEncoder<L> encoder(*this->layer(), num_layers, last_norm<typename L::LastNorm>(norm));
      if (seed) return initialised<SelfAttendingLayerOf>(std::move(encoder), *seed);
      return std::make_unique<SelfAttendingLayerOf<TransformerEncoder<L>>>(std::move(encoder));
    }
  }

 private:
  Tensor<T> compute(const L& layer, const Tensor<T>& x, const AttentionArguments& arguments,
                    typename L::Saved* saved, Asked<T>& asked, Tensor<T>* out) const {
    return this->run(x.size(), [&] {
      if constexpr (requires { layer.layers; }) {
        return layer.forward(x, arguments, saved, &asked, out);
      } else {
        return layer.forward(x, arguments, saved, asked.empty() ? nullptr : &asked.begin()->second, out);
      }
    });
  }
};

template <class L>
class MultiheadAttentionOf : public Holding<MultiheadAttentionLayer, L> {
 public:
  using T = typename L::Scalar;
  using Holding<MultiheadAttentionLayer, L>::Holding;

  py::tuple call(const py::object& query, const py::object& key, const py::object& value, AttentionCall call,
                 const py::object& selection, const py::object& out) const override {
    const std::shared_ptr<const L> layer = this->layer();
    AskedWeights<T> asked;
    if (!selection.is_none()) asked.selection = *selection_of(selection);
    const Inputs inputs = read(query, key, value, false);
    LayerOutput<T> output(out);
    output.keep_apart(inputs.query);
    if (inputs.key) output.keep_apart(*inputs.key);
    if (inputs.value) output.keep_apart(*inputs.value);
    py::object y = output.result(compute(*layer, inputs, call.arguments, nullptr,
                                         selection.is_none() ? nullptr : &asked, output.memory()));
    py::object weights = py::none();
    if (!selection.is_none()) weights = numpy_view(asked.weights, true);
    return py::make_tuple(std::move(y), std::move(weights));
  }

  py::tuple forward(const py::object& query, const py::object& key, const py::object& value,
                    AttentionCall call) const override {
    auto saved = this->new_saved();
    const std::shared_ptr<const L> layer = this->layer();
    const Inputs inputs = read(query, key, value, true);
    const Tensor<T> y = compute(*layer, inputs, call.arguments, &*saved->values, nullptr, nullptr);
    saved->output_shape = y.shape();
    saved->arrays = std::move(call.arrays);
    return py::make_tuple(numpy_view(y, true), std::unique_ptr<Saved>(std::move(saved)));
  }

 private:
  struct Inputs {
    Tensor<T> query;
    std::optional<Tensor<T>> key, value;
  };

  static Inputs read(const py::object& query, const py::object& key, const py::object& value, bool copied) {
    Inputs inputs{input<T>(query, "query", copied), std::nullopt, std::nullopt};
    if (!key.is_none()) inputs.key = input<T>(key, "key", copied);
    if (!value.is_none()) inputs.value = input<T>(value, "value", copied);
    return inputs;
  }

  Tensor<T> compute(const L& layer, const Inputs& inputs, const AttentionArguments& arguments,
                    typename L::Saved* saved, AskedWeights<T>* asked, Tensor<T>* out) const {
    return this->run(inputs.query.size() + (inputs.key ? inputs.key->size() : 0), [&] {
      return layer.forward(inputs.query, inputs.key ? &*inputs.key : nullptr,
                           inputs.value ? &*inputs.value : nullptr, arguments, saved, asked, out);
    });
  }
};

std::unique_ptr<PlainLayer> linear_layer(const std::string& dtype, Index in_features, Index out_features,
                                         bool bias, std::uint64_t seed) {
  return for_dtype<PlainLayer>(dtype, [&]<class T>(T) {
    return initialised<PlainLayerOf>(Linear<T>(in_features, out_features, bias), seed);
  });
}

std::unique_ptr<PlainLayer> embedding_layer(const std::string& dtype, Index num_embeddings,
                                            Index embedding_dim, std::optional<Index> padding_idx,
                                            std::uint64_t seed) {
  return for_dtype<PlainLayer>(dtype, [&]<class T>(T) {
    return initialised<PlainLayerOf>(Embedding<T>(num_embeddings, embedding_dim, padding_idx), seed);
  });
}

std::unique_ptr<PlainLayer> layer_norm_layer(const std::string& dtype, const Shape& normalized_shape,
                                             double eps, bool weight, bool bias) {
  return for_dtype<PlainLayer>(dtype, [&]<class T>(T) {
    return initialised<PlainLayerOf>(LayerNorm<T>(normalized_shape, eps, weight, bias), 0);
  });
}

std::unique_ptr<PlainLayer> rms_norm_layer(const std::string& dtype, const Shape& normalized_shape,
                                           double eps, bool weight) {
  return for_dtype<PlainLayer>(dtype, [&]<class T>(T) {
    return initialised<PlainLayerOf>(RMSNorm<T>(normalized_shape, eps, weight), 0);
  });
}

std::unique_ptr<PlainLayer> feed_forward_layer(const std::string& dtype, Index d_model, Index dim_feedforward,
                                               const std::string& activation, double dropout, bool bias,
                                               std::uint64_t seed) {
  return for_dtype<PlainLayer>(dtype, [&]<class T>(T) {
    const Activation chosen = activation_from_name(activation);
    return initialised<PlainLayerOf>(FeedForward<T>(d_model, dim_feedforward, chosen, dropout, bias), seed);
  });
}

std::unique_ptr<PlainLayer> gated_feed_forward_layer(const std::string& dtype, Index d_model,
                                                     Index dim_feedforward, const std::string& activation,
                                                     double dropout, bool bias, std::uint64_t seed) {
  return for_dtype<PlainLayer>(dtype, [&]<class T>(T) {
    const Activation chosen = activation_from_name(activation);
    return initialised<PlainLayerOf>(GatedFeedForward<T>(d_model, dim_feedforward, chosen, dropout, bias),
                                     seed);
  });
}

std::unique_ptr<PlainLayer> dropout_layer(const std::string& dtype, double p) {
  return for_dtype<PlainLayer>(dtype,
                               [&]<class T>(T) { return initialised<PlainLayerOf>(Dropout<T>(p), 0); });
}

std::unique_ptr<MultiheadAttentionLayer> multihead_attention_layer(const std::string& dtype, Index embed_dim,
                                                                   Index num_heads, Index num_kv_heads,
                                                                   Index kdim, Index vdim, double dropout,
                                                                   bool bias, const py::object& rotary,
                                                                   std::uint64_t seed) {
  return for_dtype<MultiheadAttentionLayer>(dtype, [&]<class T>(T) {
    return initialised<MultiheadAttentionOf>(
        MultiheadAttention<T>(embed_dim, num_heads, num_kv_heads, kdim, vdim, dropout, bias,
                              rotary_of(rotary, embed_dim, num_heads)),
        seed);
  });
}

std::unique_ptr<SelfAttendingLayer> encoder_layer(const std::string& dtype, Index d_model, Index nhead,
                                                  Index num_kv_heads, Index dim_feedforward, double dropout,
                                                  const std::string& activation, double layer_norm_eps,
                                                  bool norm_first, bool bias, const std::string& norm,
                                                  bool gated, bool recompute, const py::object& rotary,
                                                  std::uint64_t seed) {
  const TransformerLayerSizes sizes{
      d_model, nhead,          num_kv_heads, dim_feedforward, activation_from_name(activation),
      dropout, layer_norm_eps, bias,         recompute,       rotary_of(rotary, d_model, nhead)};
  return for_dtype<SelfAttendingLayer>(dtype, [&]<class T>(T) {
    return with_block_types<T>(
        norm, gated,
        [&]<class Norm, class Feed>(std::type_identity<Norm>,
                                    std::type_identity<Feed>) -> std::unique_ptr<SelfAttendingLayer> {
          if (norm_first)
            return initialised<SelfAttendingLayerOf>(PreNormEncoderLayer<T, Norm, Feed>(sizes), seed);
          return initialised<SelfAttendingLayerOf>(PostNormEncoderLayer<T, Norm, Feed>(sizes), seed);
        });
  });
}

}  // namespace

void bind_nn(py::module_& module) {
  py::class_<Saved>(module, "Saved", "What `forward` keeps for `backward`, which uses it up.")
      .def_property_readonly("nbytes", &Saved::nbytes, "Bytes held.")
      .def("__repr__", &Saved::text);
  py::class_<Layer>(module, "Layer")
      .def("parameters", &Layer::parameters)
      .def("load", &Layer::load, py::arg("arrays"), py::arg("expected_version"))
      .def("version", &Layer::version)
      .def("frozen", &Layer::frozen)
      .def("set_frozen", &Layer::set_frozen, py::arg("names"))
      .def("linear_layers", &Layer::linear_layers)
      .def("adapt", &Layer::adapt, py::arg("names"), py::arg("rank"), py::arg("scale"), py::arg("dropout"),
           py::arg("seed"))
      .def("merge_adapters", &Layer::merge_adapters, py::arg("merged"))
      .def("remove_adapters", &Layer::remove_adapters)
      .def("packed_nbytes", &Layer::packed_nbytes)
      .def("release_packed", &Layer::release_packed)
      .def("holds_bfloat16", &Layer::holds_bfloat16)
      .def(
          "hold_bfloat16",
          [](Layer& layer, bool wanted) {
            layer.hold_bfloat16(wanted);
            free_kept_memory();  // of the weights in the form they had
          },
          py::arg("wanted"))
      .def("backward", &Layer::backward, py::arg("saved"), py::arg("d_output"));
  py::class_<PlainLayer, Layer>(module, "PlainLayer")
      .def("call", &PlainLayer::call, py::arg("x"), py::arg("out"))
      .def("forward", &PlainLayer::forward, py::arg("x"), py::arg("seed"));
  py::class_<SelfAttendingLayer, Layer>(module, "SelfAttendingLayer")
      .def(
          "call",
          [](const SelfAttendingLayer& layer, const py::object& x, const py::tuple& arguments,
             const Selections& selections, const py::object& out) {
            return layer.call(x, layer_call(arguments, std::nullopt), selections, out);
          },
          py::arg("x"), py::arg("arguments"), py::arg("selections"), py::arg("out"))
      .def(
          "forward",
          [](const SelfAttendingLayer& layer, const py::object& x, const py::tuple& arguments, Seed seed) {
            return layer.forward(x, layer_call(arguments, seed));
          },
          py::arg("x"), py::arg("arguments"), py::arg("seed"))
      .def(
          "stack",
          [](const SelfAttendingLayer& layer, Index num_layers, std::optional<const PlainLayer*> norm,
             Seed seed) { return layer.stack(num_layers, norm.value_or(nullptr), seed); },
          py::arg("num_layers"), py::arg("norm"), py::arg("seed"));
  py::class_<MultiheadAttentionLayer, Layer>(module, "MultiheadAttentionLayer")
      .def(
          "call",
          [](const MultiheadAttentionLayer& layer, const py::object& query, const py::object& key,
             const py::object& value, const py::tuple& arguments, const py::object& selection,
             const py::object& out) {
            return layer.call(query, key, value, layer_call(arguments, std::nullopt), selection, out);
          },
          py::arg("query"), py::arg("key"), py::arg("value"), py::arg("arguments"), py::arg("selection"),
          py::arg("out"))
      .def(
          "forward",
          [](const MultiheadAttentionLayer& layer, const py::object& query, const py::object& key,
             const py::object& value, const py::tuple& arguments,
             Seed seed) { return layer.forward(query, key, value, layer_call(arguments, seed)); },
          py::arg("query"), py::arg("key"), py::arg("value"), py::arg("arguments"), py::arg("seed"));

  module.def("linear_layer", linear_layer, py::arg("dtype"), py::arg("in_features"), py::arg("out_features"),
             py::arg("bias"), py::arg("seed"));
  module.def("embedding_layer", embedding_layer, py::arg("dtype"), py::arg("num_embeddings"),
             py::arg("embedding_dim"), py::arg("padding_idx"), py::arg("seed"));
  module.def("layer_norm_layer", layer_norm_layer, py::arg("dtype"), py::arg("normalized_shape"),
             py::arg("eps"), py::arg("elementwise_affine"), py::arg("bias"));
  module.def("rms_norm_layer", rms_norm_layer, py::arg("dtype"), py::arg("normalized_shape"), py::arg("eps"),
             py::arg("elementwise_affine"));
  module.def("feed_forward_layer", feed_forward_layer, py::arg("dtype"), py::arg("d_model"),
             py::arg("dim_feedforward"), py::arg("activation"), py::arg("dropout"), py::arg("bias"),
             py::arg("seed"));
  module.def("gated_feed_forward_layer", gated_feed_forward_layer, py::arg("dtype"), py::arg("d_model"),
             py::arg("dim_feedforward"), py::arg("activation"), py::arg("dropout"), py::arg("bias"),
             py::arg("seed"));
  module.def("dropout_layer", dropout_layer, py::arg("dtype"), py::arg("p"));
  module.def("multihead_attention_layer", multihead_attention_layer, py::arg("dtype"), py::arg("embed_dim"),
             py::arg("num_heads"), py::arg("num_kv_heads"), py::arg("kdim"), py::arg("vdim"),
             py::arg("dropout"), py::arg("bias"), py::arg("rotary"), py::arg("seed"));
  module.def("encoder_layer", encoder_layer, py::arg("dtype"), py::arg("d_model"), py::arg("nhead"),
             py::arg("num_kv_heads"), py::arg("dim_feedforward"), py::arg("dropout"), py::arg("activation"),
             py::arg("layer_norm_eps"), py::arg("norm_first"), py::arg("bias"), py::arg("norm"),
             py::arg("gated"), py::arg("recompute"), py::arg("rotary"), py::arg("seed"));
}

}  // namespace blasformer::bindings
