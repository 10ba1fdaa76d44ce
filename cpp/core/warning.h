#pragma once

#include <string>

namespace blasformer {

// Set once by the bindings: tells the user, and throws if warnings are errors to them. Called from the thread
// that called the library. Null when there is nobody to tell.
using WarningHandler = void (*)(const std::string& text);
void set_warning_handler(WarningHandler handler);
void warn(const std::string& text);

}  // namespace blasformer
