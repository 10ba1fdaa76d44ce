#pragma once

#include "core/precision.h"

namespace blasformer::bindings {

// That of the current Python context. Needs the interpreter lock.
Precision context_precision();

// While it lives this thread computes at the precision of the Python context in which it was made. (A signal
// handler of Python that runs in the middle of a call may make calls in another.)
class ContextPrecision {
 public:
  ContextPrecision() : saved_(current_precision()) { set_current_precision(context_precision()); }
  ~ContextPrecision() { set_current_precision(saved_); }
  ContextPrecision(const ContextPrecision&) = delete;
  ContextPrecision& operator=(const ContextPrecision&) = delete;

 private:
  Precision saved_;
};

}  // namespace blasformer::bindings
