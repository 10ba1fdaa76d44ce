#pragma once

#include <memory>
#include <optional>
#include <utility>

#include "bindings/layer.h"
#include "bindings/layer_output.h"
#include "layers/low_rank.h"

namespace blasformer::bindings {

// One array in, one array out.
class PlainLayer : public Layer {
 public:
  virtual py::object call(py::object x, const py::object& out) const = 0;
  virtual py::tuple forward(py::object x, Seed seed) const = 0;
};

template <class L>
class PlainLayerOf : public Holding<PlainLayer, L> {
 public:
  using Holding<PlainLayer, L>::Holding;

  py::object call(py::object x, const py::object& out) const override {
    const std::shared_ptr<const L> layer = this->layer();
    const auto given = read(x, false);
    LayerOutput<typename L::Scalar> output(out);
    output.keep_apart(given);
    return output.result(compute(*layer, given, std::nullopt, nullptr, output.memory()));
  }

  py::tuple forward(py::object x, Seed seed) const override {
    auto saved = this->new_saved();
    const std::shared_ptr<const L> layer = this->layer();
    const auto y = compute(*layer, read(x, true), seed, &*saved->values, nullptr);
    saved->output_shape = y.shape();
    return py::make_tuple(numpy_view(y, true), std::unique_ptr<Saved>(std::move(saved)));
  }

 private:
  static constexpr bool kReadsIds = requires(typename L::Saved saved) { saved.ids; };

  static auto read(py::object& x, bool copied) {
    if constexpr (kReadsIds) {
      return id_input(x, "ids", copied);
    } else {
      return input<typename L::Scalar>(x, "x", copied);
    }
  }

  template <class Input>
  auto compute(const L& layer, const Input& x, Seed seed, typename L::Saved* saved,
               Tensor<typename L::Scalar>* out) const {
    return this->run(x.size(), [&] {
      if constexpr (requires { layer.adapter; }) {
        return layer.forward(x, saved, adapter_seed(seed, 0), out);
      } else if constexpr (requires { layer.forward(x, seed, saved, out); }) {
        return layer.forward(x, seed, saved, out);
      } else {
        return layer.forward(x, saved, out);
      }
    });
  }
};

// The norm at the end of a stack of layers, which is of the type of theirs; null: none.
template <class Norm>
std::optional<Norm> last_norm(const PlainLayer* norm) {
  if (norm == nullptr) return std::nullopt;
  const auto* const held = dynamic_cast<const PlainLayerOf<Norm>*>(norm);
  if (held == nullptr) fail<TypeMismatch>("norm must be of the type and dtype of the norms in the layer");
  return *held->layer();
}

}  // namespace blasformer::bindings
