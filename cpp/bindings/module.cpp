#include <pybind11/pybind11.h>

namespace py = pybind11;

PYBIND11_MODULE(_core, module) {
  module.doc() = "The compiled core of blasformer. Private: use the blasformer package.";
  module.attr("__version__") = BLASFORMER_VERSION;
}
