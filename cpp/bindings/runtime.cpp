#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <chrono>
#include <string_view>
#include <thread>

#include "bindings/context_modes.h"
#include "bindings/gil.h"
#include "core/available_cores.h"
#include "core/blas.h"
#include "core/cpu.h"
#include "core/interrupt.h"
#include "core/precision.h"
#include "core/thread_pool.h"
#include "core/warning.h"

namespace py = pybind11;

// What threadpoolctl recognises this library by.
extern "C" __attribute__((visibility("default"))) int blasformer_num_threads() {
  return blasformer::num_threads();
}

namespace blasformer::bindings {

namespace {

// Runs Python's signal handlers, Ctrl-C's above all, and throws if one raised. Only the main thread runs
// them; the others need not wait for the GIL to find out that they have nothing to do.
void check_signals() {
  if (::gettid() != ::getpid()) return;
  const py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

void show_warning(const std::string& text) {
  const py::gil_scoped_acquire gil;
  if (PyErr_WarnFormat(PyExc_RuntimeWarning, 1, "%s", text.c_str()) != 0) throw py::error_already_set();
}

// Python's context variable with the name of a precision.
PyObject* precision_variable = nullptr;
// Likewise, with a bool.
PyObject* batch_invariance_variable = nullptr;

py::object value_of(PyObject* variable) {
  PyObject* value = nullptr;
  if (variable == nullptr || PyContextVar_Get(variable, nullptr, &value) != 0) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(value);
}

// A variable of the module. It lives as long as the process: other interpreters of it may be at work when one
// ends.
PyObject* new_variable(py::module_& module, const char* attribute, const char* name,
                       const py::object& value) {
  PyObject* const variable = PyContextVar_New(name, value.ptr());
  if (variable == nullptr) throw py::error_already_set();
  module.attr(attribute) = py::reinterpret_borrow<py::object>(variable);
  return variable;
}

// For tests of the pool: tasks that sleep. Returns which worker ran each.
std::vector<int> sleep_in_tasks(Index tasks, double seconds) {
  std::vector<int> workers(static_cast<std::size_t>(tasks));
  const ReleaseGil released;
  parallel_for(tasks, 1e9 * seconds * static_cast<double>(tasks), [&](Index task, int worker) {
    std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
    workers[static_cast<std::size_t>(task)] = worker;
  });
  return workers;
}

}  // namespace

Precision context_precision() {
  const py::object name = value_of(precision_variable);
  Py_ssize_t length = 0;
  const char* const text = PyUnicode_AsUTF8AndSize(name.ptr(), &length);
  if (text == nullptr) throw py::error_already_set();
  // One of the four that checked_precision lets through.
  const std::string_view mode(text, static_cast<std::size_t>(length));
  return mode == "high"     ? Precision::high
         : mode == "medium" ? Precision::medium
         : mode == "ieee"   ? Precision::ieee
                            : Precision::highest;
}

bool context_batch_invariance() { return value_of(batch_invariance_variable).is(py::handle(Py_True)); }

void bind_runtime(py::module_& module) {
  precision_variable = new_variable(module, "precision_variable", "blasformer precision", py::str("highest"));
  batch_invariance_variable =
      new_variable(module, "batch_invariance_variable", "blasformer batch invariance", py::bool_(false));
  set_interrupt_check(&check_signals);
  set_warning_handler(&show_warning);

  module.def("available_cores", &available_cores);
  module.def("num_threads", &num_threads);
  module.def("set_num_threads", &set_num_threads, py::arg("count"));
  module.def("override_num_threads", &override_num_threads, py::arg("count"));
  module.def("sleep_in_tasks", &sleep_in_tasks, py::arg("tasks"), py::arg("seconds"));

  module.def("built_isas", &built_isas);
  module.def("detected_isas", &detected_isas);
  module.def("active_isa", &active_isa_name);
  module.def("use_isa", &use_isa, py::arg("name"));

  module.def("blas_config", &blas::config);
  module.def("blas_core_name", &blas::core_name);
  module.def("blas_path", &blas::path);
}

}  // namespace blasformer::bindings
