#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "bindings/layer.h"
#include "bindings/layer_output.h"
#include "layers/positional_encoding.h"

namespace blasformer::bindings {

namespace {

class PositionalLayer : public Layer {
 public:
  virtual py::object call(const py::object& x, py::object positions, const py::object& out) const = 0;
  virtual py::tuple forward(const py::object& x, py::object positions, Seed seed) const = 0;
};

template <class L>
class PositionalLayerOf : public Holding<PositionalLayer, L> {
 public:
  using T = typename L::Scalar;
  using Holding<PositionalLayer, L>::Holding;

  py::object call(const py::object& x, py::object positions, const py::object& out) const override {
    const std::shared_ptr<const L> layer = this->layer();
    const Tensor<T> given = input<T>(x, "x", false);
    const Tensor<std::int64_t> places = id_input(positions, "positions", false);
    LayerOutput<T> output(out);
    output.keep_apart(given);
    output.keep_apart(places);
    return output.result(compute(*layer, given, places, std::nullopt, nullptr, output.memory()));
  }

  py::tuple forward(const py::object& x, py::object positions, Seed seed) const override {
    auto saved = this->new_saved();
    const std::shared_ptr<const L> layer = this->layer();
    const Tensor<T> y = compute(*layer, input<T>(x, "x", false), id_input(positions, "positions", true), seed,
                                &*saved->values, nullptr);
    saved->output_shape = y.shape();
    return py::make_tuple(numpy_view(y, true), std::unique_ptr<Saved>(std::move(saved)));
  }

 private:
  Tensor<T> compute(const L& layer, const Tensor<T>& x, const Tensor<std::int64_t>& positions, Seed seed,
                    typename L::Saved* saved, Tensor<T>* out) const {
    return this->run(x.size(), [&] { return layer.forward(x, positions, seed, saved, out); });
  }
};

std::unique_ptr<PositionalLayer> positional_encoding_layer(const std::string& dtype, Index d_model,
                                                           double dropout, std::optional<Index> max_len,
                                                           const std::string& kind, double scale,
                                                           std::uint64_t seed) {
  return for_dtype<PositionalLayer>(dtype, [&]<class T>(T) -> std::unique_ptr<PositionalLayer> {
    if (kind == "learned") {
      if (!max_len) fail("max_len must be given for a learned encoding, got None");
      return initialised<PositionalLayerOf>(LearnedEncoding<T>(*max_len, d_model, scale, dropout), seed);
    }
    const bool interleaved = kind == "interleaved";
    if (!interleaved && kind != "concatenated")
      fail("kind must be interleaved, concatenated or learned, got ", kind);
    const SinusoidLayout layout = interleaved ? SinusoidLayout::interleaved : SinusoidLayout::concatenated;
    return initialised<PositionalLayerOf>(SinusoidalEncoding<T>(d_model, layout, scale, dropout), seed);
  });
}

}  // namespace

void bind_nn_positions(py::module_& module) {
  py::class_<PositionalLayer, Layer>(module, "PositionalLayer")
      .def("call", &PositionalLayer::call, py::arg("x"), py::arg("positions"), py::arg("out"))
      .def("forward", &PositionalLayer::forward, py::arg("x"), py::arg("positions"), py::arg("seed"));
  module.def("positional_encoding_layer", positional_encoding_layer, py::arg("dtype"), py::arg("d_model"),
             py::arg("dropout"), py::arg("max_len"), py::arg("kind"), py::arg("scale"), py::arg("seed"));
}

}  // namespace blasformer::bindings
