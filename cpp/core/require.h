#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace blasformer {

// An argument of the wrong type (the bindings turn it into TypeError); std::invalid_argument is ValueError,
// std::out_of_range IndexError, std::bad_alloc MemoryError.
struct TypeMismatch : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

template <class Error = std::invalid_argument, class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Error(text.str());
}

// require(ok, "scale must be finite, got ", scale): the text names the argument, what it must be and what it
// was.
template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) fail(parts...);
}

}  // namespace blasformer
