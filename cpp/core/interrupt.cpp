#include "core/interrupt.h"

#include <atomic>

namespace blasformer {

namespace {
std::atomic<InterruptCheck> current_check{nullptr};
}

void set_interrupt_check(InterruptCheck check) { current_check.store(check); }
InterruptCheck interrupt_check() { return current_check.load(); }

}  // namespace blasformer
