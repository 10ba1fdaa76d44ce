#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <exception>
#include <new>

#include "core/require.h"

namespace py = pybind11;

namespace blasformer::bindings {
void bind_attention(py::module_& module);
void bind_classifier(py::module_& module);
void bind_functional(py::module_& module);
void bind_gradients(py::module_& module);
void bind_language_model(py::module_& module);
void bind_models(py::module_& module);
void bind_nn(py::module_& module);
void bind_nn_decoder(py::module_& module);
void bind_nn_positions(py::module_& module);
void bind_nn_transformer(py::module_& module);
void bind_optim(py::module_& module);
void bind_question_answering(py::module_& module);
void bind_runtime(py::module_& module);
void bind_seq2seq(py::module_& module);
}  // namespace blasformer::bindings

PYBIND11_MODULE(_core, module) {
  module.doc() = "The compiled core of blasformer. Private: use the blasformer package.";
  module.attr("__version__") = BLASFORMER_VERSION;
  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const blasformer::TypeMismatch& mismatch) {
      PyErr_SetString(PyExc_TypeError, mismatch.what());
    } catch (const std::bad_alloc&) {
      PyErr_SetString(PyExc_MemoryError, "not enough memory for this call's arrays");
    }
  });
  // Looks NumPy's functions up. By itself pybind11 would do it at the first array, with the GIL released in a
  // way that aborts the process when a daemon thread does it while the interpreter shuts down (see gil.h).
  py::detail::npy_api::get();
  blasformer::bindings::bind_attention(module);
  blasformer::bindings::bind_functional(module);
  blasformer::bindings::bind_gradients(module);
  blasformer::bindings::bind_nn(module);
  blasformer::bindings::bind_models(module);
  blasformer::bindings::bind_question_answering(module);
  blasformer::bindings::bind_nn_decoder(module);
  blasformer::bindings::bind_nn_positions(module);
  blasformer::bindings::bind_nn_transformer(module);
  blasformer::bindings::bind_classifier(module);
  blasformer::bindings::bind_language_model(module);
  blasformer::bindings::bind_seq2seq(module);
  blasformer::bindings::bind_optim(module);
  blasformer::bindings::bind_runtime(module);
}
