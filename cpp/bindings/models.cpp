#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/gil.h"
#include "models/bert.h"

namespace blasformer::bindings {

namespace {

// Indices, (total,): copied, as the model shares memory with tensors only.
Tensor<std::int64_t> indices(py::object argument, const char* name) {
  const ArrayView view = int64_view(argument, name);
  require(view.rank == 1, name, " must have one dimension, got ", view.rank);
  Tensor<std::int64_t> tensor({view.shape[0]});
  std::copy_n(static_cast<const std::int64_t*>(view.data), tensor.size(), tensor.data());
  return tensor;
}

using AskedLayers =
    std::vector<std::tuple<Index, std::vector<Index>, bool>>;  // (layer, heads, whether their mean)

// A BertModel as Python holds it, whatever its scalars are.
class Bert {
 public:
  virtual ~Bert() = default;
  // Views of the weights, by name. Writeable ones are for whoever loads them, before anyone else has the
  // model.
  virtual py::dict parameters(bool writeable) = 0;
  virtual void initialise(std::uint64_t seed) = 0;
  // (last hidden states (total, hidden_size), pooled (sequences, hidden_size) or None,
  // {layer: weights of each sequence})
  virtual py::tuple forward(const PackedTokens& tokens, const AskedLayers& asked, bool with_pooled) const = 0;
};

template <class T>
class BertOf : public Bert {
 public:
  explicit BertOf(const BertSizes& sizes) : model_(sizes) {}

  py::dict parameters(bool writeable) override {
    py::dict arrays;
    BertModel<T>::each_parameter(model_, [&](const std::string& name, const Tensor<T>& tensor) {
      arrays[py::str(name)] = numpy_view(tensor, writeable);
    });
    return arrays;
  }

  void initialise(std::uint64_t seed) override {
    Initialiser random(seed);
    model_.initialise(random);
  }

  py::tuple forward(const PackedTokens& tokens, const AskedLayers& asked_layers,
                    bool with_pooled) const override {
    std::map<Index, typename BertModel<T>::Asked> asked;
    for (const auto& [layer, heads, mean] : asked_layers) {
      asked[layer].heads = heads;
      asked[layer].mean = mean;
    }
    Tensor<T> hidden, pooled;
    {
      const ReleaseGil released;
      hidden = model_.forward(tokens, &asked);
      if (with_pooled) pooled = model_.pool(hidden, tokens.starts);
    }
    py::dict weights;
    for (const auto& [layer, of_layer] : asked) {
      py::list of_sequences;
      for (const Tensor<T>& of_sequence : of_layer.weights)
        of_sequences.append(numpy_view(of_sequence, true));
      weights[py::int_(layer)] = of_sequences;
    }
    py::object pooled_or_none = py::none();
    if (with_pooled) pooled_or_none = numpy_view(pooled, true);
    return py::make_tuple(numpy_view(hidden, true), pooled_or_none, weights);
  }

 private:
  BertModel<T> model_;
};

std::unique_ptr<Bert> make_bert(const std::string& dtype, Index vocab_size, Index hidden_size,
                                Index num_hidden_layers, Index num_attention_heads, Index intermediate_size,
                                Index max_position_embeddings, Index type_vocab_size,
                                const std::string& activation, double layer_norm_eps, bool with_pooler) {
  const BertSizes sizes{vocab_size,        hidden_size,
                        num_hidden_layers, num_attention_heads,
                        intermediate_size, max_position_embeddings,
                        type_vocab_size,   activation_from_name(activation),
                        layer_norm_eps,    with_pooler};
  if (dtype == "float64") return std::make_unique<BertOf<double>>(sizes);
  return std::make_unique<BertOf<float>>(sizes);
}

py::tuple forward(const Bert& model, const py::object& ids, const py::object& positions,
                  const py::object& types, const std::vector<Index>& starts, const AskedLayers& asked,
                  bool with_pooled) {
  const PackedTokens tokens{indices(ids, "ids"), indices(positions, "positions"), indices(types, "types"),
                            starts};
  return model.forward(tokens, asked, with_pooled);
}

}  // namespace

void bind_models(py::module_& module) {
  py::class_<Bert>(module, "BertModel")
      .def(py::init(&make_bert), py::arg("dtype"), py::kw_only(), py::arg("vocab_size"),
           py::arg("hidden_size"), py::arg("num_hidden_layers"), py::arg("num_attention_heads"),
           py::arg("intermediate_size"), py::arg("max_position_embeddings"), py::arg("type_vocab_size"),
           py::arg("activation"), py::arg("layer_norm_eps"), py::arg("with_pooler"))
      .def("parameters", &Bert::parameters, py::arg("writeable"))
      .def("initialise", &Bert::initialise, py::arg("seed"))
      .def("forward", forward, py::arg("ids"), py::arg("positions"), py::arg("types"), py::arg("starts"),
           py::arg("asked"), py::arg("with_pooled"));
}

}  // namespace blasformer::bindings
