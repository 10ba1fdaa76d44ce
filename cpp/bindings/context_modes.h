#pragma once

#include "core/batch_invariance.h"
#include "core/precision.h"

namespace blasformer::bindings {

// Those of the current Python context. They need the interpreter lock.
Precision context_precision();
bool context_batch_invariance();

// While it lives this thread computes as the Python context asks in which it was made. (A signal handler of
// Python that runs in the middle of a call may make calls in another.)
class ContextModes {
 public:
  ContextModes() {
    const Precision precision = context_precision();
    set_batch_invariant(context_batch_invariance());
    set_current_precision(precision);
  }
  ~ContextModes() {
    set_current_precision(precision_);
    set_batch_invariant(batch_invariant_);
  }
  ContextModes(const ContextModes&) = delete;
  ContextModes& operator=(const ContextModes&) = delete;

 private:
  // What comes back.
  const Precision precision_ = current_precision();
  const bool batch_invariant_ = batch_invariant();
};

}  // namespace blasformer::bindings
