#include <cstdio>
#include <cstring>
#include <exception>
#include <vector>

#include "check.h"

namespace blasformer::tests {

namespace {

struct Test {
  const char* name;
  void (*function)();
};

std::vector<Test>& all_tests() {
  static std::vector<Test> tests;
  return tests;
}

bool passes(const Test& test) {
  try {
    test.function();
    return true;
  } catch (const Skipped& skipped) {
    std::printf("skipped %s: %s\n", test.name, skipped.reason);
    return true;
  } catch (const std::exception& error) {
    std::printf("FAILED %s\n  %s\n", test.name, error.what());
    return false;
  }
}

}  // namespace

Registration::Registration(const char* name, void (*function)()) { all_tests().push_back({name, function}); }

bool is_wanted(const Test& test, int parts, char** parts_of_names) {
  bool wanted = parts == 0;
  for (int i = 0; i < parts; ++i) wanted = wanted || std::strstr(test.name, parts_of_names[i]) != nullptr;
  return wanted;
}

int run(int parts, char** parts_of_names) {
  int run = 0, failed = 0;
  for (const Test& test : all_tests()) {
    if (!is_wanted(test, parts, parts_of_names)) continue;
    ++run;
    failed += passes(test) ? 0 : 1;
  }
  std::printf("%d tests, %d failed\n", run, failed);
  return failed == 0 && run > 0 ? 0 : 1;
}

}  // namespace blasformer::tests

int main(int count, char** arguments) { return blasformer::tests::run(count - 1, arguments + 1); }
