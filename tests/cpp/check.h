#pragma once

// A test is TEST(name_of_the_property) { CHECK(...); }. blasformer_tests runs all of them, or those whose
// names contain one of its arguments.

#include <stdexcept>
#include <string>

namespace blasformer::tests {

struct Registration {
  Registration(const char* name, void (*function)());
};

// What a test throws that cannot be run here.
struct Skipped {
  const char* reason;
};

[[noreturn]] inline void fail_at(const char* file, int line, const std::string& what) {
  throw std::runtime_error(std::string(file) + ":" + std::to_string(line) + ": " + what);
}

// The message of the Error that action throws.
template <class Error, class Action>
std::string message_of(const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  throw std::runtime_error("expected an exception");
}

}  // namespace blasformer::tests

#define TEST(name)                                                                     \
  static void name();                                                                  \
  static const ::blasformer::tests::Registration registration_of_##name(#name, &name); \
  static void name()

#define CHECK(condition) \
  ((condition) ? void() : ::blasformer::tests::fail_at(__FILE__, __LINE__, "expected " #condition))
