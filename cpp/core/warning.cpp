#include "core/warning.h"

#include <atomic>

namespace blasformer {

namespace {
std::atomic<WarningHandler> current_handler{nullptr};
}

void set_warning_handler(WarningHandler handler) { current_handler.store(handler); }

void warn(const std::string& text) {
  if (const WarningHandler handler = current_handler.load()) handler(text);
}

}  // namespace blasformer
