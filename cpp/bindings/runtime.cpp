#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "core/blas.h"
#include "core/cpu.h"
#include "core/interrupt.h"
#include "core/thread_pool.h"

namespace py = pybind11;

namespace blasformer::bindings {

void bind_runtime(py::module_& module) {
  set_interrupt_check([] {
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  });
  module.def("set_num_threads", &set_num_threads);
  module.def("num_threads", &num_threads);
  module.def("override_num_threads", &override_num_threads);
  module.def("active_isa", [] { return isa_name(active_isa()); });
  module.def("use_isa", [](const std::string& name) { use_isa(isa_from_name(name)); });
  module.def("blas_config", &blas::config);
  module.def("blas_core_name", &blas::core_name);
}

}  // namespace blasformer::bindings
