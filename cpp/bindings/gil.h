#pragma once

#include <pybind11/pybind11.h>
#include <unistd.h>

#include "bindings/context_modes.h"

namespace blasformer::bindings {

// Releases the GIL while it lives: other Python threads run. Not py::gil_scoped_release, whose end aborts the
// process when the interpreter is shutting down and this is a daemon thread: Python up to 3.13 then ends the
// thread by unwinding its stack, out of a destructor. Here such a thread stops for the rest of the process's
// life, as Python 3.14 does it. What is computed meanwhile is computed as the context asks.
class ReleaseGil {
 public:
  ReleaseGil() : state_(PyEval_SaveThread()) {}
  ~ReleaseGil() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) ::pause();
    }
  }
  ReleaseGil(const ReleaseGil&) = delete;
  ReleaseGil& operator=(const ReleaseGil&) = delete;

 private:
  const ContextModes modes_;
  PyThreadState* const state_;
};

}  // namespace blasformer::bindings
