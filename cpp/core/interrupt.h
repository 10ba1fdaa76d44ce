#pragma once

namespace blasformer {

// Set once by the bindings: throws if the user asked to stop (Ctrl-C). parallel_for calls it from the calling
// thread every few milliseconds between tasks. Null when there is nobody to ask.
using InterruptCheck = void (*)();
void set_interrupt_check(InterruptCheck check);
InterruptCheck interrupt_check();

}  // namespace blasformer
